from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from resmon.exporters import exponential
from resmon.records import (
    DURATION_COLUMNS,
    DURATION_EDGES,
    MAGNITUDE_COLUMNS,
    MAGNITUDE_HIGH,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    MAGNITUDE_NONFINITE,
    MAGNITUDE_ZERO,
)


def bucket(value: float) -> int:
    """Prometheus' index of a value at schema 0, by its own rule."""
    mantissa, power = math.frexp(abs(value))
    return power - 1 if mantissa == 0.5 else power


def column(value: float) -> int:
    """The flight's column of a magnitude."""
    if not math.isfinite(value):
        return MAGNITUDE_NONFINITE
    if value == 0:
        return MAGNITUDE_ZERO
    return min(max(bucket(value), MAGNITUDE_LOW), MAGNITUDE_HIGH + 1) - MAGNITUDE_LOW


magnitudes = st.floats(0, allow_nan=False) | st.integers(-30, 30).map(lambda power: 2.0**power)


@given(st.lists(st.lists(magnitudes, max_size=40), min_size=1, max_size=3))
def test_every_magnitude_is_in_the_bucket_that_prometheus_has_for_it(rows: list[list[float]]) -> None:
    counts = np.zeros((len(rows), MAGNITUDE_COLUMNS), np.int64)
    for row, values in zip(counts, rows, strict=True):
        for value in values:
            row[column(value)] += 1
    sums = np.array([sum(value for value in values if math.isfinite(value)) for values in rows])
    for values, found, total in zip(rows, exponential.magnitudes(counts, sums), sums, strict=True):
        finite = [value for value in values if math.isfinite(value)]
        assert found.zero_threshold == 2.0**MAGNITUDE_LOW
        assert found.zero_count == sum(value <= found.zero_threshold for value in finite)
        expected = dict.fromkeys(range(found.first, found.first + len(found.counts)), 0)
        for value in finite:
            if value > found.zero_threshold:
                expected[min(bucket(value), MAGNITUDE_HIGH + 1)] += 1
        assert dict(enumerate(found.counts, found.first)) == expected
        assert (found.count, found.sum) == (len(finite), total)


def test_the_last_magnitudes_stand_in_the_bucket_above_the_last_edge() -> None:
    counts = np.zeros((1, MAGNITUDE_COLUMNS), np.int64)
    counts[0, MAGNITUDE_LARGER] = 3
    (found,) = exponential.magnitudes(counts, np.array([1e9]))
    assert found.counts[-1] == 3
    assert found.first + len(found.counts) - 1 == MAGNITUDE_HIGH + 1


@given(st.lists(st.floats(1e-6, 1e5), max_size=40))
def test_every_duration_is_in_its_bucket(seconds: list[float]) -> None:
    counts = np.zeros(DURATION_COLUMNS, np.int64)
    for each in seconds:
        counts[DURATION_EDGES.searchsorted(each)] += 1
    found = exponential.durations(counts, sum(seconds))
    assert found.zero_threshold == DURATION_EDGES[0] == 2.0**exponential.DURATION_LOW
    last = found.first + len(found.counts) - 1
    assert 2.0 ** (last - 1) == DURATION_EDGES[-1]
    for index, count in enumerate(found.counts, found.first):
        assert count == sum(each > found.zero_threshold and min(bucket(each), last) == index for each in seconds)
    assert found.count == len(seconds)
