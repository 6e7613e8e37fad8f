"""Statistics of sites as streams of logarithms: their charts, and what their levels and spreads were of late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, pi, sqrt
from typing import Literal

import numpy as np

from resmon.detectors.charts import LEAST, Charts
from resmon.detectors.window import Window, median, rearranged
from resmon.records import Floats, Ints, ResidualSite

REMEMBERED = 40  # windows in which a stream had values
USUAL = 8  # of them, before a change, whose median is what was usual
# What is remembered of each: its first step, how many steps it had, how many of them had a value; of the values' logarithms the
# median and the mean distance from that, again as a logarithm.
STEP, STEPS, COUNT, LEVEL, SPREAD = range(5)
LEAPS = 4.0  # times as many noises make a larger spread a leap of the level
NORMAL = sqrt(pi / 2)  # standard deviation of normal noise over its mean distance from the middle


@dataclass(frozen=True, slots=True)
class Moved:
    """A stream whose charts say that it changed."""

    statistic: str
    site: int
    block: str
    chart: str  # the strongest
    evidence: float
    ago: int  # values that it has had since then
    since: int  # step
    direction: Literal["up", "down", "wider"] | None  # None where nothing is seen of it but its chart
    factor: float  # that its level moved by or, where it became wider, its noise
    noises: float  # standard deviations of its noise, before, that its level moved by
    now: float  # the level of the newest window's values since then


class Streams:
    """K statistics of each of S sites. A value that is not above 0 is absent."""

    def __init__(self, statistics: Sequence[str]) -> None:
        self._statistics = tuple(statistics)
        self._sites: tuple[ResidualSite, ...] = ()
        self._charts = Charts(0)
        self._windows: Floats = np.empty((5, REMEMBERED, len(self._statistics), 0))  # a ring of each stream
        self._pushed: Ints = np.empty((len(self._statistics), 0), np.int64)

    def take(self, window: Window, sites: tuple[ResidualSite, ...], values: Floats) -> Floats:
        """Take a window's values, [n, K, S]; the most evidence in it of each stream, [K, S]."""
        self._arrange(sites)
        logs = _logarithms(values)
        count, levels, spreads = _summary(logs)
        rows = (self._pushed % REMEMBERED)[None]
        summary: tuple[int | Ints | Floats, ...] = (window.first_step, len(window), count, levels, spreads)
        for kept, newest in zip(self._windows, summary, strict=True):
            np.put_along_axis(kept, rows, np.where(count > 0, newest, np.take_along_axis(kept, rows, 0)), 0)
        self._pushed += count > 0
        evidence: Floats = self._charts.block(logs.reshape(len(logs), -1)).max(axis=0, initial=0.0)
        return evidence.reshape(levels.shape)

    def is_settled(self, statistic: int, site: int) -> bool:
        """Whether at least half of the newest window's values are of the change that the charts see: fewer may be a spike."""
        newest = (int(self._pushed[statistic, site]) - 1) % REMEMBERED
        ago = self._charts.change(statistic * len(self._sites) + site).ago
        return bool(2 * ago >= self._windows[COUNT, newest, statistic, site])

    def moved(self, statistic: int, site: int, newest: Floats, factor: float, noises: float) -> Moved:
        """How a stream changed, as its windows say: its level, where that moved by this factor and by so many noises.

        `newest` is what it was at the steps of the newest window. Of these the values since the change count alone: together with
        those before they would be neither level.
        """
        said = self._charts.change(statistic * len(self._sites) + site)
        pushed = int(self._pushed[statistic, site])
        rows = (pushed - 1 - np.arange(min(pushed, REMEMBERED))) % REMEMBERED  # newest first
        kept = self._windows[:, rows, statistic, site]
        values = np.cumsum(kept[COUNT])
        began = min(int(np.searchsorted(values, said.ago)), len(rows) - 1)  # in this window
        step, steps, count = kept[: COUNT + 1, began]
        since = int(step + max(0.0, values[began] - said.ago) * steps / count)
        logs = _logarithms(newest)
        now, usual = np.array(_summary(logs[~np.isnan(logs)][-said.ago :])[1:]), kept[LEVEL:, began + 2 :][:, :USUAL]
        level, spread = (now - np.median(usual, axis=1)).tolist() if usual.shape[1] > 1 else (0.0, 0.0)
        away, least = abs(said.size), noises
        if said.direction == "wider":  # as a level that leaps is for charts that only see how far from its forecast it is
            away, least = abs(level) / (NORMAL * exp(now[1] - spread)), LEAPS * noises
        direction: Literal["up", "down", "wider"] | None = None
        if said.direction in ("up", "down", "wider") and abs(level) >= log(factor) and away >= least:
            direction = "up" if level > 0 else "down"
        elif said.direction == "wider" and spread > 0:
            direction = "wider"
        by = exp(spread if direction == "wider" else level)
        name, block = self._statistics[statistic], self._sites[site].name
        return Moved(name, site, block, said.chart, said.evidence, said.ago, since, direction, by, away, exp(now[0]))

    def forget(self, streams: Ints) -> None:
        """These, by their place in [K, S], learn their levels anew."""
        self._charts.reset(streams)

    def _arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        if sites is self._sites:
            return
        count = len(self._statistics)
        charts = Charts(count * len(sites))
        for ours, theirs in ((charts.state, self._charts.state), (charts.first, self._charts.first)):
            kept = theirs.reshape(len(theirs), count, len(self._sites))
            ours[:] = rearranged(kept, self._sites, sites, 0.0).reshape(len(ours), -1)
        self._charts = charts
        self._windows = rearranged(self._windows, self._sites, sites, np.nan)
        self._pushed = rearranged(self._pushed, self._sites, sites, 0)
        self._sites = sites


def _logarithms(values: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), np.nan)


def _summary(logs: Floats) -> tuple[Ints, Floats, Floats]:
    """Over the first axis: how many there are, their median, and the logarithm of their mean distance from that."""
    with np.errstate(invalid="ignore"):
        levels = median(logs)
        there = ~np.isnan(logs)
        count = there.sum(axis=0)
        apart = np.where(there, np.abs(logs - levels), 0.0).sum(axis=0) / count
    return count, levels, np.log(np.maximum(apart, LEAST))
