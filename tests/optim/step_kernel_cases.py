"""The kernel of SO's step in Triton's interpreter; test_step_kernel.py runs this file."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.optim.step_kernel import available
from tests.helpers.kernel_rows import (
    Case,
    ExactRoots,
    Gradients,
    Rows,
    extreme,
    normal,
    rule_with,
    tied,
)
from tests.helpers.packed_training import Training, assert_same

assert os.environ["TRITON_INTERPRET"] == "1", "Triton reads it when it is imported"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, about infinity

HALF = [None, torch.bfloat16, torch.float16]


def check(case: Case, gradients: Gradients, steps: int) -> None:
    """Step the kernel and the torch path, with a redraw in the middle, and compare all bits."""
    rows = Rows(case)
    for step in range(steps):
        if step == steps // 2:
            rows.redraw()
            rows.locate()
        rows.take_step(gradients)
        rows.assert_equal()


def test_steps_agree_with_the_torch_path_bit_for_bit() -> None:
    assert available(torch.device("cpu"))
    case = Case([3, 17], rule_with(), half_dtype=torch.bfloat16)
    check(case, normal, steps=2)


def test_ties_decay_ages_and_a_move_of_the_union_agree_bit_for_bit() -> None:
    rule = rule_with(order="update_first", weight_decay=0.1, maximize=True)
    case = Case([16], rule, weight_dtype=torch.bfloat16, has_ages=True, first_step=17_999)
    check(case, tied, steps=3)


@pytest.mark.slow
def test_weights_half_way_between_two_bfloat16_are_rounded_to_the_even_one() -> None:
    # Every entry moves by 2^-9, half a unit in the last place of weights from 1/2 to 1.
    rule = rule_with(lr=2**-9, beta1=0.5, beta2=0.0, eps=0.0)
    check(Case([40], rule, weight_dtype=torch.bfloat16, has_ages=True), normal, steps=2)


@pytest.mark.slow
def test_zeros_keep_their_sign() -> None:
    # Without a memory, most entries that are kept have a moment of 0 or -0.
    check(Case([40], rule_with(beta1=0.0, maximize=True)), tied, steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["prune_first", "update_first"])
@pytest.mark.parametrize("gradients", [normal, tied, extreme])
def test_the_largest_rows_agree_bit_for_bit(gradients: Gradients, order: str) -> None:
    case = Case([2048, 255, 1000], rule_with(order=order), half_dtype=torch.float16)
    check(case, gradients, steps=4)


@pytest.mark.slow
@settings(max_examples=30, derandomize=True)
@given(st.data())
def test_any_rows_agree_bit_for_bit(data: st.DataObject) -> None:
    one_of = lambda *choices: data.draw(st.sampled_from(choices))  # noqa: E731
    rule = rule_with(
        beta1=one_of(0.0, 0.5, 0.9),
        beta2=one_of(0.0, 0.9, 0.999),
        eps=one_of(0.0, 1e-8),
        order=one_of("prune_first", "update_first"),
        weight_decay=one_of(0.0, 0.1),
        maximize=one_of(False, True),
    )
    sizes = st.sampled_from([1, 2, 3, 17, 127, 128, 129, 255, 1000])
    weight_dtype = one_of(torch.float32, torch.bfloat16, torch.float16)
    case = Case(
        sizes=data.draw(st.lists(sizes, min_size=1, max_size=3)),
        rule=rule,
        weight_dtype=weight_dtype,
        half_dtype=one_of(*HALF) if weight_dtype == torch.float32 else None,
        has_ages=one_of(False, True),
        first_step=one_of(0, 100, 30_000),
        seed=data.draw(st.integers(0, 1000)),
    )
    check(case, one_of(normal, tied, extreme), steps=4)


Entry = tuple[float, float, int]  # μ, ν, age


def oracle_step(
    weights: list[float], moments: dict[int, Entry], gradient: dict[int, float], case: Case, t: int
) -> None:
    """Take one step as the paper writes it, entry by entry, in Python's floats."""
    rule = case.rule
    count = len(moments)
    for index in moments.keys() | gradient.keys():
        mu, nu, age = moments.get(index, (0.0, 0.0, 0))
        g = 0.0
        if index in gradient:
            g = -gradient[index] if rule.maximize else gradient[index]
            g += rule.weight_decay * weights[index]
        mu = rule.beta1 * mu + (1 - rule.beta1) * g
        nu = rule.beta2 * nu + (1 - rule.beta2) * g * g
        moments[index] = mu, nu, age + 1
    ranked = sorted(moments, key=lambda index: (-abs(moments[index][0]), index))
    for index in ranked if rule.order == "update_first" else ranked[:count]:
        mu, nu, age = moments[index]
        steps = age if case.has_ages else t
        mean, scale = mu / (1 - rule.beta1**steps), nu / (1 - rule.beta2**steps)
        weights[index] -= rule.lr * mean / (scale**0.5 + rule.eps)
    for index in ranked[count:]:
        del moments[index]


@pytest.mark.slow
@pytest.mark.parametrize("has_ages", [False, True])
def test_steps_agree_with_a_plain_oracle_in_float64(has_ages: bool) -> None:
    order = "update_first" if has_ages else "prune_first"
    case = Case([20], rule_with(order=order, weight_decay=0.05), has_ages=has_ages, seed=3)
    rows = Rows(case)
    weights = rows.torch_weights[0].double().tolist()
    moments: dict[int, Entry] = dict.fromkeys(rows.supports[0].tolist(), (0.0, 0.0, 0))
    for step in range(1, 9):
        if step in (4, 7):
            rows.redraw()
            rows.locate()
        (grad_M,) = rows.take_step()
        gradient = dict(zip(rows.supports[0].tolist(), grad_M.double().tolist(), strict=True))
        oracle_step(weights, moments, gradient, case, step)
        index_M, mu_M, nu_M = (
            rows.moments.index_RM[0],
            *(
                tensor[0].double()
                for tensor in (rows.moments.exp_avg_RM, rows.moments.exp_avg_sq_RM)
            ),
        )
        assert set(index_M.tolist()) == set(moments)
        expected = torch.tensor([moments[index][:2] for index in index_M.tolist()]).double()
        torch.testing.assert_close(mu_M, expected[:, 0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(nu_M, expected[:, 1], rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(rows.flat[:-1].tolist(), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bias_correction", "static"), [("step", False), ("step", True), ("age", True)]
)
def test_so_steps_packed_weights_by_the_kernel(bias_correction: str, static: bool) -> None:
    packed = Training(packed=True, static=static, bias_correction=bias_correction, T=1)
    plain = Training(packed=False, bias_correction=bias_correction, T=1)
    with ExactRoots():
        assert_same(packed.take(2), plain.take(2))
    (rows,) = packed.optimizer._stepping._packed[0].values()
    assert rows._uses_kernel
    arena = rows.weights.arena
    assert torch.equal(arena.half, arena.flat.bfloat16())
