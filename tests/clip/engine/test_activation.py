"""QuickGELU with less memory: the values and slopes of open_clip's."""

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from so_clip.clip.engine.activation import QuickGELU, lean_quick_gelu
from tests.helpers.kept_tensors import kept_bytes
from tests.helpers.small_models import small_clip

plain = open_clip.transformer.QuickGELU()


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_it_is_open_clips_bit_by_bit(values: list[float]) -> None:
    x = torch.tensor(values)
    assert torch.equal(QuickGELU()(x), plain(x))


def slope(activation: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(activation(x).sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_its_slope_is_exact_to_rounding(dtype: torch.dtype) -> None:
    x = torch.linspace(-30, 30, 4001, dtype=dtype)
    found, exact = slope(QuickGELU(), x), slope(plain, x.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_it_keeps_only_its_input() -> None:
    x = torch.randn(10, 64, requires_grad=True)
    y = x.nbytes
    assert kept_bytes(lambda: QuickGELU()(x), [x]) == y
    assert kept_bytes(lambda: plain(x), [x]) == 2 * y


@pytest.mark.slow
def test_it_compiles() -> None:
    x = torch.randn(3, 4)
    compiled = torch.compile(QuickGELU(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(slope(compiled, x), slope(plain, x))


def test_every_quick_gelu_of_a_model_is_replaced() -> None:
    model = small_clip(quick_gelu=True)
    names = [*model.state_dict()]
    lean_quick_gelu(model)
    lean_quick_gelu(model)
    kinds = [type(module) for name, module in model.named_modules() if name.endswith("gelu")]
    assert kinds == [QuickGELU] * 4
    assert [*model.state_dict()] == names
    other = small_clip()
    lean_quick_gelu(other)
    assert not any(isinstance(module, QuickGELU) for module in other.modules())
