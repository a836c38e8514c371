"""The mean over sampled tasks, and its 95 % interval."""

import math
import statistics
from collections.abc import Sequence
from importlib.util import find_spec

from so_clip.errors import InputError
from so_clip.system.commands import install

CONFIDENCE = 0.95


def check_intervals() -> None:
    """Raise InputError if the package that computes intervals is not installed."""
    if find_spec("scipy") is None:
        raise InputError(
            f"sampled tasks need scipy for their 95 % interval: {install('so-clip[report]')}."
        )


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of the mean, by Student's t distribution.

        t(0.975, n - 1) s / √n,  s: the sample standard deviation

    Args:
        values: n independent numbers, such as the accuracies of tasks. n is 2 or more.
    """
    count = len(values)
    return quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)


def quantile(freedom: float) -> float:
    """Return the half width of a 95 % interval in standard errors, by Student's t distribution.

    Args:
        freedom: degrees of freedom.
    """
    from scipy import stats  # an extra, which other runs do not need

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
