"""95 % intervals: of a mean over sampled tasks, and of an accuracy over test items."""

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


def wilson(correct: float, total: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy over independent items, in percent.

    Wilson's score interval, with n items, p = correct / n and z = 1.96:

        (p + z²/2n ± z √(p (1 - p) / n + z²/4n²)) / (1 + z²/n)

    It stays within 0 and 100, also if no item or every item is correct.

    Args:
        correct: items that are classified correctly, from 0 to `total`; or their mean over runs.
        total: n, 1 or more.

    Returns:
        The lower and the upper end.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, Journal of
        the American Statistical Association 22 (1927).
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, spread = correct / total, z * z / total
    center = share + spread / 2
    reach = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = ((center + sign * reach) / (1 + spread) for sign in (-1, 1))
    return 100.0 * max(0.0, low), 100.0 * min(1.0, high)
