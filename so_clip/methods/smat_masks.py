"""Train a fixed number of entries: those that the masks of meta-trained experts keep.

Tensor names end in their shape: M experts, C candidates of one parameter.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.errors import InputError
from so_clip.methods.entries import Entries
from so_clip.methods.entry_choice import Candidates
from so_clip.smat.checkpoint_file import SavedSmat, checkpoint_for
from so_clip.smat.experts import mask

# Weight of the logits in a score: they decide only among equal masks.
_TIES = 1e-6


class SmatMasks(Entries):
    """Trains the entries with the largest mean mask value over SMAT's experts.

    The weights start as CLIP's: the checkpoint gives places, and no values. Many masks are exactly
    0 or 1. Among entries of equal masks, those with the larger mean logit are chosen.

    Args:
        checkpoint: a file of `python -m so_clip meta`, or its run's folder.
        encoder: see Weights. Experts belong to the image tower.
        per_matrix: see Entries. If false, the masks also decide how many entries a matrix has.
        options: further options of Entries, except for `selection`.

    Raises:
        InputError: an option is out of range.

    Source: of the masks, arXiv 2403.08477.
    """

    for_sentences = False

    def __init__(
        self,
        checkpoint: str | None = None,
        encoder: str = "vision",
        per_matrix: bool = False,
        **options: Any,
    ) -> None:
        super().__init__("random", encoder=encoder, per_matrix=per_matrix, **options)
        self.checkpoint = checkpoint
        self._saved: SavedSmat | None = None

    def check(self, classifier: Classifier, weights_sha256: str) -> None:
        """Read the checkpoint; refuse a missing one, or one of another backbone."""
        self._saved = checkpoint_for(self.checkpoint, classifier.backbone, weights_sha256)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Choose the entries; see Entries. The checkpoint is not needed after that."""
        opened = super().__call__(classifier)
        self._saved = None
        return opened

    def candidates(self, classifier: Classifier) -> list[Candidates]:
        """Return the entries that the experts can change."""
        selected = super().candidates(classifier)
        if self._saved is None:
            return selected
        names = self._saved.smat.experts.names
        found = [candidate for candidate in selected if candidate.name in names]
        if not found:
            raise InputError(
                f"adapter.roles={self.places.roles}: the experts of {self._saved.place} change "
                f"none of these weights with encoder={self.places.encoder}, "
                f"position={self.places.position}. They change {names[0]} and others of its kind."
            )
        return found

    def scores(self, candidates: Sequence[Candidates]) -> Iterable[Tensor] | None:
        """Return the mean mask value of each candidate."""
        if self._saved is None:
            return None
        smat = self._saved.smat
        logits = dict(zip(smat.experts.names, smat.experts.log_alpha, strict=True))
        return (
            candidate.values_of(
                _score(logits[candidate.name], smat.options.test_beta).expand(
                    candidate.parameter.shape
                )
            )
            for candidate in candidates
        )


def _score(log_alpha: Tensor, beta: float) -> Tensor:
    """Return the mean mask over experts; the logits decide among equal ones."""
    logits = log_alpha.double()
    return mask(logits, beta).mean(dim=0) + _TIES * torch.sigmoid(logits).mean(dim=0)
