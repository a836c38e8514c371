"""2SFS: first the features, by a few weights of both towers, then a classifier on top of them.

Source: Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages, arXiv 2503.11609
(CVPR 2025); released code: github FarinaMatteo/rethinking_fewshot_vlms.

Tensor names end in their shape: B images of a batch, K classes, D embedding.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.weights import Weights
from so_clip.checks import number, whole
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, CosineHead
from so_clip.errors import InputError


class TwoStage(Weights):
    """Trains weights chosen as `Weights` does, then freezes them and trains the class embeddings.

    The first floor(steps · first_stage) steps are the first stage's, at least one. The classifier
    begins the second as what the tuned text tower makes of the prompts, and is made unit-length in
    use. Other classes than those trained are the tuned text tower's; see `StagedHead`.

    Other than published: the cosine of the rate goes down once, over both stages, where the authors
    begin it anew with the second.

    Args:
        patterns, encoder, position: see Weights.
        steps: of the whole training.
        first_stage: its share of the steps, in (0, 1).
    """

    def __init__(
        self,
        patterns: Sequence[str],
        steps: int,
        first_stage: float = 0.6,
        encoder: str = "both",
        position: str = "all",
    ) -> None:
        super().__init__(patterns, encoder, position)
        self.steps = whole("adapter.steps", steps, 0)
        if not 0 < number("adapter.first_stage", first_stage) < 1:
            raise InputError(f"adapter.first_stage={first_stage}: must lie between 0 and 1.")
        self.first_stage = first_stage

    @property
    def switch(self) -> int:
        """The first stage's steps."""
        return max(1, int(self.steps * self.first_stage))

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Open the first stage's weights, and return the classifier's with them, still frozen.

        Raises:
            InputError: see Weights.
        """
        class_KD = classifier.classes()
        selected = super().__call__(classifier)
        head = StagedHead(classifier.backbone.logit_scale, class_KD.clone())
        classifier.head = head
        return selected | {"head.weight": head.weight}

    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Go over to the second stage when its time has come."""
        if step != self.switch:
            return ()
        tuned = [value for value in classifier.named().values() if value.requires_grad]
        self._begin_second_stage(classifier)
        return tuned

    def stage_ends(self) -> Sequence[int]:
        """Return the first stage's last step."""
        return (self.switch,)

    def finish(self, classifier: Classifier) -> None:
        """Go over to the second stage if training ended before, so that its result is one thing."""
        if not _head(classifier).second_stage:
            self._begin_second_stage(classifier)

    def resume(self, classifier: Classifier) -> None:
        """Use the classifier that was loaded."""
        _freeze_towers(classifier)

    def training_state(self, classifier: Classifier) -> dict[str, Any]:
        """Return the stage."""
        return {"second_stage": _head(classifier).second_stage}

    def load_training_state(self, classifier: Classifier, state: dict[str, Any]) -> None:
        """Go on in that stage."""
        if state["second_stage"]:
            _freeze_towers(classifier)

    def _begin_second_stage(self, classifier: Classifier) -> None:
        classifier.forget_classes()
        with torch.no_grad():
            _head(classifier).weight.copy_(classifier.classes())
        _freeze_towers(classifier)


class StagedHead(CosineHead):
    """CLIP's own cosines at first, those with weights of its own in the second stage.

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
        """Return logits_BK; the second stage does not ask for `classes`."""
        return super().forward(image_BD, self._weights if self.second_stage else classes)

    def for_other_classes(self) -> CosineHead:
        """Return CLIP's own head: only the tuned text tower knows classes that were not trained."""
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
