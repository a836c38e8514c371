"""The interface of all adapters, and what they may read of the few-shot images.

Tensor names end in their shape: N few-shot images, V views of each image, D embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LowRankUpdate:
    """A low-rank update of rows of one weight W [O, I] of the base model.

        W[rows] += scale · up diag(diagonal) down

    Attributes:
        tensor: name of W in open_clip's state dict.
        rows: the first row, and the row after the last one.
        down, up: names in the classifier's state dict of tensors [R, I] and [rows, R].
        diagonal: name there of a tensor of R numbers, of any shape; None for ones.
        scale: a factor.
    """

    tensor: str
    rows: tuple[int, int]
    down: str
    up: str
    diagonal: str | None
    scale: float


class Adapter:
    """Chooses the tensors of a classifier that training changes.

    A run calls `check` and then the adapter, and measures zero-shot accuracy. It then calls
    `start`, trains with `penalty` and `after_step`, and calls `finish`. By default these methods do
    nothing.

    A finished model is saved as the classifier's state dict. Another process calls the adapter,
    loads the state dict and calls `resume`. `rewritten`, `low_rank_updates` and `merge` describe
    the finished model in terms of CLIP's own weights.

    Attributes:
        class_bound: True if the trained tensors belong to the training classes. The adapted model
            then cannot classify other classes.
        needs_text: True if it reads the text tower. False if it also works on a backbone without
            one; `__call__` then puts a head that does not call `classes` into the classifier.
        plain: True if the adapted model is CLIP's weights and nothing else after `merge`. False if
            learned prompts or a head belong to it.
        for_sentences: True if it uses nothing of a classifier that an AdaptableModel does not have.
            It then adapts sentence encoders, too.
        half_weights: True if the adapter works with frozen weights and embeddings in float16; see
            so_clip.clip.engine.half_weights.
        draws: the generator of dropout; None without dropout.
    """

    class_bound = False
    needs_text = True
    plain = False
    for_sentences = False
    half_weights = False
    draws: DropoutDraws | None = None

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Open or add the trained parameters; return them by their names in `classifier.named()`.

        All parameters are frozen before the call. The logits must not change in it.

        Raises:
            InputError: the model has no tensors of the kind that the adapter trains.
        """
        raise NotImplementedError

    def check(self, classifier: Classifier, weights_sha256: str) -> None:
        """Refuse, before any work of a run, a file of the adapter that does not fit the model.

        A run calls this before `__call__`, but not for a saved adapter, because that needs no such
        file.

        Args:
            weights_sha256: of the backbone; "" if it has no real weights, as in a forecast.

        Raises:
            InputError: the file cannot be used.
        """

    def stand_in(self, classifier: Classifier) -> None:
        """Take first values in place of a file, so that a model without weights can be tried.

        A forecast calls this instead of `check`, before `__call__`.

        Raises:
            InputError: no file can fit this model.
        """

    def start_state(self) -> nn.Module | None:
        """Return a state beside the model that `start` reads, such as that of a file, or None."""
        return None

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
        """Return, in order, the steps after which a training step computes something else."""
        return ()

    def rate_restarts(self) -> Sequence[int]:
        """Return, in order, the steps after which a new cosine of the learning rate starts."""
        return ()

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return the state for a checkpoint, beyond opened tensors, buffers and the optimizer.

        The loop calls this between two steps, when there are no gradients.

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

        An evaluation calls this to test the model on classes that it was not trained with: after
        `finish`, and once before the training, so that an error comes early.

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
        """Restore the finished model from its state dict, without few-shot images.

        This is called after `__call__` and after the state dict is loaded. `start`, training and
        `finish` did not run in this process.
        """

    def rewritten(self, classifier: Classifier) -> dict[str, Tensor]:
        """Return tensors, none of them opened, that `start`, `after_step` or `finish` can change.

        A run calls this after `__call__`, before and after `start`.

        Returns:
            The current tensors by their names in open_clip's state dict. Clone them to keep values.
        """
        return {}

    def low_rank_updates(self, classifier: Classifier) -> list[LowRankUpdate]:
        """Return the low-rank updates of a finished or resumed model.

        The towers compute with these updates and the model's own weights alone. A method whose
        update has another form returns none.
        """
        return []

    def merge(self, classifier: Classifier) -> None:
        """Turn added modules of a finished or resumed model into weights of CLIP.

        The model's state dict then has open_clip's names only, except for learned prompts. A method
        that trains CLIP's own weights, or only a head, has nothing to do.
        """
