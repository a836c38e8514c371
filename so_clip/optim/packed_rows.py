"""Tensors of one arena that are stepped as one batch, whatever their sizes.

A batch has a row for each tensor. Rows have the length of the largest M; a shorter row ends in
pads. A pad's index is that of the arena's scratch slot, after all weights. So reads and writes of
entries need no special case for pads. The optimizer's states are views of the rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from so_clip.optim import step_kernel
from so_clip.optim.arena import Arena, PackedWeights
from so_clip.optim.functional import Moments, step_rows
from so_clip.optim.rates import Rates, Rule, moment_dtype
from so_clip.optim.sparse_entries import locate
from so_clip.optim.support import to_device, write_over

State = dict[str, Any]


class PackedRows:
    """R tensors of one arena and their states, in padded rows whose addresses never change.

    Args:
        arena: of all these tensors.
        params: the tensors.
        states: theirs, complete for the coming step. Their tensors become views of the rows.
    """

    def __init__(self, arena: Arena, params: Sequence[Tensor], states: Sequence[State]) -> None:
        self.weights, self.params, self.states = PackedWeights(arena, params), params, states
        device, dtype = arena.flat.device, moment_dtype(arena.flat)
        sizes = [state["size"] for state in states]
        self.size_R = torch.tensor(sizes, device=device)
        shape = (len(sizes), max(sizes))
        # The scratch slot, counted from each tensor's own first entry.
        scratch = [arena.scratch - Arena.offset(param) for param in params]
        self._pads_RM = np.repeat(np.asarray(scratch, dtype=np.int64)[:, None], shape[1], axis=1)
        column_M = torch.arange(shape[1], device=device)
        is_pad_RM = column_M >= self.size_R[:, None]
        self.is_pad_RM = is_pad_RM if min(sizes) < shape[1] else None
        pads_RM = torch.from_numpy(self._pads_RM).to(device)
        self._rows: dict[str, Tensor] = {"support": pads_RM.clone(), "index": pads_RM.clone()}
        self._rows |= {
            name: torch.zeros(shape, dtype=dtype, device=device)
            for name in ("exp_avg", "exp_avg_sq")
        }
        if "age" in states[0]:
            self._rows["age"] = torch.zeros(shape, dtype=torch.int32, device=device)
        self._uses_kernel = (
            dtype == torch.float32
            and shape[1] <= step_kernel.MAX_ENTRIES
            and step_kernel.available(device)
        )
        self._grad_RM = torch.zeros(shape, dtype=dtype, device=device)
        for name, rows_RM in self._rows.items():
            torch._foreach_copy_(self._views(rows_RM), [state[name] for state in states])
        self._rows["place"] = torch.empty(shape, dtype=torch.int64, device=device)
        self._locate()
        self._share()

    def fit(self, params: Sequence[Tensor], states: Sequence[State]) -> bool:
        """Return whether these tensors are still those of the rows, with states in the rows."""
        same = len(params) == len(self.params) and all(map(_is, params, self.params))
        return same and all(
            _is(state, own) and _is_in(state["index"], self._rows["index"])
            for state, own in zip(states, self.states, strict=True)
        )

    def step(self, grads: list[Tensor], rule: Rule, rates: Rates) -> None:
        """Step all tensors; see `step_rows`. All operations are on the device.

        This is one launch if Triton is available and M is small enough; see
        so_clip.optim.step_kernel.

        Args:
            grads: the gradients on the supports [M], one per tensor.
            rule, rates: of the step.
        """
        torch._foreach_copy_(self._views(self._grad_RM), grads)
        rows = self._rows
        moments = Moments(
            rows["index"], rows["place"], rows["exp_avg"], rows["exp_avg_sq"], rows.get("age")
        )
        flat, half = self.weights.arena.flat, self.weights.arena.half
        if self._uses_kernel:
            step_kernel.step_rows(
                flat,
                half,
                offset_R=self.weights.offset_R1[:, 0],
                size_R=self.size_R,
                grad_RM=self._grad_RM,
                support_RM=rows["support"],
                moments=moments,
                scalars=rates.on_device(flat.device),
                rule=rule,
            )
            return
        step_rows(
            self.weights,
            self._grad_RM,
            rows["support"],
            moments,
            rule=rule,
            rates=rates,
            is_pad_RM=self.is_pad_RM,
        )

    def put_supports(self, drawn: Sequence[Tensor], *, in_place: bool) -> None:
        """Store new supports, one per tensor.

        Args:
            drawn: ascending indices on the CPU.
            in_place: keep the tensor that the states have, and write to it.
        """
        support_RM = self._pads_RM.copy()
        for row_M, support_M in zip(support_RM, drawn, strict=True):
            if not isinstance(support_M, FakeTensor):  # as in a forecast, without values
                row_M[: len(support_M)] = support_M
        new_RM = torch.from_numpy(support_RM)
        if in_place:
            write_over(self._rows["support"], new_RM)
        else:
            self._rows["support"] = to_device(new_RM, self.weights.arena.flat.device)
        self._locate()
        self._share()

    def note_writes(self) -> None:
        """Tell autograd and the arena that a step has changed the tensors."""
        torch.autograd.graph.increment_version(self.params)
        self.weights.arena.note_writes(self.params)
        if self.weights.arena.half is not None:  # torch does not see the kernel's writes
            torch.autograd.graph.increment_version(self.weights.arena.half)

    def _views(self, rows_RM: Tensor) -> list[Tensor]:
        """Return the entries of each row without its pads [M]."""
        sizes = [state["size"] for state in self.states]
        return [row_M[:size] for row_M, size in zip(rows_RM.unbind(), sizes, strict=True)]

    def _locate(self) -> None:
        """Find the place of each entry with moments in the support."""
        place_RM = locate(self._rows["index"], self._rows["support"])
        if self.is_pad_RM is not None:
            place_RM.masked_fill_(self.is_pad_RM, place_RM.shape[1])
        self._rows["place"].copy_(place_RM)

    def _share(self) -> None:
        """Make the states views of the rows. Places stay here: they count in padded rows."""
        for state in self.states:
            state.pop("place", None)
        for name, rows_RM in self._rows.items():
            for state, view_M in zip(self.states, self._views(rows_RM), strict=True):
                # Layers that sample would take an equal view for another support.
                if name != "place" and not _is_in(state[name], rows_RM):
                    state[name] = view_M


def _is(one: object, other: object) -> bool:
    return one is other


def _is_in(view: Tensor | None, whole: Tensor) -> bool:
    return view is not None and view._base is whole
