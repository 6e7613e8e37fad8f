"""What values are scattered around, and how well that is known, whatever they are distributed like.

The middle is Hodges and Lehmann's: the median of the means of all pairs of values, each with itself too. It lies between the k-th
smallest and the k-th largest of these means, but for the chance, twice, that Wilcoxon's sum of signed ranks is less than k, which
is counted. That asks of the values that they are independent, and as often too high as too low by the same: one that is far out
moves the interval by a place or two. (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd edition, 2014, 3.2 and
3.3.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from statistics import median

CONFIDENCE = 0.95
FEWEST = 6  # values; of fewer even the whole range is less sure than that


@dataclass(frozen=True, slots=True)
class Interval:
    """The middle of a distribution, as `count` values of it tell; without bounds where they are too few to say."""

    middle: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        data = list(values)
        means = sorted((one + other) / 2 for one, other in combinations_with_replacement(data, 2))
        place = _place(len(data))
        low, high = (means[place - 1], means[-place]) if place else (-math.inf, math.inf)
        return cls(median(means), low, high, len(data))

    def __str__(self) -> str:
        known = f"{CONFIDENCE:.0%}: {self.low:.3f} to {self.high:.3f}" if self.count >= FEWEST else "too few for an interval"
        return f"{self.middle:.3f} ({known})"

    def needed(self, bound: float) -> int | None:
        """About how many values would keep such an interval to one side of a bound; None where no number would, as it is on it."""
        if self.count < FEWEST:
            return FEWEST
        away = abs(bound - self.middle)
        half = self.high - self.middle if bound > self.middle else self.middle - self.low
        return math.ceil(self.count * (half / away) ** 2) if away > half / 20 else None


def _place(count: int) -> int:
    """The largest k for which the interval is that sure; 0 where there is none."""
    ways = [1]  # that signs can be given to the ranks so far, by the sum of those that are positive
    for rank in range(1, count + 1):
        longer = [*ways, *[0] * rank]
        for total, number in enumerate(ways):
            longer[total + rank] += number
        ways = longer
    outside = 0
    for k, number in enumerate(ways):
        outside += number
        if 2 * outside > (1 - CONFIDENCE) * 2**count:
            return k
    return 0
