"""A model's parameters of which a fixed set of entries is trained.

    W = W0 + scatter(values_M at index_M)

The M values are a parameter of their own, so the state of an optimizer is as small as the set. The
weight itself holds the sum. So all forward passes stay those of the model, and no second copy of a
weight exists. `FixedEntries.write` puts new values into the weight after a step.

In linear layers and convolutions the backward pass computes only the M entries of the gradient,
where this is faster than the whole gradient. Everywhere else the whole gradient of one parameter
exists until a hook has read its entries.

Tensor names end in their shape: M entries.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from so_clip.checks import AutoFlag
from so_clip.optim.sampled_layers import SampledConv2d, SampledLinear
from so_clip.optim.sampled_product import READS_COORDINATES, Method, coordinates, fastest
from so_clip.optim.sampling import methods_of
from so_clip.optim.support import draw_supports, entry_count

__all__ = ["FixedEntries", "draw_entries", "entry_count", "fixed_entries"]

_SAMPLED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SampledLinear,
    nn.Conv2d: SampledConv2d,
}
# The attribute of a module that holds the FixedEntries of its own parameters by their names.
_HELD = "fixed_entries"


def draw_entries(numels: Sequence[int], sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Draw a subset of each tensor's entries, uniform among all subsets of its size.

    Args:
        numels: entries of each tensor.
        sizes: entries to draw from each tensor, at most its numel.
        seed: of the draw; the global random state does not change.

    Returns:
        One int64 CPU tensor of ascending flat indices for each tensor.
    """
    return draw_supports(numels, sizes, torch.Generator().manual_seed(seed))


class FixedEntries:
    """The trained entries of one parameter.

    Their values start at zero. They are the parameter `<name>_values` of the same module. State
    dicts leave the values out: they hold the weight, which has the values in it.

    Args:
        model: that has the parameter.
        name: of the parameter in the model.
        index_M: flat indices into the parameter, ascending, int64.
        sampled: whether a linear layer or a convolution computes only the entries of its gradient:
            auto (where this is faster) | true (in all linear layers too, to save memory) | false.
    """

    def __init__(
        self, model: nn.Module, name: str, index_M: Tensor, sampled: AutoFlag = "auto"
    ) -> None:
        path, _, self.own_name = name.rpartition(".")
        self.owner: Any = model.get_submodule(path)
        self.name, self.values_name = name, f"{name}_values"
        weight = self.weight
        if isinstance(weight, FakeTensor) and not isinstance(index_M, FakeTensor):
            index_M = weight.fake_mode.from_tensor(index_M)
        index_M = index_M.to(weight.device)
        start_M = weight.detach().take(index_M)
        values_M = torch.zeros_like(start_M, dtype=torch.promote_types(weight.dtype, torch.float32))
        self.owner.register_parameter(f"{self.own_name}_values", nn.Parameter(values_M))
        self.owner.register_buffer(f"{self.own_name}_index", index_M, persistent=False)
        self.owner.register_buffer(f"{self.own_name}_start", start_M, persistent=False)
        self.owner.register_state_dict_post_hook(partial(_leave_out, self.own_name))
        self.owner.register_load_state_dict_pre_hook(partial(_keep, self.own_name))
        vars(self.owner).setdefault(_HELD, {})[self.own_name] = self
        weight.requires_grad_(True)
        self._hook = weight.register_post_accumulate_grad_hook(self._read_gradient)
        if sampled is not False:
            self._sample(always=sampled is True)

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        weight: nn.Parameter = getattr(self.owner, self.own_name)
        return weight

    @property
    def values_M(self) -> nn.Parameter:
        """What is trained: the entries' values minus their first values."""
        values_M: nn.Parameter = getattr(self.owner, f"{self.own_name}_values")
        return values_M

    @property
    def support_M(self) -> Tensor:
        """The entries' flat indices, under the name that sampled layers read."""
        index_M: Tensor = getattr(self.owner, f"{self.own_name}_index")
        return index_M

    def leaf(self) -> Tensor:
        """Return the tensor that gets the gradient of the entries."""
        return self.values_M

    def coordinates_for(self, method: Method) -> tuple[Tensor | None, Tensor | None]:
        """Return the coordinates of the entries that a method reads; see `Sampling`."""
        if method not in READS_COORDINATES:
            return None, None
        return coordinates(self.support_M, self.weight.shape[1], method)

    @torch.no_grad()
    def write(self, share: float = 1.0) -> None:
        """Put the values into the weight.

        Args:
            share: of the values that the weight gets.
        """
        start_M: Tensor = getattr(self.owner, f"{self.own_name}_start")
        sum_M = start_M + share * self.values_M
        self.weight.put_(self.support_M, sum_M.to(self.weight.dtype))

    def remove(self) -> None:
        """Remove the values from the model. The weight keeps what it has."""
        self._hook.remove()
        for kind in ("values", "index", "start"):
            delattr(self.owner, f"{self.own_name}_{kind}")
        del vars(self.owner)[_HELD][self.own_name]
        if vars(self.owner).get("sampling") is self:
            del self.owner.sampling
            self.owner.__class__ = type(self.owner).__base__

    def _sample(self, always: bool) -> None:
        """Let the layer compute the gradient of the entries alone, if this is faster."""
        kind, shape = type(self.owner), tuple(self.weight.shape)
        if kind not in _SAMPLED or self.own_name != "weight":
            return
        _, is_faster = fastest(len(self.support_M), shape, self.weight.device)
        self.method, self.half_method = methods_of(self.weight, len(self.support_M), None)
        if is_faster or (always and len(shape) == 2):
            self.owner.__class__ = _SAMPLED[kind]
            self.owner.sampling = self

    def _read_gradient(self, weight: Tensor) -> None:
        """Turn the whole gradient of the weight into one of the values, as autograd would."""
        whole, weight.grad = weight.grad, None
        assert whole is not None
        values_M = self.values_M
        grad_M = whole.take(self.support_M).to(values_M.dtype)
        values_M.grad = grad_M if values_M.grad is None else values_M.grad + grad_M
        for hook in list((values_M._post_accumulate_grad_hooks or {}).values()):
            hook(values_M)


def fixed_entries(model: nn.Module) -> Iterator[FixedEntries]:
    """Yield the trained sets of entries in a model."""
    for module in model.modules():
        yield from [*vars(module).get(_HELD, {}).values()]


def _leave_out(
    own_name: str, _owner: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    state.pop(f"{prefix}{own_name}_values", None)


def _keep(
    own_name: str, owner: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any
) -> None:
    """Let a state dict be loaded that has no values: they keep those they have."""
    values_M = getattr(owner, f"{own_name}_values", None)
    if values_M is not None:
        state.setdefault(f"{prefix}{own_name}_values", values_M.detach())
