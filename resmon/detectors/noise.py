"""How much a series of numbers moves by itself, apart from its trend."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

# The median absolute deviation of a normal distribution, times this, is its standard deviation.
MAD = 1.4826


def deviation(values: Sequence[float]) -> float:
    """The robust standard deviation: MAD times the median distance from the median."""
    if len(values) < 2:
        return 0.0
    middle = median(values)
    return MAD * median(abs(value - middle) for value in values)


def spread(values: Sequence[float]) -> float:
    """That of the numbers around a slow trend: of the differences of those that follow on each other, over the square root of 2."""
    numbers = list(values)
    return deviation([after - before for before, after in pairwise(numbers)]) / 2**0.5
