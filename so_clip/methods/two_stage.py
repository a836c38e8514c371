"""2SFS: train a few weights of both towers, then freeze the towers and train a classifier.

Source: Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages, arXiv 2503.11609
(CVPR 2025); released code: github FarinaMatteo/rethinking_fewshot_vlms.

Tensor names end in their shape: B images of a batch, K classes, D embedding.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, CosineHead
from so_clip.methods.options import inner_share, whole
from so_clip.methods.weights import Weights


class TwoStage(Weights):
    """Trains the weights that `Weights` selects, then freezes them and trains class embeddings.

    The first stage takes floor(steps · first_stage) steps, at least one. The second stage
    initialises the classifier with the class embeddings of the tuned text tower, and makes it
    unit-length in use. Classes that were not trained use the tuned text tower; see `StagedHead`.
    Each stage has a cosine of the learning rate of its own.

    Args:
        roles, encoder, position: see Weights.
        steps: of the whole training, 0 or more.
        first_stage: the first stage's share of the steps, between 0 and 1.
    """

    plain = False
    for_sentences = False
    half_weights = False  # the second stage's classifier is float32

    def __init__(
        self,
        roles: Sequence[str],
        steps: int,
        first_stage: float = 0.6,
        encoder: str = "both",
        position: str = "all",
    ) -> None:
        super().__init__(roles, encoder, position)
        self.steps = whole("steps", steps, 0)
        self.first_stage = inner_share("first_stage", first_stage)

    @property
    def switch(self) -> int:
        """The number of steps in the first stage."""
        return max(1, int(self.steps * self.first_stage))

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Open the first stage's weights; return them and the classifier, which is still frozen.

        Raises:
            InputError: see Weights.
        """
        class_KD = classifier.classes()
        selected = super().__call__(classifier)
        head = StagedHead(classifier.backbone.logit_scale, class_KD.clone())
        classifier.head = head
        return selected | {"head.weight": head.weight}

    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Begin the second stage after the last step of the first."""
        if step != self.switch:
            return ()
        tuned = [value for value in classifier.named().values() if value.requires_grad]
        self._begin_second_stage(classifier)
        return tuned

    def stage_ends(self) -> Sequence[int]:
        """Return the last step of the first stage."""
        return (self.switch,)

    def rate_restarts(self) -> Sequence[int]:
        """Return the last step of the first stage."""
        return (self.switch,)

    def finish(self, classifier: Classifier) -> None:
        """Begin the second stage if training ended in the first: all results have one form."""
        if not _head(classifier).second_stage:
            self._begin_second_stage(classifier)

    def resume(self, classifier: Classifier) -> None:
        """Begin the second stage with the loaded classifier."""
        _freeze_towers(classifier)

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return the stage."""
        return {"second_stage": _head(classifier).second_stage}

    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Restore the stage."""
        if state["second_stage"]:
            _freeze_towers(classifier)

    def _begin_second_stage(self, classifier: Classifier) -> None:
        classifier.forget_classes()
        with torch.no_grad():
            _head(classifier).weight.copy_(classifier.classes())
        _freeze_towers(classifier)


class StagedHead(CosineHead):
    """CLIP's cosines in the first stage; cosines with trained weights in the second stage.

    Args:
        scale: of the cosines.
        weight_KD: the second stage's classifier.

    Attributes:
        second_stage: whether the weights are used.
    """

    def __init__(self, scale: float, weight_KD: Tensor) -> None:
        super().__init__(scale)
        self.weight = nn.Parameter(weight_KD, requires_grad=False)
        self.second_stage = False

    def forward(self, image_BD: Tensor, classes: Classes) -> Tensor:
        """Return logits_BK. The second stage does not call `classes`."""
        return super().forward(image_BD, self._weights if self.second_stage else classes)

    def for_other_classes(self) -> CosineHead:
        """Return CLIP's head: only the tuned text tower knows classes that were not trained."""
        return CosineHead(self.scale)

    def _weights(self) -> Tensor:
        return F.normalize(self.weight, dim=-1)


def _head(classifier: Classifier) -> StagedHead:
    assert isinstance(classifier.head, StagedHead)
    return classifier.head


def _freeze_towers(classifier: Classifier) -> None:
    head = _head(classifier)
    classifier.backbone.requires_grad_(False)
    head.weight.requires_grad_(True)
    head.second_stage = True
