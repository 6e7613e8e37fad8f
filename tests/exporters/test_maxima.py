from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.exporters.maxima import Maxima
from resmon.exporters.view import Column
from tests.synthetic import sites

ONE = sites(1)


def column(value: float | None) -> dict[str, Column]:
    return {"x": Column(np.array([0.0 if value is None else value]), np.array([value is not None]))}


def newest(maxima: Maxima) -> float | None:
    values, present = maxima.columns(ONE)["x"]
    return float(values[0]) if present[0] else None


@given(st.lists(st.tuples(st.floats(0, 40), st.none() | st.floats(-1e6, 1e6)), min_size=1, max_size=40))
@settings(deadline=None)
def test_it_is_the_largest_of_the_window(steps: list[tuple[float, float | None]]) -> None:
    """Against all values of the window; the slots are seconds, so the oldest second is there in whole or not at all."""
    maxima, now = Maxima(["x"], 60.0), 1000.0
    seen: list[tuple[float, float | None]] = []
    for wait, value in steps:
        now += wait
        seen.append((now, value))
        maxima.push(now, ONE, column(value))
        expected = [v for t, v in seen if v is not None and np.floor(t) > np.floor(now) - 60.0]
        assert newest(maxima) == (max(expected) if expected else None)


def test_a_stalled_run_keeps_its_newest() -> None:
    maxima = Maxima(["x"], 60.0)
    maxima.push(0.0, ONE, column(7.0))
    maxima.push(300.0, ONE, column(1.0))  # a step of five minutes
    assert newest(maxima) == 1.0


def test_nan_is_a_maximum_only_of_nothing_else() -> None:
    maxima = Maxima(["x"], 60.0)
    maxima.push(0.0, ONE, column(float("nan")))
    value = newest(maxima)
    assert value is not None
    assert np.isnan(value)
    maxima.push(0.5, ONE, column(2.0))
    maxima.push(1.5, ONE, column(float("nan")))
    assert newest(maxima) == 2.0
    maxima.push(2.5, ONE, column(float("inf")))
    assert newest(maxima) == float("inf")


def test_a_clock_that_is_set_back_hides_no_spike() -> None:
    """What it then calls the future was a moment ago: it stays as long as if it were of now, not until that time comes again."""
    maxima = Maxima(["x"], 60.0)
    maxima.push(5000.0, ONE, column(9.0))
    maxima.push(1000.0, ONE, column(1.0))
    assert newest(maxima) == 9.0
    maxima.push(1059.0, ONE, column(0.5))
    assert newest(maxima) == 9.0
    maxima.push(1060.0, ONE, column(0.5))
    assert newest(maxima) == 0.5


@given(st.lists(st.tuples(st.floats(-7200, 7200), st.floats(-1e6, 1e6)), min_size=1, max_size=60))
@settings(deadline=None)
def test_whatever_the_clock_does_the_newest_is_in_it_and_memory_does_not_grow(steps: list[tuple[float, float]]) -> None:
    maxima, now = Maxima(["x"], 60.0), 1e9
    for jump, value in steps * 5:
        now += jump
        maxima.push(now, ONE, column(value))
        found = newest(maxima)
        assert found is not None
        assert found >= value
        assert len(maxima._slots) <= 61


def test_maxima_stay_with_their_site_when_sites_appear() -> None:
    maxima, few, more = Maxima(["x"], 60.0), sites(3)[1:2], sites(3)
    maxima.push(0.0, few, column(5.0))
    maxima.push(1.0, more, {"x": Column(np.array([1.0, 2.0, 3.0]), np.array([True, True, False]))})
    values, present = maxima.columns(more)["x"]
    assert values[:2].tolist() == pytest.approx([1.0, 5.0])
    assert present.tolist() == [True, True, False]
