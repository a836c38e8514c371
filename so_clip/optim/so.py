"""SO, Sparse Optimization (ICCV 2025): Adam on a small, random, changing subset of every tensor."""

from collections.abc import Callable, Iterator
from inspect import signature
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from so_clip.errors import InputError
from so_clip.optim.arena import Arena
from so_clip.optim.checks import check_group, check_saved, check_seed
from so_clip.optim.functional import so, so_dense_moments, so_no_moments
from so_clip.optim.gradients import clear_sampled_gradient, read_gradient
from so_clip.optim.packed_rows import PackedRows
from so_clip.optim.rates import DeviceRates, Rates, Rule
from so_clip.optim.state import (
    State,
    batches,
    can_pack,
    complete_states,
    fitted,
    new_state,
    set_supports,
    stack_moments,
    stack_supports,
)
from so_clip.optim.support import draw_supports


class SO(Optimizer):
    r"""Sparse Optimization: Adam on M entries of each tensor.

    With κ the density ratio, each tensor has M = max(1, int(numel·κ)). Its support is a set of M
    entries, drawn uniformly without replacement and kept for T steps. g~ is the gradient on the
    support. A step updates the moments on the union of the support and the entries that have
    moments, at most 2M entries:

        μ = β1 μ + (1 - β1) g~,    ν = β2 ν + (1 - β2) g~²,

    and then keeps the M entries of largest |μ| (ties: the lower index). These entries move by
    -lr · μ^ / (sqrt(ν^) + eps), where ^ corrects the bias as Adam does. At κ = 1 this is Adam.

    Moments are float32, or float64 for float64 weights; float16 and bfloat16 weights are rounded
    once a step. A sampled entry takes 32 bytes of state (36 with "age"). The gradient is
    `param.grad`, whole or a SampledGradient (see `support`).

    Args:
        params: tensors, or parameter groups. A group may set any option but `seed`.
        lr: learning rate, at least 0.
        betas: (β1, β2), each in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: coupled L2 penalty, as in Adam (not AdamW): a part of the gradient, so it acts
            only on the entries of the support.
        density_ratio: κ, the fraction of entries kept, in (0, 1]. Read at a tensor's first step. 1
            makes a tensor dense.
        T: steps between two draws of the support; 0: the first draw stays. Steps count per tensor:
            a tensor without a gradient is skipped, as in torch's optimizers.
        order: "prune_first" (the paper): prune, then move the M kept entries. "update_first" (the
            released code): move the whole union, then prune.
        bias_correction: "step": by the tensor's number of steps, as in Adam. "age": by the number
            of steps since the entry entered the moments. The two differ for entries that enter
            late: "step" moves these by up to 3.2 lr at first.
        gradient_selection: "random"; "importance": the support is the M entries of largest |g|
            (without weight decay) at the first of its T steps; "dense": no support, g~ = g.
        moment_selection: "importance"; "random": keep M entries of the union at random; "dense":
            keep all, so all entries move; "none": μ = g~ and ν = g~² on the support, without
            memory or correction, so each entry there moves by lr · g / (|g| + eps).
        foreach: all tensors together (None, True) or one after the other (False); the results are
            equal. A step on CUDA waits for the device only with False or with
            gradient_selection="dense".
        maximize: ascend.
        seed: of SO's own generator for supports. SO never reads or changes the global random state.

    Raises:
        InputError: a setting is out of range, or a tensor is not of floats.

    Example:
        >>> optimizer = SO(model.parameters(), lr=2e-4, density_ratio=5e-4, T=10)
        >>> loss_fn(model(images), labels).backward()
        >>> optimizer.step()

    Source: Sparse Optimization, arXiv 2504.12436; released code: github nairouz/SO.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        density_ratio: float = 5e-4,
        T: int = 10,
        order: str = "prune_first",
        bias_correction: str = "step",
        gradient_selection: str = "random",
        moment_selection: str = "importance",
        foreach: bool | None = None,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        check_seed(seed)
        self._generator = torch.Generator().manual_seed(int(seed))
        # Functions to call after supports have been dropped outside of a step, or drawn in place.
        self._support_listeners: list[Callable[[], None]] = []
        self._begin()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "density_ratio": density_ratio,
            "T": T,
            "order": order,
            "bias_correction": bias_correction,
            "gradient_selection": gradient_selection,
            "moment_selection": moment_selection,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of tensors; see torch.optim.Optimizer. Its settings are checked."""
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except InputError:
            self.param_groups.pop()
            raise
        self._changed()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step.

        Args:
            closure: reevaluates the model and returns the loss, which `step` then returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.prepare_step()
        for index in range(len(self.param_groups)):
            self._step_group(index)
            self._finish_group(index)
        return loss

    def prepare_step(self) -> None:
        """Do what a step needs before its device operations. It never waits for a device.

        `step` is this, then `step_on_device`, then `finish_step`.
        """
        self._draw_first_supports()
        if self._static:
            self._rates.write(self.param_groups, self.state)
            for arena in self._arenas:
                arena.refresh()

    @torch.no_grad()
    def step_on_device(self) -> None:
        """Read the gradients and move the tensors. After `make_static`, a graph can capture it."""
        for index in range(len(self.param_groups)):
            self._step_group(index)

    @torch.no_grad()
    def finish_step(self) -> None:
        """Count the step, and draw the supports that are due, of the tensors stepped last."""
        for index in range(len(self.param_groups)):
            self._finish_group(index)

    def make_static(self) -> None:
        """Let the device operations of a step always use the same addresses.

        From now on a new support is written over the old one, and numbers that change from step to
        step are on the device. Results stay the same, bit for bit.

        Raises:
            InputError: see `not_capturable`.
        """
        reason = self.not_capturable()
        if reason is not None:
            raise InputError(f"{reason}, so a step cannot be captured. Train with graph=false.")
        self._static = True

    def not_capturable(self) -> str | None:
        """Return why the device operations of a step differ from step to step; None: they do not.

        It also counts the tensors' steps so far, so ask after a step.
        """
        for group in self.param_groups:
            for option, captured in _CAPTURED.items():
                if group[option] not in captured:
                    return f"optimizer.{option}={group[option]} reads the host in a step"
            if group["gradient_selection"] == "dense" and group["moment_selection"] != "dense":
                return "optimizer.gradient_selection=dense with sparse moments reads the host"
            steps = {self.state[param]["step"] for param in group["params"] if param in self.state}
            if len(steps) > 1:
                return f"tensors of one group have taken {sorted(steps)} steps"
        return None

    def pack(self, half: torch.dtype | None = None) -> None:
        """Move the tensors that are sampled into one buffer for each dtype and device.

        Their steps are then one call, whatever their sizes. Meant for GPUs, where each call has a
        fixed cost. Tensors that share memory with others stay. Results stay the same, bit for bit.

        Args:
            half: keep a copy in this precision, for forward passes under autocast.
        """
        self._draw_first_supports()
        alike: dict[Any, list[Tensor]] = {}
        for index, group in enumerate(self.param_groups):
            for param in group["params"]:
                if can_pack(group, param, self.state[param]) and Arena.of(param) is None:
                    alike.setdefault((index, param.device, param.dtype), []).append(param)
        for params in alike.values():
            arena = Arena(params)
            if half is not None and arena.flat.dtype == torch.float32:
                arena.add_half(half)
            self._arenas.append(arena)
        self._changed()

    def forget(self, param: Tensor) -> None:
        """Drop the state of a tensor, its support included. Its next step is a first step."""
        if self.state.pop(param, None) is not None:
            self._clear_sampled_gradients()
            self._changed()
            self._tell_listeners()

    @torch.no_grad()
    def support(self, param: Tensor) -> Tensor | None:
        """Return the entries of the gradient that the coming step reads.

        They are known before the backward pass, so it can compute these entries alone. Hand their
        values over, in this order, with so_clip.optim.gradients.add_sampled_gradient. A step sets
        a sampled gradient to None.

        Returns:
            Flat indices [M] int64 on the parameter's device, ascending, row-major in the logical
            order for any strides. The same tensor until a new support is drawn at the end of a
            step; do not write to it. None if the step reads the whole gradient: for a dense
            tensor, or a support still to be chosen by importance.

        Raises:
            InputError: the optimizer does not hold this tensor.
        """
        if not self.state.get(param):
            self._draw_first_supports()
            if param not in self.state:
                raise InputError(
                    f"a tensor of shape {tuple(param.shape)} is not in this optimizer. Ask for one "
                    "of its param_groups."
                )
        support: Tensor | None = fitted(self.state[param], param).get("support")
        return support

    def state_dict(self) -> dict[str, Any]:
        """Return the state, including SO's generator; see torch.optim.Optimizer."""
        return {**super().state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of the state. Training then continues bit for bit.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            InputError: SO did not save it, or it belongs to other tensors. Nothing is loaded then.
        """
        final: dict[str, Any] = {}

        def keep(_: Optimizer, given: dict[str, Any]) -> None:
            check_saved(given, self.param_groups, _OPTIONS)
            final.update(given)

        def restore(_: Optimizer) -> None:
            # The base class has cast all tensors to the weights' dtype, which destroys indices.
            saved = chain.from_iterable(group["params"] for group in final["param_groups"])
            for key, param in zip(saved, self._params(), strict=True):
                if key in final["state"]:
                    self.state[param] = fitted(_copy_to(param.device, final["state"][key]), param)
            self._generator.set_state(final["generator"].cpu())
            self._changed()

        # `keep` runs after the user's pre-hooks, `restore` before the user's post-hooks.
        before = self.register_load_state_dict_pre_hook(keep)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        generator_state = state.pop("generator", None)  # absent when load_state_dict calls this
        vars(self).setdefault("_support_listeners", [])
        if "layout_version" not in vars(self):
            self._begin()
        super().__setstate__(state)
        if generator_state is not None:
            self._generator = torch.Generator().set_state(generator_state)

    def _begin(self) -> None:
        """Set up what no saved state has."""
        self.layout_version = 0  # grows when the tensors that a step reads can have moved
        self._static = False
        self._rates = DeviceRates()
        self._arenas: list[Arena] = []
        self._packed: dict[int, PackedRows] = {}  # by the group's place
        # The batches of the last step, by the group's place.
        self._stepped: dict[int, list[tuple[list[Tensor], list[State]]]] = {}

    def _changed(self) -> None:
        self.layout_version += 1

    def _tell_listeners(self) -> None:
        for listener in self._support_listeners:
            listener()

    def _clear_sampled_gradients(self) -> None:
        for param in self._params():
            clear_sampled_gradient(param)

    def _params(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def _draw_first_supports(self) -> None:
        """Draw a support for every new tensor, even one without a gradient.

        So draws depend on the seed and the tensors, but not on the order of calls to `support`.
        """
        for group in self.param_groups:
            new = [param for param in group["params"] if not self.state.get(param)]
            for param in new:
                self.state[param] = new_state(param, group)
            self._draw_supports(group, [(param, self.state[param]) for param in new])

    def _draw_supports(self, group: dict[str, Any], pairs: list[tuple[Tensor, State]]) -> None:
        """Draw new supports for tensors that have one, or leave the choice to the next `step`."""
        pairs = [(param, state) for param, state in pairs if "support" in state]
        if not pairs:
            return
        if group["gradient_selection"] != "random":
            for _, state in pairs:
                state["support"] = None
                state.pop("place", None)  # it refers to the old support
            return
        params, states = map(list, zip(*pairs, strict=True))
        numels = [param.numel() for param in params]
        drawn = draw_supports(numels, [state["size"] for state in states], self._generator)
        for rows in self._packed.values():
            if rows.fit(params, states):
                rows.put_supports(drawn, in_place=self._static)
                return
        set_supports(states, params, drawn, in_place=self._static)

    def _step_group(self, index: int) -> None:
        """Step the tensors of one group that have a gradient."""
        group = self.param_groups[index]
        stepped = list(batches(group, self.state))
        arena = Arena.of(stepped[0][0][0]) if stepped and self._arenas else None
        if arena is not None:
            params = [param for batch, _ in stepped for param in batch]
            states = [state for _, batch in stepped for state in batch]
            same_step = len({state["step"] for state in states}) == 1
            if same_step and all(Arena.of(param) is arena for param in params):
                self._step_rows(index, arena, params, states)
                self._stepped[index] = [(params, states)]
                return
        for params, states in stepped:
            self._step_batch(index, params, states)
        self._stepped[index] = stepped

    def _finish_group(self, index: int) -> None:
        """Count the step of one group's tensors, and draw their supports if these are due."""
        group = self.param_groups[index]
        due: list[tuple[Tensor, State]] = []
        for params, states in self._stepped.get(index, ()):
            for state in states:
                state["step"] += 1
            if group["T"] and states[0]["step"] % group["T"] == 0:
                due += zip(params, states, strict=True)
        rows = self._packed.get(index)
        if rows is not None:
            rows.note_writes()
        self._draw_supports(group, due)
        # Their supports may have been drawn again, so they must not accumulate.
        self._clear_sampled_gradients()
        if due and self._static:
            self._tell_listeners()

    def _step_rows(
        self, index: int, arena: Arena, params: list[Tensor], states: list[State]
    ) -> None:
        """Step the tensors of an arena in padded rows; see PackedRows."""
        group, rows = self.param_groups[index], self._packed.get(index)
        fit = rows is not None and rows.fit(params, states)
        if not fit:
            complete_states(params, states, group)
        # First, because new rows replace the supports by equal ones.
        grads = [
            read_gradient(param, state["support"])
            for param, state in zip(params, states, strict=True)
        ]
        if rows is None or not fit:
            rows = self._packed[index] = PackedRows(arena, params, states)
            self._changed()
        rule = Rule.of(group)
        rows.step(grads, rule, self._rates_of(index, rule, params[0], states[0]))

    def _step_batch(self, index: int, params: list[Tensor], states: list[State]) -> None:
        """Step one batch of tensors; see `batches`."""
        group = self.param_groups[index]
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
                generator=self._generator,
                foreach=group["foreach"],
            )
        elif "exp_avg" in states[0]:
            exp_avgs, exp_avg_sqs = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq"))
            so_dense_moments(params, grads, supports, exp_avgs, exp_avg_sqs, rule=rule, rates=rates)
        else:
            so_no_moments(params, grads, supports, rule=rule, rates=rates)

    def _rates_of(self, index: int, rule: Rule, param: Tensor, state: State) -> Rates:
        if self._static:
            return self._rates.of(index, param)
        return Rates.at(rule, state["step"] + 1)


# The options with which all steps have the same device operations.
_CAPTURED: dict[str, tuple[Any, ...]] = {
    "gradient_selection": ("random", "dense"),
    "moment_selection": ("importance", "dense", "none"),
    "foreach": (None, True),
}
# A group's own options. `SO.defaults` has one more after torch has loaded a state.
_OPTIONS = [name for name in signature(SO).parameters if name not in ("params", "seed")]


def _copy_to(device: torch.device, state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.to(device, copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
