"""The places of the weights that the masks keep, and the overlap of the experts."""

from itertools import combinations
from typing import NamedTuple

import torch

from so_clip.smat.experts import mask
from so_clip.smat.model import Smat


class MaskRow(NamedTuple):
    """One mask of one weight: the share of its entries that is not zero."""

    expert: int
    tensor: str
    role: str
    block: int | None
    entries: int
    kept_share: float


class OverlapRow(NamedTuple):
    """Two experts: kept by both, divided by kept by either (Jaccard index)."""

    expert: int
    other: int
    overlap: float


@torch.no_grad()
def mask_rows(smat: Smat) -> list[MaskRow]:
    """Return a row for each expert and weight, with the masks of a test."""
    experts, beta = smat.experts, smat.options.test_beta
    rows = []
    for part, log_alpha, delta in zip(smat.parts, experts.log_alpha, experts.delta, strict=True):
        share_M = (mask(log_alpha, beta) > 0).flatten(1).double().mean(dim=1).tolist()
        rows += [
            MaskRow(expert, part.name, part.role, part.block, delta.numel(), share)
            for expert, share in enumerate(share_M)
        ]
    return sorted(rows, key=lambda row: row.expert)


@torch.no_grad()
def overlap_rows(smat: Smat) -> list[OverlapRow]:
    """Return a row for each pair of experts; 0 if neither keeps anything."""
    experts, beta = smat.experts, smat.options.test_beta
    pairs = list(combinations(range(smat.options.experts), 2))
    both, either = dict.fromkeys(pairs, 0), dict.fromkeys(pairs, 0)
    for log_alpha, delta in zip(experts.log_alpha, experts.delta, strict=True):
        kept_MG = (mask(log_alpha, beta) > 0).flatten(1)
        covered = delta.numel() // kept_MG.shape[1]  # weights that share a logit
        for first, second in pairs:
            both[first, second] += covered * int((kept_MG[first] & kept_MG[second]).sum())
            either[first, second] += covered * int((kept_MG[first] | kept_MG[second]).sum())
    return [
        OverlapRow(first, second, both[first, second] / max(1, either[first, second]))
        for first, second in pairs
    ]
