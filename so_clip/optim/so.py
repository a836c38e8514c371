"""SO, Sparse Optimization (ICCV 2025): Adam on a small, random, changing subset of every tensor."""

from collections.abc import Callable, Iterator
from inspect import signature
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from so_clip.errors import InputError
from so_clip.optim.checks import LATER_OPTIONS, check_group, check_saved, check_seed
from so_clip.optim.gradients import clear_sampled_gradient
from so_clip.optim.state import fitted
from so_clip.optim.stepping import Stepping, why_host_reads


class SO(Optimizer):
    r"""Sparse Optimization: Adam on M entries of each tensor.

    With κ the density ratio, each tensor has M = max(least_entries, int(numel·κ)). Its support is a
    set of M entries, drawn uniformly without replacement and kept for T steps. g~ is the gradient
    on the support. A step updates the moments on the union of the support and the entries that
    have moments, at most 2M entries:

        μ = β1 μ + (1 - β1) g~,    ν = β2 ν + (1 - β2) g~²,

    and then keeps the M entries of largest |μ| (ties: the lower index). These entries move by
    -lr · μ^ / (sqrt(ν^) + eps), where ^ corrects the bias as Adam does. At κ = 1 this is Adam.

    Moments are float32, or float64 for float64 weights; float16 and bfloat16 weights are rounded
    once per step. A sampled entry takes 32 bytes of state (36 with "age"). The gradient is
    `param.grad`, whole or a SampledGradient (see `support`).

    Args:
        params: tensors, or parameter groups. A group may set any option but `seed`.
        lr: learning rate, at least 0.
        betas: (β1, β2), each in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: coupled L2 penalty, as in Adam (not AdamW): a part of the gradient, so it acts
            only on the entries of the support.
        density_ratio: κ, the fraction of entries kept, in (0, 1], read at a tensor's first step. 1
            makes a tensor dense.
        T: steps between two draws of the support; 0: the first draw stays. Steps count per tensor:
            a tensor without a gradient is skipped, as in torch's optimizers.
        order: "prune_first" (the paper): prune, then move the M kept entries. "update_first" (the
            released code): move the whole union, then prune.
        bias_correction: "step": by the tensor's number of steps, as in Adam. "age": by the number
            of steps since the entry entered the moments. The two differ for entries that enter
            late: "step" moves these by up to 3.2 lr at first. "twice" (the released code for dense
            tensors): as "step", and lr is divided by 1 - β1^t once more, so a first step is 10 lr.
        gradient_selection: "random"; "importance": the support is the M entries of largest |g|
            (without weight decay) at the first of its T steps; "dense": no support, g~ = g.
        moment_selection: "importance"; "random": keep M entries of the union at random; "dense":
            keep all, so all entries move; "none": μ = g~ and ν = g~² on the support, without
            memory or correction, so each entry there moves by lr · g / (|g| + eps).
        least_entries: lower bound of M, read at a tensor's first step. With 0 (the released code) a
            tensor with int(numel·κ) = 0 is never trained, whatever the selections.
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
        least_entries: int = 1,
        foreach: bool | None = None,
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        check_seed(seed)
        self._generator = torch.Generator().manual_seed(int(seed))
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
            "least_entries": least_entries,
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
        self._stepping.layout_version += 1

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
        drawn = False
        for index in range(len(self.param_groups)):
            self._stepping.step(index)
            drawn |= self._stepping.finish(index)
        self._after_step(drawn)
        return loss

    @property
    def layout_version(self) -> int:
        """A number that grows when the tensors that a step reads or writes can have moved."""
        return self._stepping.layout_version

    def prepare_step(self) -> None:
        """Do what a step needs before its device operations. It never waits for a device.

        `step` is this, then `step_on_device`, then `finish_step`.
        """
        self._stepping.prepare()

    @torch.no_grad()
    def step_on_device(self) -> None:
        """Read the gradients and move the tensors. After `make_static`, a graph can capture it."""
        for index in range(len(self.param_groups)):
            self._stepping.step(index)

    @torch.no_grad()
    def finish_step(self) -> None:
        """Count the step, and draw new supports for those stepped tensors where they are due."""
        groups = range(len(self.param_groups))
        self._after_step(max((self._stepping.finish(index) for index in groups), default=False))

    def _after_step(self, drawn: bool) -> None:
        # Their supports may have been drawn again, so they must not accumulate.
        self._clear_sampled_gradients()
        if drawn and self._stepping.is_static:
            self._tell_listeners()

    def make_static(self) -> None:
        """Make the device operations of all steps use the same addresses.

        From now on a new support is written over the old one, and numbers that change from step to
        step are on the device. Results stay the same, bit for bit.

        Raises:
            InputError: see `not_capturable`.
        """
        reason = self.not_capturable()
        if reason is not None:
            raise InputError(
                f"{reason}, so a step cannot be captured. Take steps without make_static()."
            )
        self._stepping.is_static = True
        self._stepping.find_arenas()

    def not_capturable(self) -> str | None:
        """Return why the device operations of a step differ from step to step; None: they do not.

        It also looks at the tensors' numbers of steps so far.
        """
        for group in self.param_groups:
            steps = {self.state[param]["step"] for param in group["params"] if param in self.state}
            reason = why_host_reads(group)
            if reason is not None:
                return reason
            steps.discard(0)  # of tensors without a gradient
            if len(steps) > 1:
                return f"tensors of one group have taken {sorted(steps)} steps"
        return None

    def pack(self, half: torch.dtype | None = None) -> None:
        """Move the tensors that are sampled into one buffer for each dtype and device.

        Their steps are then one call, whatever their sizes. This is for GPUs: each call has a fixed
        cost there. Tensors that share memory with others stay where they are, and so do tensors
        with far more entries than the rest. Results stay the same, bit for bit.

        A pickle of one packed tensor holds the whole buffer, as for any view: copy it first, such
        as by copy.deepcopy(model).

        Args:
            half: keep a copy in this precision, for forward passes under autocast of sampled
                layers. The copy follows all writes except those through `param.data`, because torch
                does not count these.

        Raises:
            InputError: `half` is not half precision.
        """
        self._stepping.pack(half)

    def forget(self, param: Tensor) -> None:
        """Drop the state of a tensor, its support included. Its next step is a first step."""
        if self.state.pop(param, None) is not None:
            self._clear_sampled_gradients()
            self._stepping.layout_version += 1
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
            self._stepping.draw_first_supports()
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
            # The base class has cast all tensors to the weights' dtype. This destroys indices.
            saved = chain.from_iterable(group["params"] for group in final["param_groups"])
            for key, param in zip(saved, self._params(), strict=True):
                if key in final["state"]:
                    self.state[param] = fitted(_copy_to(param.device, final["state"][key]), param)
            self._generator.set_state(final["generator"].cpu())
            self._stepping.layout_version += 1

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
        if "_stepping" not in vars(self):
            self._begin()
        super().__setstate__(state)
        for group in self.param_groups:
            for option, value in LATER_OPTIONS.items():
                group.setdefault(option, value)
        if generator_state is not None:
            self._generator = torch.Generator().set_state(generator_state)

    def _begin(self) -> None:
        """Set up the attributes that no saved state has."""
        # Functions to call after supports have been dropped outside of a step, or drawn in place.
        self._support_listeners: list[Callable[[], None]] = []
        self._stepping = Stepping(self)

    def _tell_listeners(self) -> None:
        for listener in self._support_listeners:
            listener()

    def _clear_sampled_gradients(self) -> None:
        for param in self._params():
            clear_sampled_gradient(param)

    def _params(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)


# A group's own options. `SO.defaults` has one more option after torch has loaded a state.
_OPTIONS = [name for name in signature(SO).parameters if name not in ("params", "seed")]


def _copy_to(device: torch.device, state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.to(device, copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
