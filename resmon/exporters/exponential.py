"""Counts by powers of two as the exponential histograms that Prometheus (native, schema 0) and OpenTelemetry (scale 0) have.

Both count in buckets (2^(i-1), 2^i], as a flight does, so nothing is estimated. What is at most the flight's lowest edge, zeros
among it, is the zero bucket, whose threshold that edge is. What is larger than the highest edge, of which the flight knows no more,
stands in the bucket above it. What is not finite is in no bucket and not in the count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from resmon.records import DURATION_EDGES, MAGNITUDE_LARGER, MAGNITUDE_LOW, MAGNITUDE_ZERO, Floats, Ints

DURATION_LOW = math.frexp(DURATION_EDGES[0])[1] - 1  # exponent of the first edge


@dataclass(frozen=True, slots=True)
class Exponential:
    """One histogram; cumulative, as all of resmon's are.

    `counts` are those of neighbouring buckets, the first of which is (2^(first-1), 2^first]: `first` is Prometheus' index;
    OpenTelemetry's is one less.
    """

    sum: float
    zero_threshold: float
    zero_count: int
    first: int
    counts: list[int]
    tiny: int = 0  # of zero_count, those that are not zero

    def without_threshold(self) -> Exponential:
        """For those to whom only zero is zero: what is larger, up to the threshold, stands in the bucket that ends there."""
        zeros = self.zero_count - self.tiny
        return replace(self, zero_threshold=0.0, zero_count=zeros, first=self.first - 1, counts=[self.tiny, *self.counts], tiny=0)

    @property
    def count(self) -> int:
        return self.zero_count + sum(self.counts)


def magnitudes(buckets: Ints, sums: Floats) -> Iterator[Exponential]:
    """Of each row of `buckets` [R, MAGNITUDE_COLUMNS] and `sums` [R]."""
    lowest = 2.0**MAGNITUDE_LOW
    for counts, total in zip(buckets.tolist(), sums.tolist(), strict=True):
        zero = counts[0] + counts[MAGNITUDE_ZERO]
        yield Exponential(total, lowest, zero, MAGNITUDE_LOW + 1, counts[1 : MAGNITUDE_LARGER + 1], counts[0])


def durations(buckets: Ints, total: float) -> Exponential:
    """Of the steps of a rank: `buckets` [DURATION_COLUMNS], `total` in seconds."""
    shortest, *counts = buckets.tolist()
    return Exponential(total, float(DURATION_EDGES[0]), shortest, DURATION_LOW + 1, counts)
