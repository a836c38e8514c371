"""The t test, the sign test and Holm's adjustment against slow definitions."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss

from so_clip.report.exact_tests import holm, paired_t, sign_test

p_values = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 12])
def test_paired_t_is_the_tail_of_students_density(count):
    differences = np.array([0.3 + 0.7 * (-1) ** at / (at + 1) for at in range(count)])
    degrees = count - 1
    t = abs(differences.mean()) / (differences.std(ddof=1) / math.sqrt(count))
    # P(|T| < t) by numerical integration of the density, with x = sqrt(degrees) tan(u).
    nodes, weights = leggauss(200)
    end = math.atan(t / math.sqrt(degrees))
    integral = float((weights * np.cos(end * (nodes + 1) / 2) ** (degrees - 1)).sum()) * end / 2
    beta = math.gamma(degrees / 2) * math.gamma(0.5) / math.gamma((degrees + 1) / 2)
    assert paired_t(differences.tolist()) == pytest.approx(1 - 2 * integral / beta, abs=1e-12)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([], math.nan),
        ([1.0], math.nan),
        ([0.0, 0.0], 1.0),
        ([2.0, 2.0, 2.0], math.nan),
        ([0.1 + 0.2, 0.3], math.nan),  # the spread is a rounding error
    ],
)
def test_paired_t_is_nan_if_the_spread_is_unknown(differences, p):
    assert paired_t(differences) == pytest.approx(p, nan_ok=True)


@settings(max_examples=30)
@given(st.integers(0, 7), st.integers(0, 7))
def test_the_sign_test_counts_outcomes_that_are_at_least_as_uneven(wins, losses):
    """Enumerates all outcomes of n fair coins."""
    n, gap = wins + losses, abs(wins - losses)
    uneven = sum(abs(2 * sum(coins) - n) >= gap for coins in product((0, 1), repeat=n))
    assert sign_test(wins, losses) == pytest.approx(uneven / 2**n)


def test_the_sign_test_of_all_imagenet_images_is_finite():
    assert 0 < sign_test(26_000, 24_000) < 1e-15
    assert sign_test(50_000, 0) == pytest.approx(0)


@given(p_values)
def test_holm_is_its_definition(given_p):
    known = [p for p in given_p if not math.isnan(p)]
    adjusted = holm(given_p)
    for p, result in zip(given_p, adjusted, strict=True):
        if math.isnan(p):
            assert math.isnan(result)
            continue
        below = [other for other in known if other <= p]
        expected = max((len(known) - sorted(known).index(other)) * other for other in below)
        assert result == pytest.approx(min(1.0, expected))


def test_holm_of_a_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
