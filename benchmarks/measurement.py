"""What one measurement found: pairs of step times, and the statistics of pairs.

The two steps of a pair follow each other at once, so what slows the machine for longer than a step slows both, and falls out of
their ratio. Medians and quartiles, because the rest of the noise is one-sided and has long tails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class Quartiles:
    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quartiles:
        """Interpolated between the values, which are taken as the whole population; one value is all three."""
        data = list(values)
        if not data:
            raise ValueError("quartiles of no values; measure at least one pair")
        if len(data) == 1:
            return cls(data[0], data[0], data[0])
        return cls(*quantiles(data, n=4, method="inclusive"))


def known_median(values: Iterable[float]) -> tuple[float, float]:
    """Between which values the median of all that could be measured lies, with 95 % confidence, however they are distributed.

    Above the k-th smallest and below the k-th largest of n, but for the chance that fewer than k of n fair coins show heads, twice
    (David and Nagaraja, Order Statistics, 3rd edition, 2003, 7.1). Without bounds where n is less than 6.
    """
    data = sorted(values)
    count, outside, place = len(data), 0, 0
    while 40 * (outside := outside + math.comb(count, place)) <= 2**count:
        place += 1
    return (data[place - 1], data[-place]) if place else (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One workload with one observer. Times are in seconds."""

    workload: str
    observer: str
    sites: int
    bare: list[float]  # a pair is bare[i] and watched[i]
    watched: list[float]
    own: list[float] = field(default_factory=list)  # the observer's own account of the same steps; empty where it keeps none
    background: float | None = None  # CPU seconds that other processes worked for the observer; None where it cannot be seen
    same_weights: bool = False  # whether both models ended equal to the last bit
    # Of the bare training and of the watched one, on a GPU; None elsewhere.
    memory: list[int] | None = None  # bytes of the device at peak
    waits: list[int] | None = None  # how often the host waited for the device in a stretch of some steps
    places: list[str] = field(default_factory=list)  # where only the watched one was seen to wait, by torch's own account

    def __post_init__(self) -> None:
        if len(self.bare) != len(self.watched):
            raise ValueError(f"{len(self.bare)} bare steps and {len(self.watched)} watched ones are no pairs")

    @property
    def step(self) -> float:
        """The median bare step."""
        return median(self.bare)

    @property
    def ratios(self) -> list[float]:
        """Of each pair, watched to bare."""
        return [watched / bare for bare, watched in zip(self.bare, self.watched, strict=True)]

    @property
    def ratio(self) -> Quartiles:
        return Quartiles.of(self.ratios)

    @property
    def differences(self) -> list[float]:
        """Of each pair, microseconds per residual site and step."""
        return [(watched - bare) / self.sites * 1e6 for bare, watched in zip(self.bare, self.watched, strict=True)]

    @property
    def per_site(self) -> Quartiles:
        """Microseconds per residual site and step."""
        return Quartiles.of(self.differences)

    @property
    def further_waits(self) -> int | None:
        """What watching made the host wait besides; by the witness who saw more of it."""
        return None if self.waits is None else max(self.waits[1] - self.waits[0], len(self.places))

    @property
    def own_ratio(self) -> float | None:
        """The ratio of step times by the observer's own account."""
        return 1 + median(self.own) / self.step if self.own else None

    @property
    def own_per_site(self) -> float | None:
        return median(self.own) / self.sites * 1e6 if self.own else None

    @property
    def background_per_step(self) -> float | None:
        return None if self.background is None else self.background / len(self.watched)
