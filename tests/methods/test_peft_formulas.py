"""LoKr, OFT, RandLoRA and FourierFT: values and gradients against the papers' formulas."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.structured_cases import (
    CASES,
    Formula,
    adapted,
    one_of_each_size,
    parts,
    tolerance,
)
from tests.oracles import structured_oracle as oracle


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(("kind", "options", "formula"), CASES.values(), ids=CASES)
def test_outputs_and_gradients_equal_the_formula(
    kind: str, options: dict[str, Any], formula: Formula
) -> None:
    made, _ = adapted(kind, options)
    for layer in one_of_each_size(made):
        base, draw = layer.base_layer, torch.Generator().manual_seed(4)
        x_BI = torch.randn(3, base.in_features, generator=draw, dtype=torch.float64)
        weights_BO = torch.randn(3, base.out_features, generator=draw, dtype=torch.float64)
        trained = [value for value in layer.parameters() if value.requires_grad]
        expected_BO = F.linear(x_BI, formula(base.weight, parts(layer)), base.bias)
        found_BO = layer(x_BI)
        torch.testing.assert_close(found_BO, expected_BO, **tolerance(kind))
        assert (found_BO - base(x_BI)).abs().max() > 1e-3
        found, expected = (
            torch.autograd.grad((y_BO * weights_BO).sum(), trained)
            for y_BO in (found_BO, expected_BO)
        )
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance(kind))


def test_a_small_rotation_of_oft_is_nearly_cayleys_and_keeps_lengths() -> None:
    made, _ = adapted("oft", {"block_size": 8}, by=0.01)
    for layer in one_of_each_size(made):
        weight_OI, own = layer.base_layer.weight, parts(layer)
        x_BI = torch.eye(layer.base_layer.in_features, dtype=torch.float64)
        found_BO = layer(x_BI) - layer.base_layer.bias
        exact_OI = oracle.oft(weight_OI, own, 8, exact=True)
        # The series in Q omits the fourth and higher powers.
        torch.testing.assert_close(found_BO.T, exact_OI, rtol=0, atol=1e-4)
        assert (found_BO.T - weight_OI).abs().max() > 1e-3
        lengths = (torch.linalg.vector_norm(matrix, dim=1) for matrix in (exact_OI, weight_OI))
        torch.testing.assert_close(*lengths, rtol=0, atol=1e-12)


def test_fourierfts_frequencies_are_distinct() -> None:
    made, _ = adapted("fourierft", {"frequencies": 40})
    for layer in one_of_each_size(made):
        assert len({*map(tuple, parts(layer)["places"].T.tolist())}) == 40
