"""Linear layers that compute only the entries of a weight's gradient that the optimizer reads.

    >>> optimizer = SO(model.parameters(), density_ratio=5e-4)
    >>> sampled_gradients(model, optimizer)
    >>> loss_fn(model(images), labels).backward()  # train as usual

SO knows before the backward pass which M entries of the gradient its next step reads. For a layer
y = x Wᵀ with output gradient g, entry (i, j) of the gradient is Σ_tokens g[:, i] · x[:, j]. A
sampled layer computes these M sums alone. It keeps for the backward pass only the columns of x that
they need, if these take less memory than x. The whole gradient never exists: `weight.grad` is a
SampledGradient, which holds the M values at the flat indices `optimizer.support(weight)`.

torch's tools for clipping and gradient scaling work on it, so those of Lightning and Accelerate do
too; norms then cover the computed entries alone (see `clip_grad_norm_`). Accumulation, autocast,
activation checkpointing, torch.compile, weights used several times and `zero_grad` work as usual.
Hooks of the weight get the SampledGradient. For data parallelism there is
`SampledGradients.all_reduce`.

Design: autograd's graph has a leaf of M values in the place of each weight. So autograd itself adds
up several uses, replays checkpoints and compiles. A hook hands the leaf's gradient to the weight.
Nothing reads the leaf's values, so it takes no memory.
"""

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.hooks import RemovableHandle

from so_clip.errors import InputError
from so_clip.optim.functional import moment_dtype
from so_clip.optim.gradients import (
    add_sampled_gradient,
    all_reduce_sampled,
    clip_grad_norm_,
    unwrapped,
)
from so_clip.optim.sampled_gradient import SampledGradient
from so_clip.optim.sampled_product import Method, fastest, sampled_product

__all__ = [
    "SampledGradient",
    "SampledGradients",
    "SampledLinear",
    "clip_grad_norm_",
    "sampled_gradients",
]


def sampled_gradients(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, always: bool = True
) -> "SampledGradients":
    """Make the linear layers of `model` compute only the gradient entries that `optimizer` reads.

    A layer is sampled if its class is exactly nn.Linear and the optimizer samples its weight. All
    other gradients stay dense: those of frozen weights (none), of weights at density 1, of supports
    chosen by importance, and of other classes of layers. If a weight is also used outside of its
    layer, that use has a dense gradient, and the step adds both.

    Args:
        model: any module.
        optimizer: an SO, also inside the wrapper of Accelerate or Lightning; or any optimizer that
            reads SampledGradients and has a method `support(weight)`. It returns the flat indices
            (ascending int64 [M]) of the entries that the next step reads, or None for all entries.
        always: False leaves a layer dense if the whole product should be faster: at densities from
            about 1/8, and lower ones for small layers (scripts/bench_sampled.py). True samples such
            layers too, which saves memory.

    Returns:
        A handle. Its `remove()` restores the layers; it is also a context manager.

    Raises:
        InputError: the optimizer has no `support`, layers are sampled already, or the model is in
            a DistributedDataParallel that waits for whole gradients.

    Example:
        >>> optimizer = SO(model.parameters(), density_ratio=5e-4)
        >>> handle = sampled_gradients(model, optimizer)
        >>> loss_fn(model(images), labels).backward()
        >>> optimizer.step()
        >>> handle.remove()
    """
    inner = unwrapped(optimizer)
    if not callable(getattr(inner, "support", None)):
        raise InputError(
            f"{type(inner).__name__} reads whole gradients: sampled gradients are for optimizers "
            "that know before the backward pass what they read, such as SO. If an SO is inside, "
            "call sampled_gradients with it before it is wrapped."
        )
    return SampledGradients(model, inner, always)


class SampledGradients:
    """The handle that `sampled_gradients` returns. It holds the sampled layers.

    Attributes:
        methods: the method that computes each gradient, by weight name; see
            `sampled_product.fastest`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, always: bool) -> None:
        self._optimizer: Any = optimizer
        self._model = model
        self._layers: list[SampledLinear] = []
        self.methods: dict[str, Method] = {}
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in model.named_modules():
            if type(layer) is SampledLinear and layer.sampling is not None:
                raise InputError(
                    f"the gradient of {name or 'the layer'} is sampled for an optimizer already. "
                    "Call remove() on the handle that sampled_gradients returned for it."
                )
            if type(layer) in (nn.Linear, SampledLinear) and id(layer.weight) in trained:
                method = self._method(layer.weight, always)
                if method is not None:
                    layer.__class__ = SampledLinear
                    self._layers.append(cast(SampledLinear, layer))
                    self.methods[f"{name}.weight" if name else "weight"] = method
        self._hooks: list[RemovableHandle | _Listener] = []
        self._refuse_ddp()
        self._refresh()
        if self._layers:
            self._hooks += [
                optimizer.register_step_post_hook(lambda *_: self._refresh()),
                optimizer.register_load_state_dict_post_hook(lambda *_: self._refresh()),
                _Listener(optimizer, self._refresh),
            ]

    def remove(self) -> None:
        """Turn the layers back into nn.Linear. Gradients that exist stay."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            vars(layer).pop("sampling", None)
            layer.__class__ = nn.Linear  # type: ignore[assignment]
        self._layers, self._hooks, self.methods = [], [], {}

    def all_reduce(self, group: "dist.ProcessGroup | None" = None) -> None:
        """Average the sampled gradients over all ranks, as DDP does for dense gradients.

        Call it on every rank after the last backward pass before a step, and before unscaling and
        clipping. All ranks need the same optimizer and seed, because supports must be equal.

        Args:
            group: the ranks; None: all ranks.
        """
        samplings = {id(layer.sampling): layer.sampling for layer in self._layers if layer.sampling}
        pairs = [(sampling.weight, sampling.support_M) for sampling in samplings.values()]
        all_reduce_sampled(pairs, group)

    def exclude_from_ddp(self) -> None:
        """Make a DistributedDataParallel that is built later on the model ignore sampled weights.

        Otherwise DDP would wait for their dense gradients. Call `all_reduce` instead. The weights
        must be equal on all ranks at the start; DDP ensures this only for the weights it handles.
        DDP raises an error if no weight is left to it: train without DDP then.
        """
        weights = {id(layer.weight) for layer in self._layers}
        names = [*getattr(self._model, "_ddp_params_and_buffers_to_ignore", [])]
        names += [name for name, param in self._model.named_parameters() if id(param) in weights]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self._model, names
        )

    def __enter__(self) -> "SampledGradients":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _refuse_ddp(self) -> None:
        wrapped = any(
            isinstance(m, nn.parallel.DistributedDataParallel) for m in self._model.modules()
        )
        if wrapped and self._layers:
            self.remove()
            raise InputError(
                "the model is in a DistributedDataParallel, which waits for whole gradients. "
                "Call sampled_gradients and the handle's exclude_from_ddp() before the model is "
                "wrapped (by accelerator.prepare, for example), and all_reduce() before each step."
            )

    def _method(self, weight: Tensor, always: bool) -> Method | None:
        support_M = self._optimizer.support(weight)
        if support_M is None or not weight.requires_grad:
            return None
        method, faster = fastest(len(support_M), tuple(weight.shape), weight.device)
        return method if always or faster else None

    def _refresh(self) -> None:
        """Give every layer with a new support a new Sampling; layers of one weight share it."""
        by_weight: dict[int, Sampling | None] = {}
        for layer in self._layers:
            key, support_M = id(layer.weight), self._optimizer.support(layer.weight)
            if layer.sampling is not None and layer.sampling.support_M is support_M:
                by_weight[key] = layer.sampling
            elif key not in by_weight:
                by_weight[key] = None if support_M is None else Sampling(layer.weight, support_M)
            layer.sampling = by_weight[key]


class _Listener:
    """Calls a function after an SO has dropped a support outside of a step; see SO.forget."""

    def __init__(self, optimizer: Any, function: Callable[[], None]) -> None:
        self._listeners = getattr(optimizer, "_support_listeners", [])
        self._function = function
        self._listeners.append(function)

    def remove(self) -> None:
        self._listeners.remove(self._function)


class Sampling:
    """One weight and the support of its gradient, valid until a new support is drawn.

    An older graph keeps the old Sampling. `add_sampled_gradient` recognises its values by their
    support and refuses them.
    """

    def __init__(self, weight: Tensor, support_M: Tensor) -> None:
        self.weight, self.support_M = weight, support_M
        self.method, _ = fastest(len(support_M), tuple(weight.shape), weight.device)
        self.leaf_M = self._new_leaf()

    def leaf(self) -> Tensor:
        """Return the leaf; a new one after `module.to(dtype)`, as it decides the values' dtype."""
        if self.leaf_M.dtype != moment_dtype(self.weight):
            self.leaf_M = self._new_leaf()
        return self.leaf_M

    def _new_leaf(self) -> Tensor:
        zero = torch.zeros((), dtype=moment_dtype(self.weight), device=self.weight.device)
        leaf_M = zero.expand(len(self.support_M)).requires_grad_()
        # The hook holds no reference to the leaf, so both are freed with the support.
        deliver = partial(_deliver, self.weight, self.support_M)
        leaf_M.register_post_accumulate_grad_hook(deliver)
        return leaf_M

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        # A copied model has new weights, and no optimizer samples them yet: copy as None.
        return type(None), ()


def _deliver(weight: Tensor, support_M: Tensor, leaf_M: Tensor) -> None:
    """Add the leaf's gradient to the weight's, and call the weight's hooks as autograd does."""
    values_M, leaf_M.grad = leaf_M.grad, None
    assert values_M is not None
    for hook in list((weight._backward_hooks or {}).values()):
        changed = hook(SampledGradient(weight, support_M, values_M))
        if changed is not None:
            values_M = cast(SampledGradient, changed).values_M
    add_sampled_gradient(weight, support_M, values_M)
    for hook in list((weight._post_accumulate_grad_hooks or {}).values()):
        hook(weight)


class SampledLinear(nn.Linear):
    """A linear layer that computes its weight's gradient at `sampling.support_M` alone."""

    sampling: Sampling | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return nn.Linear's output, for any shape [..., I] and under autocast.

        An input with the attribute `saved_anyway` set to True is saved for the backward pass by
        another operation, or recomputed there. Saving the input itself is then free, so no copy of
        its columns is made. so_clip.clip.recompute sets the attribute; any module may.
        """
        sampling, weight = self.sampling, self.weight
        bias: Tensor | None = self.bias
        if (
            sampling is None
            or sampling.weight is not weight  # the layer has another weight now
            or not weight.requires_grad
            or not torch.is_grad_enabled()
        ):
            return super().forward(input)
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            return super().forward(input)  # raises torch's error
        kind = input.device.type
        if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
        elif input.dtype != weight.dtype:
            return super().forward(input)
        method = sampling.method
        if method == "columns" and getattr(input, "saved_anyway", False):
            method = "gather"
        # Flat, because torch forbids in-place changes to views that a custom function returns.
        y_NO: Tensor = _Linear.apply(
            input.reshape(-1, self.in_features),
            weight.detach(),
            bias,
            sampling.leaf(),
            sampling.support_M,
            method,
        )
        return y_NO.view(*input.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    """F.linear. Both passes round the weight to the input's dtype; no rounded copy is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        leaf_M: Tensor,
        support_M: Tensor,
        method: Method,
    ) -> Tensor:
        kept = x_NI
        if method == "columns":
            kept = x_NI.index_select(1, support_M % weight_OI.shape[1])
        ctx.save_for_backward(kept, weight_OI, support_M)
        ctx.method = method
        return F.linear(x_NI, weight_OI.to(x_NI.dtype), bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight_OI, support_M = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        grad_O = grad_NO.sum(0) if needs_bias else None
        grad_M = sampled_product(grad_NO, kept, support_M, weight_OI.shape[1], ctx.method)
        del kept  # may be as large as the next tensor, and nothing else may need it
        grad_x_NI = grad_NO @ weight_OI.to(grad_NO.dtype) if needs_x else None
        return grad_x_NI, None, grad_O, grad_M, None, None
