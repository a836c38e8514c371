"""One weight whose gradient is sampled: its support, and the leaf in autograd's graph.

Design: autograd's graph has a leaf of M values in the place of each weight. So autograd itself adds
up several uses, replays checkpoints and compiles. A hook hands the leaf's gradient to the weight.
Nothing reads the leaf's values, so it takes no memory.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from so_clip.optim.gradients import add_sampled_gradient, outdated
from so_clip.optim.rates import moment_dtype
from so_clip.optim.sampled_coordinates import Batch, Batches, Coordinates, Kind
from so_clip.optim.sampled_gradient import SampledGradient
from so_clip.optim.sampled_product import READS_COORDINATES, Method, coordinates, fastest


class Sampling:
    """One weight and the support of its gradient, which changes when a new one is drawn.

    An older graph keeps the coordinates of the old support, or reads those of the new one if they
    are written in its place. In both cases the graph's own leaf knows the old support and its
    version, so its values are recognised and refused.

    Args:
        weight: of a layer.
        handle: a SampledGradients.
        whole: see `sampled_gradients`.

    Attributes:
        support_M: the support.
        method: how the gradient is computed.
        half_method: the same for inputs in half precision.
        coordinates: of the support, for each method that has read them.
    """

    def __init__(self, weight: Tensor, handle: Any, whole: bool | None) -> None:
        self.weight, self.handle = weight, handle
        self.support_M: Tensor = handle.support(weight)
        self.version = self.support_M._version
        self.method, self.half_method = methods_of(weight, len(self.support_M), whole)
        self.coordinates: dict[Method, Coordinates] = {}
        self._zero: Tensor | None = None  # the storage of all leaves
        self.leaf_M = self._new_leaf()
        self.is_used = False  # by a forward pass

    def leaf(self) -> Tensor:
        """Return the leaf; a new one after `module.to(...)`, as it has the values' dtype."""
        self.is_used = True
        ddp = DistributedDataParallel._active_ddp_module
        if ddp is not None and not torch.compiler.is_compiling():
            self.handle.check_ddp(ddp)
        if self.support_M.device != self.weight.device:
            self.handle.refresh()
        if self.weight.dtype != self._dtype:
            self.leaf_M = self._new_leaf()
        return self.leaf_M

    def coordinates_for(self, method: Method) -> tuple[Tensor | None, Tensor | None]:
        """Return the coordinates that a method reads; its first use computes them."""
        if method not in READS_COORDINATES:
            return None, None
        if torch.compiler.is_compiling():
            return coordinates(self.support_M, self.weight.shape[1], method)
        if method not in self.coordinates:
            found = coordinates(self.support_M, self.weight.shape[1], method)
            self.coordinates[method] = found
        return self.coordinates[method]

    def renew(self, support_M: Tensor) -> bool | None:
        """Take over the present support.

        Returns:
            None if nothing has changed, True if there are new values in the tensor that was there,
            False if it is another tensor.
        """
        in_place = support_M is self.support_M
        if in_place and support_M._version == self.version:
            return None
        self.support_M, self.version = support_M, support_M._version
        self.leaf_M = self._new_leaf()
        return in_place

    def _new_leaf(self) -> Tensor:
        self._dtype = self.weight.dtype
        dtype, device = moment_dtype(self.weight), self.weight.device
        if self._zero is None or (self._zero.dtype, self._zero.device) != (dtype, device):
            self._zero = torch.zeros((), dtype=dtype, device=device)
        leaf_M = self._zero.expand(len(self.support_M)).requires_grad_()
        # The hook holds no reference to the leaf, so both are freed with the support.
        deliver = partial(_deliver, self.weight, self.support_M, self.version)
        leaf_M.register_post_accumulate_grad_hook(deliver)
        return leaf_M

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        # A copied model has new weights, and no optimizer samples them yet: copy as None.
        return type(None), ()


def methods_of(weight: Tensor, entries: int, whole: bool | None) -> tuple[Method, Method]:
    """Return how to compute a gradient: for inputs of any precision, and of half precision.

    Args:
        weight: of a layer.
        entries: M.
        whole: whole products; None: on a GPU, for half precision. See `sampled_gradients`.
    """
    shape, device = tuple(weight.shape), weight.device
    half = device.type == "cuda" if whole is None else whole
    method, _ = fastest(entries, shape, device, whole=whole is True)
    half_method, _ = fastest(entries, shape, device, whole=half)
    return method, half_method


def _deliver(weight: Tensor, support_M: Tensor, version: int, leaf_M: Tensor) -> None:
    """Add the leaf's gradient to the weight's, and call the weight's hooks as autograd does."""
    values_M, leaf_M.grad = leaf_M.grad, None
    assert values_M is not None
    if support_M._version != version:
        raise outdated(weight)
    for hook in list((weight._backward_hooks or {}).values()):
        changed = hook(SampledGradient(weight, support_M, values_M))
        if changed is not None:
            values_M = cast(SampledGradient, changed).values_M
    add_sampled_gradient(weight, support_M, values_M)
    for hook in list((weight._post_accumulate_grad_hooks or {}).values()):
        hook(weight)


def is_sampled(sampling: Sampling | None, weight: Tensor) -> bool:
    """Return whether a forward pass needs a sampled gradient of this weight."""
    return (
        sampling is not None
        and sampling.weight is weight  # otherwise the layer has another weight now
        and weight.requires_grad
        and torch.is_grad_enabled()
    )


@torch.no_grad()
def renew_coordinates(samplings: Sequence[Sampling], in_place: bool, batches: Batches) -> None:
    """Compute the new supports' coordinates, in the forms that layers have read before.

    Args:
        samplings: with new supports.
        in_place: whether to write the coordinates in the place of the old ones.
        batches: made by earlier calls; this one adds its own.
    """
    uses = [(sampling, method) for sampling in samplings for method in sampling.coordinates]
    for device in {sampling.support_M.device for sampling, _ in uses}:
        here = [use for use in uses if use[0].support_M.device == device]
        kinds = [
            Kind(len(sampling.support_M), sampling.weight.shape[1], method)
            for sampling, method in here
        ]
        batch = batches.setdefault((device, *kinds), Batch(kinds, device))
        new = batch.coordinates([sampling.support_M for sampling, _ in here])
        if in_place:
            old = [sampling.coordinates[method] for sampling, method in here]
            torch._foreach_copy_([*chain(*old)], [*chain(*new)])
        else:
            for (sampling, method), found in zip(here, new, strict=True):
                sampling.coordinates[method] = found
