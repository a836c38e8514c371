"""The 95 % interval of a mean over tasks."""

import numpy as np
import pytest
from scipy import stats

from so_clip.results.interval import half_width


@pytest.mark.parametrize("count", [2, 3, 600])
def test_it_is_that_of_students_t_test(count):
    values = np.random.default_rng(count).uniform(20, 90, count)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert half_width(values.tolist()) == pytest.approx((high - low) / 2)
    assert float(np.mean(values)) - half_width(values.tolist()) == pytest.approx(low)


def test_equal_values_have_an_interval_of_zero():
    assert half_width([50.0, 50.0, 50.0]) == 0
