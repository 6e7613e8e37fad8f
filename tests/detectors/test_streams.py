"""Streams of logarithms: what is known of one that changed."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from resmon.detectors.streams import REMEMBERED, Moved, Streams
from resmon.detectors.window import WINDOW, Windows
from resmon.records import Columns, Floats, ResidualSite, StepRecord
from tests import synthetic
from tests.detectors.course import course

SITES = synthetic.sites(3)
CHANGED = 1200  # step at which the stream changes


def noise(steps: int, size: float = 0.05, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, size, steps)


def followed(values: Floats, site: int = 1, sites: tuple[ResidualSite, ...] = SITES, until: int = CHANGED + 2 * WINDOW) -> Moved:
    """What is known of one site's stream of logarithms at a step; the other sites' are steady, and NaN is absent."""
    streams, windows, columns = Streams(("steady", "ours")), Windows(), Columns()
    steady = noise(len(values), seed=1)
    for item in course(until + 1, sites):
        if isinstance(item, Columns):
            columns = item
        elif isinstance(item, StepRecord):
            for window in windows.add(item, columns.sites):
                logs = np.broadcast_to(steady[window.steps, None, None], (len(window), 2, len(window.sites))).copy()
                logs[:, 1, site] = values[window.steps]
                evidence = streams.take(window, window.sites, np.exp(logs))
                assert evidence.shape == (2, len(window.sites))
                newest = np.exp(logs[:, 1, site])
    return streams.moved(1, site, newest, factor=1.25, noises=2.0)


@pytest.mark.parametrize("factor", [0.5, 1.5, 100.0])
def test_a_level_that_moved(factor: float) -> None:
    values = noise(2000) + np.where(np.arange(2000) < CHANGED, 0.0, np.log(factor))
    moved = followed(values)
    assert (moved.statistic, moved.site, moved.block) == ("ours", 1, "h.1")
    assert moved.direction == ("up" if factor > 1 else "down")
    assert moved.factor == pytest.approx(factor, rel=0.1) and moved.now == pytest.approx(factor, rel=0.1)
    assert abs(moved.since - CHANGED) <= 3
    assert moved.noises > 2 and moved.evidence > 20


def test_a_leap_that_a_chart_of_the_spread_sees_is_one_of_the_level() -> None:
    """Of a level that falls slowly under little noise: a leap is as far out as a value can be, for charts of either kind."""
    values = noise(2000, 0.03, seed=7) - np.log(1 + np.arange(2000) / 2000) + np.where(np.arange(2000) < CHANGED, 0.0, np.log(1.4))
    moved = followed(values)
    assert moved.chart == "spread" and moved.direction == "up"
    assert moved.factor == pytest.approx(1.4, rel=0.1) and moved.noises == pytest.approx(np.log(1.4) / 0.03, rel=0.3)


def test_noise_that_became_wider() -> None:
    values = noise(2000, 0.05) * np.where(np.arange(2000) < CHANGED, 1.0, 4.0)
    moved = followed(values, until=CHANGED + 4 * WINDOW)
    assert moved.direction == "wider" and moved.factor == pytest.approx(4.0, rel=0.5)


@pytest.mark.parametrize("every", [2, 5])
def test_the_step_at_which_a_stream_changed_that_has_not_a_value_at_each(every: int) -> None:
    steps = 6000
    values = noise(steps) + np.where(np.arange(steps) < 5000, 0.0, np.log(3.0))
    values[np.arange(steps) % every != 0] = np.nan
    moved = followed(values, until=5000 + 16 * every)
    assert moved.direction == "up" and moved.factor == pytest.approx(3.0, rel=0.1)
    assert abs(moved.since - 5000) <= 8 * every


def test_a_change_that_is_longer_ago_than_anything_that_is_remembered() -> None:
    values = noise(4000) + np.where(np.arange(4000) < CHANGED, 0.0, np.log(3.0))
    moved = followed(values, until=CHANGED + 2 * REMEMBERED * WINDOW)
    assert moved.factor == pytest.approx(1.0, abs=0.1)  # nothing is left to compare it with


def test_a_constant_stream_that_moves_a_little_has_a_noise_all_the_same() -> None:
    values = np.where(np.arange(2000) < CHANGED, 0.0, 0.3)
    moved = followed(values)
    assert moved.direction == "up" and moved.factor == pytest.approx(exp(0.3)) and np.isfinite(moved.noises)


def test_what_is_known_of_a_site_stays_with_it() -> None:
    streams, windows = Streams(("ours",)), Windows()
    fewer = (SITES[2], SITES[0])
    before = course(CHANGED + 1, SITES)
    after = course(4 * WINDOW + 1, fewer, first=CHANGED + 1)
    random = np.random.default_rng(0)
    columns = Columns()
    for item in [*before, *after]:
        if isinstance(item, Columns):
            columns = item
        elif isinstance(item, StepRecord):
            for window in windows.add(item, columns.sites):
                levels = np.array(
                    [{"h.0": 1.0, "h.1": 5.0, "h.2": 9.0 if len(window.sites) == 3 else 18.0}[s.name] for s in window.sites]
                )
                values = levels * np.exp(random.normal(0, 0.05, (len(window), 1, len(levels))))
                evidence = streams.take(window, window.sites, values)
    assert evidence[0, 0] > 40 > evidence[0, 1]
    moved = streams.moved(0, 0, values[:, 0, 0], factor=1.25, noises=2.0)
    assert moved.block == "h.2" and moved.factor == pytest.approx(2.0, rel=0.1) and abs(moved.since - CHANGED) <= WINDOW
