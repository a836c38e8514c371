"""The interface of all adapters, and what they may read of the few-shot images.

Tensor names end in their shape: N few-shot images, V views of each image, D embedding.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.methods.random_draws import DropoutDraws


class FewShots(Protocol):
    """The few-shot images, as an adapter may read them before the first step."""

    @property
    def labels_N(self) -> Tensor:
        """Labels, int64, on the classifier's device."""
        ...

    def encode(self, views: int = 0) -> Tensor:
        """Return unit-length image_VND of `views` random crops of each image.

        With views=0 it encodes the centre crop of test images, and V is 1.
        """
        ...


class Adapter:
    """Chooses the tensors of a classifier that training changes.

    A run calls the adapter once and measures zero-shot accuracy. It then calls `start`, trains with
    `penalty` and `after_step`, and calls `finish`. By default these methods do nothing.

    Attributes:
        class_bound: True if the trained tensors belong to the training classes. The adapted model
            then cannot classify other classes.
        half_weights: True if the adapter works with frozen weights and embeddings in float16; see
            so_clip.clip.half_weights.
        draws: the generator of dropout; None without dropout.
    """

    class_bound = False
    half_weights = False
    draws: DropoutDraws | None = None

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Open or add the trained parameters; return them by their names in `classifier.named()`.

        All parameters are frozen before the call. The logits must not change in it.

        Raises:
            InputError: the model has no tensors of the kind that the adapter trains.
        """
        raise NotImplementedError

    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Set first values that differ from zero-shot CLIP or depend on the few-shot images."""

    def penalty(self, classifier: Classifier) -> Tensor | None:
        """Return a loss that each step adds to the cross-entropy, or None."""
        return None

    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Change the model after `step` steps.

        Returns:
            Parameters that have new first values. The optimizer resets its state for them.
        """
        return ()

    def stage_ends(self) -> Sequence[int]:
        """Return in order the steps after which a step computes something else than before."""
        return ()

    def rate_restarts(self) -> Sequence[int]:
        """Return in order the steps after which a new cosine of the learning rate starts."""
        return ()

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return the state for a checkpoint, beyond opened tensors, buffers and the optimizer.

        Called between two steps, when there are no gradients.

        Returns:
            Tensors, numbers and text, in dicts and lists, since a file stores them.
        """
        return {} if self.draws is None else {"dropout": self.draws.generator.get_state()}

    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Restore a state, after `start` and after the opened tensors are restored.

        Args:
            classifier: its tensors may be on another device than the state.
            state: the value of `training_state`, on the CPU.
        """
        if self.draws is not None:
            self.draws.generator.set_state(state["dropout"])

    def prompts_for(self, classifier: Classifier, tokens_PL: Tensor) -> Tensor:
        """Return prompts of other classes, rewritten as this adapter rewrites prompts.

        Called after `finish`, to test the model on classes that it was not trained with.

        Args:
            classifier: its `templates` made the prompts.
            tokens_PL: P tokenised prompts of L tokens.

        Raises:
            InputError: a prompt becomes too long.
        """
        return tokens_PL

    def finish(self, classifier: Classifier) -> None:
        """Turn the trained tensors into the evaluated model, after the last step."""

    def resume(self, classifier: Classifier) -> None:
        """Restore the finished model, after `start` and after its state dict is loaded."""
