"""Rows and columns of many supports, computed together once per draw.

`sampled_product.coordinates` does the same for one support. Here a few operations serve all layers,
so a draw costs a GPU a few launches.

Names end in their shape: M entries of one support, P >= M of a padded one, E of all together.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from so_clip.optim.sampled_product import Method, coordinates, padded

Coordinates = tuple[Tensor, Tensor]


class Kind(NamedTuple):
    """What the coordinates of one support depend on, beside its entries."""

    entries: int  # M
    in_features: int
    method: Method


class Batch:
    """Computes the coordinates of supports of given kinds on one device.

    Args:
        kinds: one for each support.
        device: of the supports.
    """

    def __init__(self, kinds: Sequence[Kind], device: torch.device) -> None:
        self.kinds, self.device = tuple(kinds), device
        whole = [kind.method == "whole_columns" for kind in self.kinds]
        self._widths = [
            padded(kind.entries) if is_whole else kind.entries
            for kind, is_whole in zip(self.kinds, whole, strict=True)
        ]
        self._places_matter = any(whole)

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The divisor, factor and offset of each entry, and an entry for pads."""
        parts: list[list[Tensor]] = [[], [], []]
        for kind, width in zip(self.kinds, self._widths, strict=True):
            is_whole = kind.method == "whole_columns"
            ones = torch.ones(width, dtype=torch.int64, device=self.device)
            parts[0].append(ones * kind.in_features)
            parts[1].append(ones * width if is_whole else ones)
            parts[2].append(ones.cumsum(0) - 1 if is_whole else ones - 1)
        pad = torch.zeros(1, dtype=torch.int64, device=self.device)
        divisor_E, factor_E, offset_E = map(torch.cat, parts)
        return divisor_E, factor_E, offset_E, pad

    def coordinates(self, supports: Sequence[Tensor]) -> list[Coordinates]:
        """Return the coordinates of each support; see `sampled_product.coordinates`."""
        if len(supports) == 1:
            (kind,) = self.kinds
            return [coordinates(supports[0], kind.in_features, kind.method)]
        divisor_E, factor_E, offset_E, pad = self._constants
        parts: list[Tensor] = []
        for support_M, width in zip(supports, self._widths, strict=True):
            parts.append(support_M)
            if width > len(support_M):
                parts.append(pad.expand(width - len(support_M)))
        flat_E = torch.cat(parts)
        column_E = flat_E % divisor_E
        row_E = flat_E // divisor_E
        if self._places_matter:
            row_E = torch.addcmul(offset_E, row_E, factor_E)
        rows, columns = row_E.split(self._widths), column_E.split(self._widths)
        return [
            (row_P[: kind.entries], column_P)
            for kind, row_P, column_P in zip(self.kinds, rows, columns, strict=True)
        ]


# The batch of each device and combination of kinds.
Batches = dict[tuple[torch.device | Kind, ...], Batch]
