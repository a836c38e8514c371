"""SO's state of each tensor, and the batches of tensors that are stepped together.

step        steps taken so far, int
size        M, int. 0: the tensor is not trained
support     flat indices whose gradient the coming step reads [M] int64, ascending. None: still to
            be chosen by importance. Absent: the step reads the whole gradient
index       flat indices of the entries with moments [M] int64. Absent: all entries have moments
place       position of each of these entries in the support [M] int64; M: not in it. Absent: not
            known
exp_avg     μ [M]; if all entries have moments, shaped like the tensor
exp_avg_sq  ν, of the same shape
age         steps since each entry entered the moments [M] int32; only for bias_correction="age"
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from so_clip.errors import InputError
from so_clip.optim.arena import Arena
from so_clip.optim.functional import Moments
from so_clip.optim.gradients import most_important
from so_clip.optim.rates import moment_dtype
from so_clip.optim.sparse_entries import locate
from so_clip.optim.support import entry_count, to_device, write_over

State = dict[str, Any]

# A batch of tensors has at most this many entries. The limit bounds temporaries (about 100 bytes an
# entry) at any density. ViT-B/16 at density 5e-4 has 61,296 entries.
MAX_BATCH_ENTRIES = 2**20
# The same for padded rows. ViT-H/14 at density 5e-4 has about this many entries, pads included.
MAX_PADDED_ENTRIES = 2**21


def new_state(param: Tensor, group: dict[str, Any]) -> State:
    """Return a tensor's state before its first step, with no support drawn yet."""
    size = entry_count(param.numel(), group["density_ratio"], group["least_entries"])
    state: State = {"step": 0, "size": size}
    if is_still(state, param):
        state["support"] = torch.empty(0, dtype=torch.int64, device=param.device)
    elif size < param.numel() and group["gradient_selection"] != "dense":
        state["support"] = None
    return state


def is_waiting(state: State) -> bool:
    """Return whether a tensor's support is still to be drawn or chosen."""
    return "support" in state and state["support"] is None


def is_still(state: State, param: Tensor) -> bool:
    """Return whether a tensor is not trained, because M is 0."""
    return state["size"] == 0 < param.numel()


def batches(
    group: dict[str, Any], states: dict[Tensor, State]
) -> Iterator[tuple[list[Tensor], list[State]]]:
    """Yield a group's tensors that a step changes, and their states, in batches for one call.

    A step changes the tensors that have a gradient and are not still.

    Tensors of a batch share the device, the dtype, the number of steps and, if the moments are
    sparse, M. Tensors of an arena are in batches of their own.
    """
    alike = defaultdict(list)
    for param in group["params"]:
        if param.grad is None:
            continue
        state = states.get(param)
        if not state:
            raise InputError("step_on_device on a new tensor: call prepare_step before it.")
        if is_still(state, param):
            continue
        dense = state["size"] == param.numel() or group["moment_selection"] == "dense"
        size = 0 if dense else state["size"]
        is_packed = Arena.of(param) is not None
        kind = (param.device, param.dtype, is_packed, state["step"], "support" in state, size)
        alike[kind].append((param, state))
    for (*_, size), pairs in alike.items():
        most = MAX_BATCH_ENTRIES // (size or max(param.numel() for param, _ in pairs) or 1) or 1
        for start in range(0, len(pairs), most):
            params, batch_states = zip(*pairs[start : start + most], strict=True)
            yield list(params), list(batch_states)


def fits_rows(group: dict[str, Any], state: State) -> bool:
    """Return whether a tensor can be stepped in padded rows with tensors of other sizes."""
    return (
        group["gradient_selection"] == "random"
        and group["moment_selection"] == "importance"
        and group["foreach"] is not False
        and state.get("support") is not None
    )


def rows_that_fit(params: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Return the tensors that share padded rows: all but the largest, if rows take too much memory.

    Args:
        params: that can be packed.
        sizes: the M of each.
    """
    most = max(
        (m for m in sizes if m * sum(size <= m for size in sizes) <= MAX_PADDED_ENTRIES), default=0
    )
    return [param for param, size in zip(params, sizes, strict=True) if size <= most]


def fitted(state: State, param: Tensor) -> State:
    """Give the state the device, and the moments the dtype, that fit this tensor; return the state.

    They do not fit if the state was saved for weights of another precision, or if `module.to(...)`
    has changed the weights since.
    """
    device, dtype = param.device, moment_dtype(param)
    for key, value in state.items():
        if isinstance(value, Tensor):
            right = dtype if key in ("exp_avg", "exp_avg_sq") else value.dtype
            if value.device != device or value.dtype != right:
                state[key] = value.to(device, right)
    return state


def complete_states(params: list[Tensor], states: list[State], group: dict[str, Any]) -> None:
    """Complete the states of one batch for the coming step."""
    for param, state in zip(params, states, strict=True):
        fitted(state, param)
        if "support" in state and state["support"] is None:
            state["support"] = most_important(param, state["size"])
        if "exp_avg" not in state and group["moment_selection"] != "none":
            state.update(_new_moments(param, state, group))


def set_supports(
    states: list[State], params: list[Tensor], drawn: list[Tensor], *, in_place: bool = False
) -> None:
    """Store the drawn supports. Supports of one size are rows of one tensor.

    Args:
        states, params: of tensors of any sizes.
        drawn: ascending indices on the CPU.
        in_place: keep the tensors that the states have, supports and places, and write to them.
    """
    alike = defaultdict(list)
    for state, param, support in zip(states, params, drawn, strict=True):
        alike[param.device, len(support)].append((state, support))
    for (device, _), pairs in alike.items():
        drawn_RM = torch.stack([support for _, support in pairs])
        holders = [state for state, _ in pairs]
        if in_place and all(state["support"] is not None for state in holders):
            support_RM = _share(holders, "support")
            write_over(support_RM, drawn_RM)
            if "place" in holders[0]:
                place_RM = locate(_share(holders, "index"), support_RM)
                _share(holders, "place").copy_(place_RM)
            continue
        for state, support in zip(holders, to_device(drawn_RM, device).unbind(), strict=True):
            state["support"] = support
            state.pop("place", None)  # it refers to the old support


def stack_supports(states: list[State]) -> Tensor | None:
    """Return the states' supports as rows of one tensor, or None if they have no supports."""
    if "support" not in states[0]:
        return None
    rows = [state["support"] for state in states]
    whole = _whole(rows)
    return torch.stack(rows) if whole is None else whole


def stack_moments(states: list[State], support_RM: Tensor | None) -> Moments:
    """Return the states' moments as rows of shared tensors; changing these changes the states."""
    index_RM, exp_avg_RM, exp_avg_sq_RM = (
        _share(states, key) for key in ("index", "exp_avg", "exp_avg_sq")
    )
    place_RM = None
    if support_RM is not None:
        if any("place" not in state for state in states):
            for state, place_M in zip(states, locate(index_RM, support_RM).unbind(), strict=True):
                state["place"] = place_M
        place_RM = _share(states, "place")
    age_RM = _share(states, "age") if "age" in states[0] else None
    return Moments(index_RM, place_RM, exp_avg_RM, exp_avg_sq_RM, age_RM)


def _share(states: list[State], key: str) -> Tensor:
    """Return the states' values under `key` as rows of one tensor, and make the states views of it.

    So tensors that are stepped together repeatedly are stacked only once.
    """
    rows = [state[key] for state in states]
    whole = _whole(rows)
    if whole is None:
        whole = torch.stack(rows)
        for state, row in zip(states, whole.unbind(), strict=True):
            state[key] = row
    return whole


def _whole(rows: list[Tensor]) -> Tensor | None:
    """Return the tensor that has exactly these rows in this order, or None."""
    whole, shape = rows[0]._base, (len(rows), *rows[0].shape)
    if (
        whole is None
        or whole.shape != shape
        or any(row._base is not whole for row in rows)
        or [row.storage_offset() for row in rows] != [*range(0, whole.numel(), shape[1])]
    ):
        return None
    return whole


def _new_moments(param: Tensor, state: State, group: dict[str, Any]) -> dict[str, Tensor]:
    """Return moments of 0, which have the same effect as no moments."""
    dtype, device, size = moment_dtype(param), param.device, state["size"]
    if size == param.numel() or group["moment_selection"] == "dense":
        shape, moments = param.shape, {}
    else:
        support = state.get("support")
        index = torch.arange(size, device=device) if support is None else support.clone()
        shape, moments = torch.Size([size]), {"index": index}
        if group["bias_correction"] == "age":
            moments["age"] = torch.zeros(size, dtype=torch.int32, device=device)
    moments["exp_avg"] = torch.zeros(shape, dtype=dtype, device=device)
    moments["exp_avg_sq"] = torch.zeros(shape, dtype=dtype, device=device)
    return moments
