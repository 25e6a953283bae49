"""How sure one can be of a figure: the interval of a mean, and whether two results differ by more than chance.

SciPy has the distributions; it is slow to import, so it is imported where a figure is asked for.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.utils.objective import is_share
from trainer.utils.screen import shown

LEVEL = 0.95  # of all intervals
CHANCE = 0.05  # a difference with a smaller p is called one


@dataclass(frozen=True)
class Mean:
    """The mean of n figures, and where the mean of infinitely many lies with a probability of LEVEL.

    Attributes:
        value: the mean.
        std: the standard deviation of the figures (n - 1); None for a single one.
        low: end of Student's interval; None for a single figure.
        high: likewise.
        n: how many figures.
    """

    value: float
    std: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.std is None:
            return f"{shown(self.value)} (n = {self.n})"
        assert self.low is not None
        assert self.high is not None
        interval = f"{LEVEL:.0%} interval of the mean {shown(self.low)} to {shown(self.high)}"
        return f"{shown(self.value)} +- {shown(self.std)} (n = {self.n}), {interval}"


def mean_of(values: Sequence[float], metric: str = "") -> Mean:
    """The mean of one or more figures with Student's t interval.

    Args:
        values: the figures.
        metric: what they are; the interval of an accuracy or F1 ends at 0 and 1, where that of a few figures may leave
            them.
    """
    mean, n = statistics.fmean(values), len(values)
    if n == 1 or not all(map(math.isfinite, values)):
        return Mean(mean, None, None, None, n)
    std = statistics.stdev(values)
    half = quantile(n - 1) * std / math.sqrt(n)
    low, high = clipped(mean - half, mean + half, metric, 0.0)
    return Mean(mean, std, low, high, n)


def clipped(low: float, high: float, metric: str, least: float) -> tuple[float, float]:
    """An interval without what no accuracy, or difference of two, can be: below `least` or above 1."""
    return (max(low, least), min(high, 1.0)) if is_share(metric) else (low, high)


def quantile(freedom: float) -> float:
    """The number of standard errors on either side that make an interval of LEVEL, for Student's t."""
    # what scipy.stats.t.ppf calls, for half the time to import
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def mcnemar(only_a: int, only_b: int) -> float:
    """The probability of a split at least as uneven by chance: McNemar's exact test, two-sided.

    Args:
        only_a: examples that A has right and B wrong.
        only_b: examples that B has right and A wrong.
    Source: McNemar 1947, with the binomial distribution instead of its approximation.
    """
    from scipy.special import bdtr

    n = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), n, 0.5))) if n else 1.0


def difference(a: Sequence[float], b: Sequence[float], metric: str = "") -> tuple[float, float, float]:
    """Mean of a minus mean of b with its interval (difference, low, high), for two figures or more of each.

    Args:
        a: the figures of the one.
        b: of the other.
        metric: what they are, as for mean_of.

    Source: Welch 1947, for means of unequal variances.
    """
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    apart, error = statistics.fmean(a) - statistics.fmean(b), math.sqrt(sum(parts))
    if error == 0:
        return apart, apart, apart
    freedom = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (a, b), strict=True))
    half = quantile(freedom) * error
    return apart, *clipped(apart - half, apart + half, metric, -1.0)
