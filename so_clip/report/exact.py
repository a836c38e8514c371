"""Small-sample tests of significance, by their textbook formulas."""

import math
from collections.abc import Sequence


def paired_t(differences: Sequence[float]) -> float:
    """Return the two-sided p of Student's t test that paired differences have mean 0.

    NaN for fewer than two, and where all are the same but not 0: nothing is known of their spread.

    Source: Student, The probable error of a mean, Biometrika 6, 1908; the distribution for a whole
    number of degrees of freedom is Abramowitz and Stegun's 26.7.3 and 26.7.4.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    mean = math.fsum(differences) / n
    # Rounding alone must not look like spread.
    if max(differences) - min(differences) <= 1e-9 * max(map(abs, differences)):
        return math.nan if mean else 1.0
    variance = math.fsum((each - mean) ** 2 for each in differences) / (n - 1)
    return 1.0 - _within(abs(mean) / math.sqrt(variance / n), n - 1)


def _within(t: float, degrees: int) -> float:
    """Return the probability that Student's t lies between -t and t."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    series = math.sin(angle) * total
    return min(1.0, 2 / math.pi * (angle + series) if odd else series)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p that wins and losses are equally likely; 1 where there are none.

    p = min(1, 2 P(X <= min(wins, losses))) for X binomial of n = wins + losses and 1/2. Of two
    classifiers' answers to the same images this is McNemar's exact test.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions,
    Psychometrika 12, 1947.
    """
    n = wins + losses
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1))
        for k in range(min(wins, losses) + 1)
    )
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, in their order; NaN stays and does not count.

    The k-th smallest of m becomes max over i <= k of min(1, (m - i + 1) p_i).

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    known = sorted((p, at) for at, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[at] = largest
    return adjusted
