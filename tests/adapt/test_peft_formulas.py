"""LoKr, OFT, RandLoRA and FourierFT compute, and differentiate, what their papers say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.adapt.peft_methods import Peft, adapted_layers
from tests.adapt.given import classifier
from tests.oracles import structured_oracle as oracle

PATTERNS = [
    *("attn.in_proj.weight", "attn.out_proj.weight"),
    *("mlp.c_fc.weight", "mlp.c_proj.weight"),
]
Formula = Callable[[Tensor, dict[str, Tensor]], Tensor]
CASES: dict[str, tuple[str, dict[str, Any], Formula]] = {
    "lokr": (
        *("lokr", {"rank": 2, "alpha": 3}),
        lambda weight, own: oracle.lokr(weight, own, 3 / 2),
    ),
    "lokr, both decomposed": (
        *("lokr", {"rank": 2, "alpha": 3, "decompose_both": True}),
        lambda weight, own: oracle.lokr(weight, own, 3 / 2),
    ),
    "lokr, whole, small first factor": (
        *("lokr", {"rank": 32, "alpha": 3, "factor": 4}),
        lambda weight, own: oracle.lokr(weight, own, 3 / 32),
    ),
    "oft": ("oft", {"block_size": 8}, lambda weight, own: oracle.oft(weight, own, 8)),
    "oft, one for all blocks": (
        *("oft", {"block_size": 16, "block_share": True}),
        lambda weight, own: oracle.oft(weight, own, 16),
    ),
    "randlora": (
        *("randlora", {"rank": 5, "alpha": 7}),
        lambda weight, own: oracle.randlora(weight, own, 7 / 5),
    ),
    "randlora, sparse": (
        *("randlora", {"rank": 16, "alpha": 8, "sparse": True}),
        lambda weight, own: oracle.randlora(weight, own, 8 / 16),
    ),
    "fourierft": (
        *("fourierft", {"frequencies": 40, "scaling": 9}),
        lambda weight, own: oracle.fourierft(weight, own, 9),
    ),
}


def adapted(kind: str, options: dict[str, Any], by: float = 0.1) -> list[Any]:
    """Return one layer of each size, in float64, its adapter moved away from its first values."""
    made = classifier()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in Peft(kind, PATTERNS, **options)(made).values():
            value.data = value.double()
            value += by * torch.randn(value.shape, generator=draw, dtype=value.dtype)
    layers = {tuple(layer.base_layer.weight.shape): layer for layer in adapted_layers(made)}
    assert {into - out for out, into in layers} > {0}  # square, wide and high ones
    return [*layers.values()]


def parts(layer: Any) -> dict[str, Tensor]:
    """Return an adapter's tensors, by what is left of their names."""
    values = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    own = {
        name.split(".")[0]: value
        for name, value in values.items()
        if not name.startswith("base_layer") and value.is_floating_point()
    }
    places = getattr(layer, "indices", None)
    return own if places is None else own | {"places": places["default"]}


@pytest.mark.parametrize(("kind", "options", "formula"), CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_the_formulas(
    kind: str, options: dict[str, Any], formula: Formula
) -> None:
    for layer in adapted(kind, options):
        base, draw = layer.base_layer, torch.Generator().manual_seed(4)
        x_BI = torch.randn(3, base.in_features, generator=draw, dtype=torch.float64)
        weights_BO = torch.randn(3, base.out_features, generator=draw, dtype=torch.float64)
        trained = [value for value in layer.parameters() if value.requires_grad]
        expected_BO = F.linear(x_BI, formula(base.weight, parts(layer)), base.bias)
        found_BO = layer(x_BI)
        # FourierFT's update is made in float32.
        close = {"rtol": 1e-4, "atol": 1e-5} if kind == "fourierft" else {"rtol": 0, "atol": 1e-9}
        torch.testing.assert_close(found_BO, expected_BO, **close)
        assert (found_BO - base(x_BI)).abs().max() > 1e-3
        found, expected = (
            torch.autograd.grad((y_BO * weights_BO).sum(), trained)
            for y_BO in (found_BO, expected_BO)
        )
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **close)


def test_a_small_turn_of_ofts_is_nearly_cayleys_own_and_keeps_lengths() -> None:
    for layer in adapted("oft", {"block_size": 8}, by=0.01):
        weight_OI, own = layer.base_layer.weight, parts(layer)
        x_BI = torch.eye(layer.base_layer.in_features, dtype=torch.float64)
        found_BO = layer(x_BI) - layer.base_layer.bias
        exact_OI = oracle.oft(weight_OI, own, 8, exact=True)
        # The first power of Q that is left out is the fourth.
        torch.testing.assert_close(found_BO.T, exact_OI, rtol=0, atol=1e-4)
        assert (found_BO.T - weight_OI).abs().max() > 1e-3
        lengths = (torch.linalg.vector_norm(matrix, dim=1) for matrix in (exact_OI, weight_OI))
        torch.testing.assert_close(*lengths, rtol=0, atol=1e-12)


def test_fourierfts_frequencies_are_different_ones() -> None:
    for layer in adapted("fourierft", {"frequencies": 40}):
        assert len({*map(tuple, parts(layer)["places"].T.tolist())}) == 40
