"""Student's paired t test, the exact sign test, and Holm's adjustment of p values."""

import math
from collections.abc import Sequence


def paired_t(differences: Sequence[float]) -> float:
    """Return the two-sided p of Student's t test that paired differences have mean 0.

    NaN for fewer than two differences, and if all are equal but not 0: their spread is unknown.
    """
    from scipy import stats  # an extra, which the tables alone do not need

    if len(differences) < 2:
        return math.nan
    # Rounding errors must not look like spread.
    if max(differences) - min(differences) <= 1e-9 * max(map(abs, differences)):
        return math.nan if math.fsum(differences) else 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p that wins and losses are equally likely; 1 if there are none."""
    from scipy import stats

    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for their number, in their order; NaN stays and does not count.

    The k-th smallest of m becomes max over i <= k of min(1, (m - i + 1) p_i).
    """
    known = sorted((p, at) for at, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[at] = largest
    return adjusted
