"""AdamW with clipping: its steps against AdamW on gradients that are clipped by hand."""

import pytest
import torch

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.optim.clipped_adamw import ClippedAdamW


def _tensors() -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return [
        torch.randn(shape, generator=draws, dtype=torch.float64).requires_grad_()
        for shape in ((4, 3), (5,))
    ]


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
def test_a_step_is_adamws_on_the_gradient_scaled_to_the_largest_norm(max_norm: float) -> None:
    ours, plain = _tensors(), _tensors()
    optimizer = ClippedAdamW(ours, lr=0.1, max_norm=max_norm)
    expected = torch.optim.AdamW(plain, lr=0.1, weight_decay=0.1)
    for _ in range(4):
        for tensor in (*ours, *plain):
            tensor.grad = 2 * tensor.detach() + 1
        norm = sum(float((tensor.grad**2).sum()) for tensor in plain) ** 0.5
        for tensor in plain:
            tensor.grad *= min(1, max_norm / (norm + 1e-6))
        optimizer.step()
        expected.step()
    for found, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_closure_is_called_before_the_gradient_is_clipped() -> None:
    tensor = torch.ones(2, requires_grad=True)
    optimizer = ClippedAdamW([tensor], max_norm=0.5)

    def closure() -> torch.Tensor:
        loss = 100 * tensor.sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 200
    assert float(tensor.grad.norm()) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("max_norm", [0, -1, "x", True])
def test_a_bad_norm_is_refused(max_norm: object) -> None:
    with pytest.raises(InputError, match=f"optimizer.max_norm={max_norm}: must be a number above"):
        ClippedAdamW(_tensors(), max_norm=max_norm)


def test_wise_ft_trains_with_its_papers_regularisation() -> None:
    chosen = from_config(compose(["method=wise_ft"])).method.optimizer
    options = {"lr": 3e-5, "weight_decay": 0.1, "max_norm": 1}
    assert chosen.options == {"betas": [0.9, 0.999], "eps": 1e-8} | options
    assert chosen.name == "clipped_adamw"
