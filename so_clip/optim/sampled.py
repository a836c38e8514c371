"""Layers that compute only the entries of a weight's gradient that the optimizer reads.

    >>> optimizer = SO(model.parameters(), density_ratio=5e-4)
    >>> sampled_gradients(model, optimizer)
    >>> loss_fn(model(images), labels).backward()  # train as usual

SO knows before the backward pass which M entries of the gradient its next step reads. For a layer
y = x Wᵀ with output gradient g, entry (i, j) of the gradient is Σ_tokens g[:, i] · x[:, j]. A
sampled layer computes these M sums alone. It keeps for the backward pass only the columns of x that
they need, if these take less memory than x. The whole gradient is never kept: `weight.grad` is a
SampledGradient: it holds the M values at the flat indices `optimizer.support(weight)`. On a GPU in
half precision, the whole product of one layer exists for a moment; see `sampled_product`. A
convolution is such a product too; see so_clip/optim/sampled_convolution.py. An embedding adds up
the rows of its tokens alone; see so_clip/optim/sampled_embedding.py.

torch's tools for clipping and gradient scaling work on it, so those of Lightning and Accelerate do
too; norms then cover the computed entries alone (see `clip_grad_norm_`). Accumulation, autocast,
activation checkpointing, torch.compile, weights used several times and `zero_grad` work as usual.
Hooks of the weight get the SampledGradient. For data parallelism there is
`SampledGradients.all_reduce`.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from so_clip.errors import InputError
from so_clip.optim.gradients import all_reduce_sampled, clip_grad_norm_, unwrapped
from so_clip.optim.sampled_coordinates import Batches
from so_clip.optim.sampled_embedding import SampledEmbedding, can_be_sampled, is_faster
from so_clip.optim.sampled_gradient import SampledGradient
from so_clip.optim.sampled_layers import SampledConv2d, SampledLinear
from so_clip.optim.sampled_product import Method, fastest
from so_clip.optim.sampling import Sampling, methods_of, renew_coordinates

__all__ = [
    "SampledConv2d",
    "SampledEmbedding",
    "SampledGradient",
    "SampledGradients",
    "SampledLinear",
    "clip_grad_norm_",
    "sampled_gradients",
]

_IN_DDP = (
    "the model is in a DistributedDataParallel, which waits for whole gradients. Call "
    "sampled_gradients and the handle's exclude_from_ddp() before the model is wrapped (by "
    "accelerator.prepare, for example), and all_reduce() before each step."
)

# Each class that can be sampled, and the class that a layer of it becomes.
SampledLayer = SampledLinear | SampledConv2d | SampledEmbedding
# Why the gradient of a trained matrix is whole.
_READ_WHOLE = "the optimizer reads the whole gradient"
_WHOLE_IS_FASTER = "the whole product should be faster"
_EMBEDDING_OPTION = "max_norm, scale_grad_by_freq or sparse of Embedding needs the whole gradient"
_NOT_CALLED = "the weight is used without a call of its layer"
_SAMPLED: dict[type[nn.Module], type[SampledLayer]] = {
    nn.Linear: SampledLinear,
    nn.Conv2d: SampledConv2d,
    nn.Embedding: SampledEmbedding,
}


def sampled_gradients(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    always: bool = True,
    whole: bool | None = None,
) -> "SampledGradients":
    """Make the layers of `model` compute only the gradient entries that `optimizer` reads.

    A layer is sampled if its class is exactly nn.Linear, nn.Conv2d or nn.Embedding and the
    optimizer samples its weight. A convolution is sampled only where this should be faster: at
    densities up to 1/200. All other gradients stay dense: those of frozen weights (none), of
    weights at density 1, of supports chosen by importance, of other classes of layers, and of
    embeddings with max_norm, scale_grad_by_freq or sparse. If a weight is also used outside of its
    layer, that use has a dense gradient, and the step adds both. If a layer is never called
    although its weight is used, the first step turns it back into a layer of torch. A layer that
    was sampled for another optimizer is sampled for this one from now on.

    Args:
        model: any module.
        optimizer: an SO, also inside the wrapper of Accelerate or Lightning; or any optimizer that
            reads SampledGradients and has a method `support(weight)`. It returns the flat indices
            (ascending int64 [M]) of the entries that the next step reads, or None for all entries.
        always: False leaves a linear layer dense if the whole product should be faster: at
            densities from about 1/8, and lower ones for small layers (scripts/bench_sampled.py);
            and an embedding at densities above 1/16. True samples such layers too, to save memory.
        whole: whether a sampled layer makes the whole product for a moment and takes the entries
            from it, by two operations. None: on a GPU, for inputs in half precision, where tensor
            cores make this the fastest way. What a layer keeps for the backward pass is the same.

    Returns:
        A handle. Its `remove()` restores the layers; it is also a context manager.

    Raises:
        InputError: the optimizer has no `support`, or the model is in a DistributedDataParallel
            that waits for whole gradients.

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
    return SampledGradients(model, inner, always, whole)


class SampledGradients:
    """The handle that `sampled_gradients` returns. It holds the sampled layers.

    Attributes:
        methods: the method that computes each gradient, by weight name; see
            `sampled_product.fastest`. On a GPU, the one for half precision. "tokens": of an
            embedding.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        always: bool,
        whole: bool | None = None,
    ) -> None:
        self._optimizer: Any = optimizer
        self._whole_products = whole
        self._batches: Batches = {}
        self._model = model
        self._layers: dict[str, SampledLayer] = {}  # by weight name
        self.methods: dict[str, Method | Literal["tokens"]] = {}
        self._whole: dict[int, str] = {}  # id of a parameter -> why its gradient is whole
        self._uses_checked = False
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in model.named_modules():
            is_sampled = type(layer) in _SAMPLED.values()
            kind: Any = type(layer).__base__ if is_sampled else type(layer)
            for parameter in layer.parameters(recurse=False):
                self._whole.setdefault(id(parameter), f"a parameter of {kind.__name__}")
            if kind in _SAMPLED and id(layer.weight) in trained:
                method = self._method(layer, always)
                self._whole[id(layer.weight)] = self._why_whole(layer)
                if is_sampled and layer.sampling is not None:
                    layer.sampling.handle._release(layer)
                if method is not None:
                    layer.__class__ = _SAMPLED[kind]
                    key = f"{name}.weight" if name else "weight"
                    self._layers[key], self.methods[key] = layer, method
        self._hooks: list[RemovableHandle | _Listener] = []
        self._checked_ddp: DistributedDataParallel | None = None
        self._excluded = self._needs_average = False
        self._refuse_ddp()
        self.refresh()
        vars(optimizer)["sampled_gradients"] = self  # see sampled_record
        if self._layers:
            self._hooks += [
                optimizer.register_step_pre_hook(lambda *_: self._check_average()),
                optimizer.register_step_pre_hook(lambda *_: self._release_unused()),
                optimizer.register_step_post_hook(lambda *_: self.refresh()),
                optimizer.register_load_state_dict_post_hook(lambda *_: self.refresh()),
                _Listener(optimizer, self.refresh),
            ]

    def support(self, weight: Tensor) -> Tensor | None:
        """Return the flat indices of a weight's entries that the next step reads; None: all."""
        support_M: Tensor | None = self._optimizer.support(weight)
        return support_M

    def reason_of_whole(self, weight: Tensor) -> str | None:
        """Return why a parameter's gradient is whole; None if a sampled layer computes it."""
        if any(layer.weight is weight for layer in self._layers.values()):
            return None
        return self._whole.get(id(weight), "not a parameter of the model")

    def remove(self) -> None:
        """Turn the layers back into those of torch. Gradients that exist stay."""
        for layer in list(self._layers.values()):
            self._release(layer)
        if vars(self._optimizer).get("sampled_gradients") is self:
            del self._optimizer.sampled_gradients
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def all_reduce(self, group: "dist.ProcessGroup | None" = None) -> None:
        """Average the sampled gradients over all ranks, as DDP does for dense gradients.

        Call it on every rank after the last backward pass before a step, and before unscaling and
        clipping. All ranks need the same optimizer and seed, because supports must be equal.

        Args:
            group: the ranks; None: all ranks.
        """
        layers = self._layers.values()
        samplings = {id(layer.sampling): layer.sampling for layer in layers if layer.sampling}
        pairs = [(sampling.weight, sampling.support_M) for sampling in samplings.values()]
        all_reduce_sampled(pairs, group)
        self._needs_average = False

    def exclude_from_ddp(self) -> None:
        """Make a DistributedDataParallel that is built later on the model ignore sampled weights.

        Otherwise DDP would wait for their dense gradients, and a forward pass in it is an error.
        Call `all_reduce` before each step instead; a step without it is an error too. The weights
        must be equal on all ranks at the start; DDP ensures this only for the weights it handles.
        DDP raises an error if no weight is left to it: train without DDP then.
        """
        weights = {id(layer.weight) for layer in self._layers.values()}
        names = [*getattr(self._model, "_ddp_params_and_buffers_to_ignore", [])]
        names += [name for name, param in self._model.named_parameters() if id(param) in weights]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self._model, names)
        self._excluded = self._needs_average = True

    def __enter__(self) -> "SampledGradients":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _release(self, layer: SampledLayer) -> None:
        (name,) = (name for name, other in self._layers.items() if other is layer)
        del self._layers[name], self.methods[name]
        vars(layer).pop("sampling", None)
        layer.__class__ = type(layer).__base__  # type: ignore[assignment]

    def _release_unused(self) -> None:
        """Release, at the first step, layers whose weights have gradients from elsewhere alone.

        timm's EVA multiplies by the weight of a layer that it never calls.
        """
        layers = [*self._layers.values()]
        called = [layer for layer in layers if layer.sampling and layer.sampling.is_used]
        if self._uses_checked or not called:  # a step without a forward pass shows nothing
            return
        self._uses_checked = True
        for layer in layers:
            grad = layer.weight.grad
            if layer not in called and grad is not None:
                self._whole[id(layer.weight)] = _NOT_CALLED
                self._release(layer)

    def check_ddp(self, ddp: DistributedDataParallel) -> None:
        """Raise InputError if this DistributedDataParallel waits for gradients of these layers.

        Without the error, the weights of the ranks could become different.
        """
        if ddp is not self._checked_ddp:
            handled = {id(param) for param in ddp._module_parameters}
            if any(id(layer.weight) in handled for layer in self._layers.values()):
                raise InputError(_IN_DDP)
            self._checked_ddp = ddp

    def _refuse_ddp(self) -> None:
        wrapped = any(isinstance(m, DistributedDataParallel) for m in self._model.modules())
        if wrapped and self._layers:
            self.remove()
            raise InputError(_IN_DDP)

    def _check_average(self) -> None:
        """Raise InputError if a step would use gradients of this rank alone."""
        if self._needs_average and any(
            isinstance(layer.weight.grad, SampledGradient) for layer in self._layers.values()
        ):
            raise InputError(
                "the sampled gradients of this step are those of one process: exclude_from_ddp() "
                "was called, but not all_reduce(). Call it after the backward pass, before "
                "clipping and the step."
            )
        self._needs_average = self._excluded

    def _method(self, layer: Any, always: bool) -> Method | Literal["tokens"] | None:
        """Return the method for a layer; None leaves its gradient whole."""
        weight: Tensor = layer.weight
        support_M = self.support(weight)
        if support_M is None or not weight.requires_grad:
            return None
        if isinstance(layer, nn.Embedding):
            faster = always or is_faster(len(support_M), weight.numel())
            return "tokens" if faster and can_be_sampled(layer) else None
        _, faster = fastest(len(support_M), tuple(weight.shape), weight.device)
        if not faster and not (always and weight.ndim == 2):
            return None
        _, half_method = methods_of(weight, len(support_M), self._whole_products)
        return half_method

    def _why_whole(self, layer: Any) -> str:
        """Return why the gradient of a layer that is not sampled is whole."""
        if self.support(layer.weight) is None:
            return _READ_WHOLE
        if isinstance(layer, nn.Embedding) and not can_be_sampled(layer):
            return _EMBEDDING_OPTION
        return _WHOLE_IS_FASTER

    def refresh(self) -> None:
        """Read all supports again. Layers of one weight share a Sampling.

        A new support in another tensor gets coordinates in new tensors, because an older graph may
        still read the old ones. If it is written in the old one's place, so are its coordinates.
        """
        samplings: dict[int, Sampling | None] = {}
        changed: dict[bool, list[Sampling]] = {True: [], False: []}  # whether in place
        for layer in self._layers.values():
            key = id(layer.weight)
            if key not in samplings:
                sampling: Sampling | None = layer.sampling
                support_M = self.support(layer.weight)
                if support_M is None:
                    sampling = None
                elif sampling is None or sampling.weight is not layer.weight:
                    sampling = Sampling(layer.weight, self, self._whole_products)
                else:
                    in_place = sampling.renew(support_M)
                    if in_place is not None:
                        changed[in_place].append(sampling)
                samplings[key] = sampling
            layer.sampling = samplings[key]
        for in_place, renewed in changed.items():
            renew_coordinates(renewed, in_place, self._batches)


class _Listener:
    """Calls a function when an SO has dropped a support (see SO.forget) or drawn one in place."""

    def __init__(self, optimizer: Any, function: Callable[[], None]) -> None:
        self._listeners = getattr(optimizer, "_support_listeners", [])
        self._function = function
        self._listeners.append(function)

    def remove(self) -> None:
        self._listeners.remove(self._function)
