"""SO, Sparse Optimization (ICCV 2025): Adam on a small, random, changing part of every tensor."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from so_clip.errors import InputError
from so_clip.optim.checks import check_group, check_saved, check_seed
from so_clip.optim.functional import Rule, so, so_dense_moments, so_no_moments
from so_clip.optim.gradients import clear_sampled_gradient, read_gradient
from so_clip.optim.state import (
    State,
    batches,
    make_ready,
    new_state,
    set_supports,
    stack_moments,
    stack_supports,
)
from so_clip.optim.support import draw_supports


class SO(Optimizer):
    r"""Sparse Optimization: Adam that sees and remembers M entries of each tensor.

    With κ the density ratio, each tensor has M = max(1, int(numel·κ)). Its support, M entries
    drawn uniformly without replacement, is kept for T steps; g~ is the gradient on it. On the union
    of the support and the entries that moments are kept for, at most 2M,

        μ = β1 μ + (1 - β1) g~,    ν = β2 ν + (1 - β2) g~²,

    after which only the M entries of largest |μ| are kept (ties: the lower index). These move by
    -lr · μ^ / (sqrt(ν^) + eps), where ^ corrects the bias as Adam does. At κ = 1 this is Adam.

    Args:
        params: tensors, or parameter groups, each of which may set any option but `seed`.
        lr: learning rate, at least 0.
        betas: (β1, β2), each in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: coupled L2 penalty, as Adam's (not AdamW's): it is part of the gradient, hence
            felt only by the entries on the support.
        density_ratio: κ, the fraction of entries kept, in (0, 1]. Read at a tensor's first step. 1
            makes a tensor dense.
        T: steps between two draws of the support; 0: the first one stays. Steps are counted
            per tensor: one without a gradient is passed over, as in torch's optimizers.
        order: "prune_first" (the paper): prune, then move the M entries that are kept.
            "update_first" (the released code): move all of the union, then prune.
        bias_correction: "step": by the tensor's number of steps, as in Adam. "age": by the number
            of steps since the entry entered the moments. It differs for entries that enter late,
            which "step" moves by up to 3.2 lr at first.
        gradient_selection: "random"; "importance": the support is the M entries of largest |g|
            (without weight decay) at the first of its T steps; "dense": no support, g~ = g.
        moment_selection: "importance"; "random": keep M entries of the union at random; "dense":
            keep all, so that all entries move; "none": μ = g~ and ν = g~² on the support, without
            memory or correction: each entry there moves by lr · g / (|g| + eps).
        foreach: all tensors at once (None, True), or one after the other (False): equal results.
            With False, and with a dense gradient_selection, a step on CUDA waits for the device;
            otherwise none does.
        maximize: ascend.
        seed: of the supports' own generator; the global random state is neither read nor changed.

    Raises:
        InputError: a setting is out of range, or a tensor is not one of floats.

    Moments are float32, or float64 for float64 weights; float16 and bfloat16 weights are rounded
    once a step. A sampled entry takes 32 bytes of state (36 with "age"). A gradient is read from
    `param.grad`, from `param.sampled_grad` (see `support`), or, if there are both, from their sum.

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
        # Called when supports were drawn anew outside of a step.
        self._told_of_supports: list[Callable[[], None]] = []
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
        self._draw_first_supports()
        for group in self.param_groups:
            due: list[tuple[Tensor, State]] = []
            for params, states in batches(group, self.state):
                self._step_batch(group, params, states)
                if group["T"] and states[0]["step"] % group["T"] == 0:
                    due += zip(params, states, strict=True)
            self._draw_supports(group, due)
        # Used up: `model.zero_grad()`, which sees `.grad` alone, must not let them pile up.
        self._clear_sampled_gradients()
        return loss

    def forget(self, param: Tensor) -> None:
        """Drop all that is remembered of a tensor, its support too: it begins anew."""
        if self.state.pop(param, None) is not None:
            self._clear_sampled_gradients()
            for told in self._told_of_supports:
                told()

    @torch.no_grad()
    def support(self, param: Tensor) -> Tensor | None:
        """Return which entries of the gradient the coming step will read.

        It is known before the backward pass, which need not compute anything else: put the
        gradient's values there, in this order, into `param.sampled_grad` [M], any float type, in
        place of `param.grad`. As with that, add to what is there; a step uses it up.

        Returns:
            Flat indices [M] int64 on the parameter's device, ascending, row-major in the logical
            order whatever the strides. The same tensor until the support is drawn anew at the
            end of a step; not to be written to. None where the step reads the whole gradient:
            a dense tensor, or a support still to be chosen by importance.

        Raises:
            InputError: the optimizer does not hold this tensor.
        """
        if not self.state.get(param):
            self._draw_first_supports()
            if param not in self.state:
                raise InputError(f"this optimizer holds no such tensor of {tuple(param.shape)}.")
        support: Tensor | None = self.state[param].get("support")
        return support

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients; see torch.optim.Optimizer. Sampled gradients become None."""
        super().zero_grad(set_to_none)
        self._clear_sampled_gradients()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, the supports' generator included; see torch.optim.Optimizer."""
        return {**super().state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of the state, after which the trajectory goes on bit for bit.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            InputError: it is not an SO's, or not one of these tensors; nothing is loaded then.
        """
        final: dict[str, Any] = {}

        def keep(_: Optimizer, given: dict[str, Any]) -> None:
            check_saved(given, self.param_groups, self.defaults)
            final.update(given)

        def restore(_: Optimizer) -> None:
            # The base class has cast all tensors to the weights' type: ruin for indices.
            saved = chain.from_iterable(group["params"] for group in final["param_groups"])
            for key, param in zip(saved, self._params(), strict=True):
                if key in final["state"]:
                    self.state[param] = _copy_to(param.device, final["state"][key])
            self._generator.set_state(final["generator"].cpu())

        # After the user's hooks before loading, and before those after.
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
        generator_state = state.pop("generator", None)
        vars(self).setdefault("_told_of_supports", [])  # load_state_dict comes here, too
        super().__setstate__(state)
        # Absent when load_state_dict calls this.
        if generator_state is not None:
            self._generator = torch.Generator().set_state(generator_state)

    def _clear_sampled_gradients(self) -> None:
        for param in self._params():
            clear_sampled_gradient(param)

    def _params(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def _draw_first_supports(self) -> None:
        """Give every new tensor its support, also one that has no gradient as yet.

        So draws depend on the seed and on the tensors, but not on which is asked for first.
        """
        for group in self.param_groups:
            new = [param for param in group["params"] if not self.state.get(param)]
            for param in new:
                self.state[param] = new_state(param, group)
            self._draw_supports(group, [(param, self.state[param]) for param in new])

    def _draw_supports(self, group: dict[str, Any], pairs: list[tuple[Tensor, State]]) -> None:
        """Draw anew the supports of those that have one, or leave them to be chosen in `step`."""
        pairs = [(param, state) for param, state in pairs if "support" in state]
        for _, state in pairs:
            state["support"] = None
            # Where the remembered entries are in the support is now out of date.
            state.pop("place", None)
        if group["gradient_selection"] == "random" and pairs:
            params, states = map(list, zip(*pairs, strict=True))
            numels = [param.numel() for param in params]
            sizes = [state["size"] for state in states]
            set_supports(states, params, draw_supports(numels, sizes, self._generator))

    def _step_batch(self, group: dict[str, Any], params: list[Tensor], states: list[State]) -> None:
        """Step tensors of one kind, see `batches`."""
        make_ready(params, states, group)
        supports = [state.get("support") for state in states]
        grads = [read_gradient(*each) for each in zip(params, supports, strict=True)]
        step = states[0]["step"] + 1
        rule = Rule(
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            order=group["order"],
            moment_selection=group["moment_selection"],
            maximize=group["maximize"],
        )
        if "index" in states[0]:
            support_RM = stack_supports(states)
            moments = stack_moments(states, support_RM)
            so(
                params,
                grads,
                support_RM,
                moments,
                rule=rule,
                step=step,
                generator=self._generator,
                foreach=group["foreach"],
            )
        elif "exp_avg" in states[0]:
            exp_avgs, exp_avg_sqs = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq"))
            so_dense_moments(params, grads, supports, exp_avgs, exp_avg_sqs, rule=rule, step=step)
        else:
            so_no_moments(params, grads, supports, rule=rule)
        for state in states:
            state["step"] = step


def _copy_to(device: torch.device, state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.to(device, copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
