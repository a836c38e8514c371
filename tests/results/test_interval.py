"""The 95 % intervals of a mean over tasks and of an accuracy."""

import numpy as np
import pytest
from scipy import stats

from so_clip.results.interval import half_width, wilson


@pytest.mark.parametrize("count", [2, 3, 600])
def test_it_is_that_of_students_t_test(count):
    values = np.random.default_rng(count).uniform(20, 90, count)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert half_width(values.tolist()) == pytest.approx((high - low) / 2)
    assert float(np.mean(values)) - half_width(values.tolist()) == pytest.approx(low)


def test_equal_values_have_an_interval_of_zero():
    assert half_width([50.0, 50.0, 50.0]) == 0


@pytest.mark.parametrize(("correct", "total"), [(0, 277), (1, 3), (158, 277), (277, 277), (1, 1)])
def test_the_interval_of_an_accuracy_is_wilsons(correct, total):
    interval = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    assert wilson(correct, total) == pytest.approx((100 * interval.low, 100 * interval.high))
    assert 0 <= wilson(correct, total)[0] <= wilson(correct, total)[1] <= 100
