"""Linear layers that compute of their weight's gradient only what a sparse optimizer will read.

    >>> optimizer = SO(model.parameters(), density_ratio=5e-4)
    >>> sampled_gradients(model, optimizer)
    >>> loss_fn(model(images), labels).backward()  # and so on, as ever

SO knows before the backward pass which entries of the gradient its next step reads. A layer that is
told computes those alone, and keeps of its input only the columns that they need, where that is
less than the input. The whole gradient is never made: such a weight's `.grad` stays None, and its
gradient is `weight.sampled_grad` [M], the values at the flat indices `optimizer.support(weight)`.

What comes between backward and step has to look there: take `GradScaler` and `clip_grad_norm_` from
here, and `SampledGradients.all_reduce` for data parallelism. Accumulation, autocast, activation
checkpointing, torch.compile, weights used several times and `zero_grad` work as ever.

How it works. Autograd's graph gets a leaf of M values for each weight, in the weight's place; so it
is autograd itself that sums uses, replays checkpoints and compiles. What reaches the leaf is handed
to the weight by a hook. The leaf's own values are never read: it takes no memory.
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
from so_clip.optim.gradient_tools import GradScaler, Guard, all_reduce_sampled, clip_grad_norm_
from so_clip.optim.gradients import add_sampled_gradient
from so_clip.optim.sampled_product import Method, fastest, sampled_product

# Marks an input that autograd saves anyway, so saving it again is free (see clip/kept.py).
SAVED_ANYWAY = "kept_anyway"

__all__ = [
    "GradScaler",
    "SampledGradients",
    "SampledLinear",
    "clip_grad_norm_",
    "sampled_gradients",
]


def sampled_gradients(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, always: bool = True
) -> "SampledGradients":
    """Have the linear layers of `model` compute only what `optimizer` reads of their gradients.

    Layers are taken where they are exactly nn.Linear and their weight is one that the optimizer
    samples. All others keep their dense gradients: frozen ones, weights at density 1, supports
    chosen by importance, and layers of other classes. So do uses of a weight outside of its layer;
    the step adds them up.

    Args:
        model: any module.
        optimizer: an SO, or any other whose `support(weight)` gives the flat indices (ascending
            int64 [M]) of the entries that its next step reads, or None for all, and which reads
            `weight.sampled_grad`.
        always: False leaves layers dense whose whole product is expected to be faster: at densities
            from about 1/8 on, and lower ones for small layers (scripts/bench_sampled.py). True
            takes them as well, for the memory.

    Returns:
        A handle whose `remove()` undoes it; also a context manager.

    Raises:
        InputError: the optimizer knows no supports.
    """
    if not callable(getattr(optimizer, "support", None)):
        raise InputError(
            f"{type(optimizer).__name__} reads whole gradients: sampled gradients are for "
            "optimizers that know before the backward pass what they read, such as SO."
        )
    return SampledGradients(model, optimizer, always)


class SampledGradients:
    """What `sampled_gradients` returns: which layers it took, and the way back.

    Attributes:
        methods: by weight name, how its gradient is computed; see `sampled_product.fastest`.
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
                    "Call remove() on what sampled_gradients returned then."
                )
            if type(layer) in (nn.Linear, SampledLinear) and id(layer.weight) in trained:
                method = self._method(layer.weight, always)
                if method is not None:
                    layer.__class__ = SampledLinear
                    self._layers.append(cast(SampledLinear, layer))
                    self.methods[f"{name}.weight" if name else "weight"] = method
        self._refresh()
        self._hooks: list[RemovableHandle | Guard | _Listener] = []
        if self._layers:
            self._hooks += [
                optimizer.register_step_post_hook(lambda *_: self._refresh()),
                optimizer.register_load_state_dict_post_hook(lambda *_: self._refresh()),
                _Listener(optimizer, self._refresh),
                Guard(optimizer),
            ]

    def remove(self) -> None:
        """Make the layers what they were. Gradients that were computed stay."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            del layer.sampling
            layer.__class__ = nn.Linear  # type: ignore[assignment]
        self._layers, self._hooks, self.methods = [], [], {}

    def all_reduce(self, group: "dist.ProcessGroup | None" = None) -> None:
        """Average the gradients of the layers' weights over all ranks, as DDP does for all others.

        Call it on every rank after the last backward pass before a step, and before unscaling and
        clipping. Every rank needs the same optimizer with the same seed, hence the same supports.

        Args:
            group: the ranks; all by default.
        """
        samplings = {id(each.sampling): each.sampling for each in self._layers if each.sampling}
        pairs = [(each.weight, each.support_M) for each in samplings.values()]
        all_reduce_sampled(pairs, group)

    def exclude_from_ddp(self) -> None:
        """Have a DistributedDataParallel that is made of the model hereafter pass over the weights.

        It would wait for their dense gradients. `all_reduce` takes its place, and the weights have
        to be equal on all ranks to begin with, which DDP sees to for all others. Where it has
        nothing left to do, it refuses to be made; leave it out then.
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

    def _method(self, weight: Tensor, always: bool) -> Method | None:
        support_M = self._optimizer.support(weight)
        if support_M is None or not weight.requires_grad:
            return None
        method, faster = fastest(len(support_M), tuple(weight.shape), weight.device)
        return method if always or faster else None

    def _refresh(self) -> None:
        """Give every layer whose support was drawn anew what it needs for the new one."""
        made: dict[int, Sampling | None] = {}
        for layer in self._layers:
            key, support_M = id(layer.weight), self._optimizer.support(layer.weight)
            if layer.sampling is not None and layer.sampling.support_M is support_M:
                made[key] = layer.sampling
            elif key not in made:
                made[key] = None if support_M is None else Sampling(layer.weight, support_M)
            layer.sampling = made[key]


class _Listener:
    """Hears of supports that an SO drew anew outside of a step; see SO.forget."""

    def __init__(self, optimizer: Any, function: Callable[[], None]) -> None:
        self._listeners = getattr(optimizer, "_told_of_supports", [])
        self._function = function
        self._listeners.append(function)

    def remove(self) -> None:
        self._listeners.remove(self._function)


class Sampling:
    """One weight and the support of its gradient, until the support is drawn anew.

    A graph that was built before then keeps the old one, and what it delivers is told apart.
    """

    def __init__(self, weight: Tensor, support_M: Tensor) -> None:
        self.weight, self.support_M = weight, support_M
        self.method, _ = fastest(len(support_M), tuple(weight.shape), weight.device)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.leaf_M = torch.zeros((), dtype=dtype, device=weight.device).expand(len(support_M))
        self.leaf_M.requires_grad_()
        # Nothing that the hook holds leads back to the leaf, so both go when the support does.
        self.leaf_M.register_post_accumulate_grad_hook(partial(_deliver, weight, support_M))

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        # A copy of a model has weights of its own, which no optimizer samples as yet.
        return type(None), ()


def _deliver(weight: Tensor, support_M: Tensor, leaf_M: Tensor) -> None:
    values_M, leaf_M.grad = leaf_M.grad, None
    assert values_M is not None
    add_sampled_gradient(weight, support_M, values_M)


class SampledLinear(nn.Linear):
    """A linear layer that computes its weight's gradient at `sampling.support_M` alone."""

    sampling: Sampling | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return what nn.Linear does, for any shape [..., I] and under autocast."""
        sampling, weight = self.sampling, self.weight
        bias: Tensor | None = self.bias
        if (
            sampling is None
            or sampling.weight is not weight  # replaced, for a while or for good
            or not weight.requires_grad
            or not torch.is_grad_enabled()
        ):
            return super().forward(input)
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            return super().forward(input)  # which says what is wrong
        kind = input.device.type
        if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
        elif input.dtype != weight.dtype:
            return super().forward(input)
        method = sampling.method
        if method == "columns" and getattr(input, SAVED_ANYWAY, False):
            method = "gather"  # from the input itself: a copy of its columns would come on top
        # Flat: out of a function of our own, torch would let no view be changed in place.
        y_NO: Tensor = _Linear.apply(
            input.reshape(-1, self.in_features),
            weight.detach(),
            bias,
            sampling.leaf_M,
            sampling.support_M,
            method,
        )
        return y_NO.view(*input.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    """F.linear, whose weight is rounded to the input's type anew in each direction, not kept."""

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
        del kept  # may have been made for this alone, and be as large as what comes next
        grad_x_NI = grad_NO @ weight_OI.to(grad_NO.dtype) if needs_x else None
        return grad_x_NI, None, grad_O, grad_M, None, None
