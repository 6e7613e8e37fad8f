"""A median and how well it is known, whatever the values are distributed like.

The median of what the values are drawn from lies between the k-th smallest and the k-th largest of them, but for the chance that
fewer than k of n tosses of a coin show heads, twice. That asks nothing of the values but that they are independent and of one
distribution: an odd one, far out, moves the interval by a place. (David and Nagaraja, Order Statistics, 3rd edition, 2003, 7.1;
Le Boudec, Performance Evaluation of Computer and Communication Systems, 2010, 2.2.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95
FEWEST = 6  # values; of fewer even their whole range is less sure than that


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the median of a distribution lies, as `count` values of it tell; without bounds where they are too few to say."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        ordered = sorted(values)
        rank = _rank(len(ordered))
        low, high = (ordered[rank - 1], ordered[-rank]) if rank else (-math.inf, math.inf)
        return cls(median(ordered), low, high, len(ordered))

    def __str__(self) -> str:
        known = f"{CONFIDENCE:.0%}: {self.low:.3f} to {self.high:.3f}" if self.count >= FEWEST else "too few for an interval"
        return f"{self.median:.3f} ({known})"

    def needed(self, bound: float) -> int | None:
        """About how many values would keep such an interval to one side of a bound; None where no number would, as it is on it."""
        if self.count < FEWEST:
            return FEWEST
        away = abs(bound - self.median)
        half = self.high - self.median if bound > self.median else self.median - self.low
        return math.ceil(self.count * (half / away) ** 2) if away > half / 20 else None


def _rank(count: int) -> int:
    """The largest k for which the interval is that sure; 0 where there is none."""
    outside, k = 0.0, 0  # the chance that fewer than k + 1 of so many tosses show heads
    while True:
        outside += math.comb(count, k) / 2**count
        if 2 * outside > 1 - CONFIDENCE:
            return k
        k += 1
