"""How SO steps the tensors of its groups: in batches, or in the padded rows of an arena.

Names end in their shape: M entries sampled of a tensor.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from so_clip.errors import InputError
from so_clip.optim.arena import Arena
from so_clip.optim.functional import so, so_dense_moments, so_no_moments
from so_clip.optim.gradients import read_gradient
from so_clip.optim.packed_rows import PackedRows
from so_clip.optim.rates import DeviceRates, Rates, Rule
from so_clip.optim.state import (
    State,
    batches,
    complete_states,
    fits_rows,
    is_waiting,
    new_state,
    rows_that_fit,
    set_supports,
    stack_moments,
    stack_supports,
)
from so_clip.optim.support import draw_supports

# The options with which all steps have the same device operations.
_CAPTURED: dict[str, tuple[Any, ...]] = {
    "gradient_selection": ("random", "dense"),
    "moment_selection": ("importance", "dense", "none"),
    "foreach": (None, True),
}
# What a copy of weights can be.
_HALVES = (None, torch.bfloat16, torch.float16)
Batch = tuple[list[Tensor], list[State]]


class Optimizer(Protocol):
    """The attributes of an SO that `Stepping` reads."""

    param_groups: list[dict[str, Any]]
    state: Any
    _generator: torch.Generator


def why_host_reads(group: dict[str, Any]) -> str | None:
    """Return the option of a group that needs the host in each step; None: no option does.

    Such a step waits for a device, or depends on the step's number, so no graph can hold it.
    """
    for option, captured in _CAPTURED.items():
        if group[option] not in captured:
            return f"optimizer.{option}={group[option]} needs the host in each step"
    if group["gradient_selection"] == "dense" and group["moment_selection"] != "dense":
        return "optimizer.gradient_selection=dense with sparse moments needs the host in each step"
    return None


class Stepping:
    """The steps of one SO. A group is named by its place in `param_groups`.

    Args:
        optimizer: the SO.

    Attributes:
        is_static: whether all tensors of a step keep their addresses; see SO.make_static.
        layout_version: grows when they can have moved.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.is_static, self.layout_version = False, 0
        self._rates = DeviceRates()
        self._arenas: list[Arena] = []
        self._packed: dict[int, dict[Arena, PackedRows]] = {}  # by group
        # All batches of the last step, by group, with the tensors of `_packed`.
        self._stepped: dict[int, list[Batch]] = {}

    def prepare(self) -> None:
        """Draw first supports, and bring the weights' copies up to date.

        In static mode, also write the numbers of the coming step.
        """
        self.draw_first_supports()
        if self.is_static:
            self._rates.write(self._optimizer.param_groups, self._optimizer.state)
        for arena in self._arenas:
            arena.refresh()

    def pack(self, half: torch.dtype | None) -> None:
        """Move tensors into arenas; see SO.pack."""
        if half not in _HALVES:
            raise InputError(f"half={half!r}: must be torch.bfloat16, torch.float16 or None.")
        self.draw_first_supports()
        groups, states = self._optimizer.param_groups, self._optimizer.state
        alike: dict[Any, list[Tensor]] = defaultdict(list)
        for index, group in enumerate(groups):
            for param in group["params"]:
                fits = fits_rows(group, states[param]) and Arena.can_move(param)
                if fits and Arena.of(param) is None:
                    alike[index, param.device, param.dtype].append(param)
        for candidates in alike.values():
            params = rows_that_fit(candidates, [states[param]["size"] for param in candidates])
            if params:
                Arena(params)
        self.find_arenas()
        for arena in self._arenas:
            has_half = arena.half is not None and arena.half.dtype == half
            if half is not None and arena.flat.dtype == torch.float32 and not has_half:
                arena.add_half(half)
        self.layout_version += 1

    def find_arenas(self) -> None:
        """Find the arenas of all tensors. Another optimizer can have made one before."""
        groups = self._optimizer.param_groups
        found = [Arena.of(param) for group in groups for param in group["params"]]
        self._arenas = [*dict.fromkeys(arena for arena in found if arena is not None)]

    def draw_first_supports(self) -> None:
        """Draw a support for every new tensor, even one without a gradient.

        So draws depend on the seed and the tensors, but not on the order of calls to `support`.
        """
        states = self._optimizer.state
        for group in self._optimizer.param_groups:
            new = [param for param in group["params"] if not states.get(param)]
            for param in new:
                states[param] = new_state(param, group)
            pairs = [(param, states[param]) for param in new if is_waiting(states[param])]
            if pairs and group["gradient_selection"] == "random":
                params, new_states = map(list, zip(*pairs, strict=True))
                set_supports(new_states, params, self._drawn(params, new_states))

    def step(self, index: int) -> None:
        """Step the tensors of one group that have a gradient. All operations are on the device."""
        group = self._optimizer.param_groups[index]
        stepped = self._stepped[index] = list(batches(group, self._optimizer.state))
        packed: dict[Arena, list[Batch]] = defaultdict(list)
        apart: list[Batch] = []
        for batch in stepped:
            arena = _arena_of(group, *batch) if self._arenas else None
            (apart if arena is None else packed[arena]).append(batch)
        before, self._packed[index] = self._packed.get(index, {}), {}
        for arena, arena_batches in packed.items():
            if len({states[0]["step"] for _, states in arena_batches}) > 1:
                apart += arena_batches
            else:
                rows = self._step_rows(index, arena, arena_batches, before.get(arena))
                self._packed[index][arena] = rows
        for params, states in apart:
            self._step_batch(index, params, states)

    def finish(self, index: int) -> bool:
        """Count the step of one group's tensors; return whether supports were due, and drawn."""
        group = self._optimizer.param_groups[index]
        packed = [*self._packed.get(index, {}).values()]
        for rows in packed:
            rows.note_writes()
        in_rows = {id(param) for rows in packed for param in rows.params}
        due: list[tuple[Tensor, State]] = []
        for params, states in self._stepped.get(index, ()):
            if self.is_static:  # torch does not see that the replay of a graph changes weights
                apart = [param for param in params if id(param) not in in_rows]
                torch.autograd.graph.increment_version(apart)
            for state in states:
                state["step"] += 1
            if group["T"] and states[0]["step"] % group["T"] == 0 and "support" in states[0]:
                due += zip(params, states, strict=True)
        if due and group["gradient_selection"] == "random":
            self._draw_again(packed, due)
            return True
        for _, state in due:
            state["support"] = None  # chosen by the next step
            state.pop("place", None)  # it refers to the old support
        return bool(due)

    def _draw_again(self, packed: Sequence[PackedRows], due: list[tuple[Tensor, State]]) -> None:
        """Draw new supports, in the order in which separate tensors draw them."""
        params, states = map(list, zip(*due, strict=True))
        drawn = dict(zip(map(id, states), self._drawn(params, states), strict=True))
        for rows in packed:
            if all(id(state) in drawn for state in rows.states):
                own = [drawn.pop(id(state)) for state in rows.states]
                rows.put_supports(own, in_place=self.is_static)
        rest = [(param, state) for param, state in due if id(state) in drawn]
        if rest:
            params, states = map(list, zip(*rest, strict=True))
            supports = [drawn[id(state)] for state in states]
            set_supports(states, params, supports, in_place=self.is_static)

    def _drawn(self, params: list[Tensor], states: list[State]) -> list[Tensor]:
        numels = [param.numel() for param in params]
        sizes = [state["size"] for state in states]
        return draw_supports(numels, sizes, self._optimizer._generator)

    def _step_rows(
        self, index: int, arena: Arena, packed: list[Batch], rows: PackedRows | None
    ) -> PackedRows:
        """Step the tensors of an arena in padded rows; return these. `rows`: of the last step."""
        params = [param for batch, _ in packed for param in batch]
        states = [state for _, batch in packed for state in batch]
        group = self._optimizer.param_groups[index]
        fit = rows is not None and rows.fit(params, states)
        if not fit:
            complete_states(params, states, group)
        # First, because new rows replace the supports by equal ones.
        grads = [
            read_gradient(param, state["support"])
            for param, state in zip(params, states, strict=True)
        ]
        if rows is None or not fit:
            rows = PackedRows(arena, params, states)
            self.layout_version += 1
        rule = Rule.of(group)
        rows.step(grads, rule, self._rates_of(index, rule, params[0], states[0]))
        return rows

    def _step_batch(self, index: int, params: list[Tensor], states: list[State]) -> None:
        """Step one batch of tensors; see `batches`."""
        group = self._optimizer.param_groups[index]
        complete_states(params, states, group)
        supports = [state.get("support") for state in states]
        grads = [
            read_gradient(param, support) for param, support in zip(params, supports, strict=True)
        ]
        rule = Rule.of(group)
        rates = self._rates_of(index, rule, params[0], states[0])
        if "index" in states[0]:
            support_RM = stack_supports(states)
            moments = stack_moments(states, support_RM)
            so(
                params,
                grads,
                support_RM,
                moments,
                rule=rule,
                rates=rates,
                generator=self._optimizer._generator,
                foreach=group["foreach"],
            )
        elif "exp_avg" in states[0]:
            exp_avgs, exp_avg_sqs = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq"))
            so_dense_moments(params, grads, supports, exp_avgs, exp_avg_sqs, rule=rule, rates=rates)
        else:
            so_no_moments(params, grads, supports, rule=rule, rates=rates)

    def _rates_of(self, index: int, rule: Rule, param: Tensor, state: State) -> Rates:
        if self.is_static and self._rates.are_of(index, state["step"] + 1):
            return self._rates.of(index, param)
        return Rates.at(rule, state["step"] + 1)


def _arena_of(group: dict[str, Any], params: list[Tensor], states: list[State]) -> Arena | None:
    """Return the arena that has all tensors of a batch, if they can be stepped in its rows."""
    arena = Arena.of(params[0])
    same = all(Arena.of(param) is arena for param in params)
    return arena if same and fits_rows(group, states[0]) else None
