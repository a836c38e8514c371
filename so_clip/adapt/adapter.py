"""What every adapter is: called to open what it trains, and told where a run stands.

Tensor names end in their shape: N training images, V views of each, D embedding.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from so_clip.adapt.dropout import Draws
from so_clip.clip.classifier import Classifier


class Support(Protocol):
    """The few training images, as an adapter may look at them before the first step."""

    @property
    def labels_N(self) -> Tensor:
        """Labels, int64, on the classifier's device."""
        ...

    def encode(self, views: int = 0) -> Tensor:
        """Return unit-length image_VND of so many random crops of each image.

        0 views: of its centre, as test images are cropped; V is 1 then.
        """
        ...


class Adapter:
    """Says which tensors of a classifier change; an optimizer that it never meets says how.

    A run calls an adapter once, measures zero-shot accuracy, then calls `start`, trains with
    `penalty` and `after_step`, and calls `finish`. All but the first do nothing here.

    Attributes:
        class_bound: what is trained belongs to the training classes, and says nothing of others.
        draws: what dropout draws from, where there is any.
    """

    class_bound = False
    draws: Draws | None = None

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Open or add what is trained, and return it by its name in `classifier.named()`.

        All parameters are frozen when they come. The classifier's logits must not change yet.

        Raises:
            InputError: this model has nothing of the kind.
        """
        raise NotImplementedError

    def start(self, classifier: Classifier, support: Support) -> None:
        """Set starting values that differ from zero-shot CLIP's, or follow from the images."""

    def penalty(self, classifier: Classifier) -> Tensor | None:
        """Return what a step adds to the cross-entropy, or None for nothing."""
        return None

    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Act on the model after so many steps.

        Returns:
            Parameters that were begun anew, of which the optimizer forgets what it remembers.
        """
        return ()

    def stage_ends(self) -> Sequence[int]:
        """Return the steps, in order, after which a step computes something else than before."""
        return ()

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return what the steps to come depend on beside opened tensors, buffers and optimizer.

        Asked for between two steps, when there are no gradients.

        Returns:
            Tensors, numbers and text, in dicts and lists: it is written to a file.
        """
        return {} if self.draws is None else {"dropout": self.draws.generator.get_state()}

    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Go on from there, after `start` and with the opened tensors as they were then.

        Args:
            classifier: its tensors may be on another device than the state, which is on the CPU.
            state: what `training_state` returned.
        """
        if self.draws is not None:
            self.draws.generator.set_state(state["dropout"])

    def prompts_for(self, classifier: Classifier, tokens_PL: Tensor) -> Tensor:
        """Return prompts of other classes, made from `classifier.templates`, as this rewrites them.

        Called after `finish`, to test the model on classes that it was not trained with.

        Raises:
            InputError: a prompt gets too long.
        """
        return tokens_PL

    def finish(self, classifier: Classifier) -> None:
        """Turn what was trained into what is evaluated, after the last step."""

    def resume(self, classifier: Classifier) -> None:
        """Act as what it was after `finish`, once the state from then is loaded after `start`."""
