"""The memory mode `balanced` for a block of any kind, inside the block's own forward pass.

A norm or an activation function keeps its input, and the next layer keeps its output. Here the
backward pass computes the output again, so only the input is kept. The same holds for the product
of a gated MLP (SwiGLU, GEGLU). No matrix product or convolution runs twice.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm.layers
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from timm.layers.mlp import GluMlp, SwiGLU
from timm.models.vitamin import GeGluMlp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from so_clip.clip.engine.recipes import Recipes

Forward = Callable[..., Any]

# Modules without matrix products. Their input is kept in any case.
_CHEAP = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.GELU,
    nn.SiLU,
    QuickGELU,
    timm.layers.GELU,
    timm.layers.GELUTanh,
    timm.layers.QuickGELU,
    timm.layers.Swish,
)


def run_lean(block: nn.Module, forward: Forward, *inputs: Any, **options: Any) -> Any:
    """Return forward(*inputs, **options), the block's own forward pass, with less kept."""
    recipes = Recipes()
    with recipes.saving(), forwards(_lean_forwards(block, recipes)):
        return forward(*inputs, **options)


@contextmanager
def forwards(replaced: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Give modules another forward pass inside this context."""
    before = {module: vars(module).get("forward") for module in replaced}
    for module, forward in replaced.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, old in before.items():
            if old is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = old


def _lean_forwards(block: nn.Module, recipes: Recipes) -> dict[nn.Module, Forward]:
    lean: dict[nn.Module, Forward] = {}
    for module in block.modules():
        if isinstance(module, nn.ReLU):
            lean[module] = partial(recipes.compute, F.relu)  # not in place: its input may be kept
        elif _is_cheap(module):
            lean[module] = partial(recipes.compute, module.forward)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            lean[module] = partial(_reading, recipes, module.forward)
        elif type(module) in _GATED:
            lean[module] = partial(_GATED[type(module)], recipes, module)
    return lean


def _is_cheap(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return not module.training
    # transformers is not always installed, so its activation functions are known by their file.
    is_cheap = isinstance(module, _CHEAP) or type(module).__module__ == "transformers.activations"
    return is_cheap and not getattr(module, "inplace", False)


def _reading(recipes: Recipes, forward: Forward, x: Tensor) -> Tensor:
    y: Tensor = forward(recipes.read(x))
    return y


def _glu_mlp(recipes: Recipes, mlp: Any, x: Tensor) -> Tensor:
    first, second = mlp.fc1(x).chunk(2, dim=mlp.chunk_dim)
    gate, value = (second, first) if mlp.gate_last else (first, second)
    y: Tensor = mlp.fc2(mlp.norm(mlp.drop1(_product(recipes, mlp, gate, value))))
    return mlp.drop2(y)


def _swiglu(recipes: Recipes, mlp: Any, x: Tensor) -> Tensor:
    y: Tensor = _product(recipes, mlp, mlp.fc1_g(x), mlp.fc1_x(x))
    return mlp.drop2(mlp.fc2(mlp.norm(mlp.drop1(y))))


def _geglu_mlp(recipes: Recipes, mlp: Any, x: Tensor) -> Tensor:
    x = mlp.norm(x)
    y: Tensor = _product(recipes, mlp, mlp.w0(x), mlp.w1(x))
    return mlp.drop2(mlp.w2(mlp.drop1(y)))


_GATED: dict[type[nn.Module], Forward] = {
    GluMlp: _glu_mlp,
    SwiGLU: _swiglu,
    GeGluMlp: _geglu_mlp,
}


def _product(recipes: Recipes, mlp: Any, gate: Tensor, value: Tensor) -> Tensor:
    return recipes.compute(lambda gate, value: mlp.act(gate) * value, gate, value)
