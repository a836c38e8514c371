"""Tests of significance against scipy's, and by what they promise."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from so_clip.report.significance import holm, paired_t, sign_test

numbers = st.floats(-100, 100).map(lambda value: round(value, 3))
p_values = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12)


@given(st.lists(numbers, min_size=2, max_size=40))
def test_paired_t_is_scipys(differences):
    if max(differences) - min(differences) < 1e-6:
        return
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert paired_t(differences) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("count", range(2, 12))
def test_paired_t_for_each_number_of_degrees(count):
    differences = [0.3 + 0.7 * (-1) ** at / (at + 1) for at in range(count)]
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert paired_t(differences) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("differences", "p"),
    [([], math.nan), ([1.0], math.nan), ([0.0, 0.0], 1.0), ([2.0, 2.0, 2.0], math.nan)],
)
def test_paired_t_says_nothing_where_nothing_is_known(differences, p):
    assert paired_t(differences) == pytest.approx(p, nan_ok=True)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_sign_test_is_scipys(wins, losses):
    expected = stats.binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9, abs=1e-200)


@given(st.integers(0, 12), st.integers(0, 12))
def test_sign_test_counts_what_is_at_least_as_uneven(wins, losses):
    """All outcomes of n fair coins, one by one."""
    n, gap = wins + losses, abs(wins - losses)
    if n > 14:
        return
    uneven = sum(abs(2 * sum(coins) - n) >= gap for coins in product((0, 1), repeat=n))
    assert sign_test(wins, losses) == pytest.approx(uneven / 2**n)


def test_sign_test_of_a_whole_imagenet_is_quick_and_finite():
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


def test_holm_of_a_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
