"""SMAT: merge meta-trained experts into the image tower for these classes, then train or not.

Source: SMAT, arXiv 2403.08477; released code: github szc12153/sparse_meta_tuning.
`python -m so_clip meta` writes the checkpoint.

Tensor names end in their shape: S few-shot images, K classes, B images of a batch, D embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.checks import one_of
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, CosineHead, exact
from so_clip.methods.adapter import Adapter, FewShots
from so_clip.methods.clip_lora import ClipLoRA
from so_clip.methods.options import flag
from so_clip.methods.weights import Weights
from so_clip.smat.checkpoint_file import SavedSmat, checkpoint_for
from so_clip.smat.model import Smat as SmatState
from so_clip.smat.options import HEADS, Head, SmatOptions
from so_clip.smat.task import class_means, task_logits


class _Merging(Adapter):
    """Merges the experts of a checkpoint at the start. The next class in line may train the result.

    Attributes:
        checkpoint: the file.
        head: see Smat.
        train: whether the next class opens its parameters, and the head its prototypes.
    """

    half_weights = False
    for_sentences = False

    def _use(self, checkpoint: Any, head: str, train: bool) -> None:
        one_of("adapter.head", head, HEADS)
        self.checkpoint, self.train = checkpoint, flag("train", train)
        self.head: Head = next(known for known in HEADS if known == head)
        self.class_bound = head != "text"
        self.plain = head == "text"
        self.needs_text = head != "prototype"
        self._saved: SavedSmat | None = None

    def check(self, classifier: Classifier, weights_sha256: str) -> None:
        """Read the checkpoint; refuse a missing one, or one of another backbone."""
        self._saved = checkpoint_for(self.checkpoint, classifier.backbone, weights_sha256)

    def stand_in(self, classifier: Classifier) -> None:
        """Take new experts over the matrices of the image tower in place of a checkpoint."""
        backbone = classifier.backbone
        parts = Weights(encoder="vision").selected_parts(classifier)
        smat = SmatState(
            parts, backbone.dimensions, SmatOptions(experts=1, granularity="matrix"), 0
        )
        self._saved = SavedSmat(smat.eval().requires_grad_(False), {}, "", "", "")

    def start_state(self) -> nn.Module | None:
        """Return the meta-trained state."""
        return self._saved.smat if self._saved else None

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Let the next class open its parameters, and add a head if it has prototypes."""
        opened = super().__call__(classifier) if self.train else {}
        if self.head == "text":
            return opened
        backbone = classifier.backbone
        prototype_KD = torch.zeros(classifier.class_count, backbone.dimensions)
        head = SmatHead(backbone.logit_scale, self.head, prototype_KD.to(backbone.mean.device))
        head.prototypes.requires_grad_(self.train)
        classifier.head = head
        return opened | ({"head.prototypes": head.prototypes} if self.train else {})

    @torch.no_grad()
    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Merge the experts for these classes; set the head's prototypes after that."""
        assert self._saved is not None, "check comes first"
        smat, backbone = self._saved.smat, classifier.backbone
        labels_S, classes = few_shots.labels_N, classifier.class_count
        prototype_KD = class_means(few_shots.encode()[0], labels_S, classes)
        reads_texts = smat.options.text_tokens and backbone.has_text
        class_KD = classifier.classes() if reads_texts else None
        smat.merge_into(backbone.model, prototype_KD, class_KD)
        classifier.forget_classes()
        if isinstance(classifier.head, SmatHead):
            means_KD = class_means(few_shots.encode()[0], labels_S, classes)
            classifier.head.prototypes.copy_(means_KD)
            classifier.head.ready = True
        super().start(classifier, few_shots)

    def resume(self, classifier: Classifier) -> None:
        """Use the loaded prototypes."""
        super().resume(classifier)
        if isinstance(classifier.head, SmatHead):
            classifier.head.ready = True

    def rewritten(self, classifier: Classifier) -> dict[str, Tensor]:
        """Return the merged weights, and the tensors that the next class rewrites."""
        found = super().rewritten(classifier)
        if self._saved is None:
            return found
        model = classifier.backbone.model
        merged = {id(model.get_parameter(name)) for name in self._saved.smat.experts.names}
        state = model.state_dict(keep_vars=True)
        return found | {name: value for name, value in state.items() if id(value) in merged}


class Smat(_Merging, Weights):
    """The merged model, unchanged or fine-tuned.

    The router reads the classes of the few-shot images and weighs the experts; the image tower
    becomes W0 + (weighted sum of masks) · delta. No gradient is computed for that.

    Args:
        checkpoint: a file of `python -m so_clip meta`, or its run's folder.
        head: text (CLIP's class texts) | prototype (cosines with the class means of the few-shot
            images, times 10) | mean (the mean of both logits).
        train: whether to open the weights, and the prototypes if there are any.
        roles, encoder, position, interpolation: of the weights to open; see Weights. WiSE-FT then
            interpolates between the merged and the trained weights.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        head: str = "text",
        train: bool = False,
        roles: Sequence[str] = ("matrices",),
        encoder: str = "both",
        position: str = "all",
        interpolation: float = 1.0,
    ) -> None:
        super().__init__(roles, encoder, position, interpolation)
        self._use(checkpoint, head, train)


class SmatClipLoRA(_Merging, ClipLoRA):
    """The merged model with CLIP-LoRA's updates.

    Args:
        checkpoint, head: see Smat.
        rank, alpha, dropout, encoder, position, seed, interpolation: see ClipLoRA.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        head: str = "text",
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        encoder: str = "both",
        position: str = "all",
        seed: int = 0,
        interpolation: float = 1.0,
    ) -> None:
        super().__init__(rank, alpha, dropout, encoder, position, seed, interpolation)
        self._use(checkpoint, head, train=True)


class SmatHead(CosineHead):
    """CLIP's head at first; then logits from class prototypes, with or without class texts.

    Args:
        scale: of cosines with class texts.
        kind: prototype | mean; see Smat.
        prototype_KD: first values.

    Attributes:
        ready: whether the prototypes are set.
    """

    def __init__(self, scale: float, kind: Head, prototype_KD: Tensor) -> None:
        super().__init__(scale)
        self.kind: Head = kind
        self.prototypes = nn.Parameter(prototype_KD)
        self.ready = False

    def forward(self, image_BD: Tensor, classes: Classes) -> Tensor:
        """Return logits_BK. Prototypes alone do not call `classes`."""
        if not self.ready:
            return super().forward(image_BD, classes)
        class_KD = None if self.kind == "prototype" else classes()
        with exact(image_BD.device):
            return task_logits(self.kind, image_BD, self.prototypes, class_KD, self.scale)

    def for_other_classes(self) -> CosineHead:
        """Return CLIP's head: the prototypes belong to the training classes."""
        return CosineHead(self.scale)
