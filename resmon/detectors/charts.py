"""Change detection over many streams of numbers at once: control charts that share one forecast and one limit.

A training run has thousands of streams, each noisy, trending and of its own scale. Here each is first compared with what it was
expected to do next, in units of its own noise; what is left looks alike for all of them, so that one limit serves them all. Charts
then add these scores up over time, each for the kind of change that it tells soonest. The work is done in _native.c. The state is
two plain arrays, `Charts.state` and `Charts.first`, that may be saved and put back; the same values give the same state whether
they come one step at a time or many.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log, pi, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resmon.detectors import _native

Floats = NDArray[np.float64]
Direction = Literal["up", "down", "wider", "narrower", "shape"]

ROWS, SETTINGS, CALIBRATION = _native.sizes()
KNOTS = 7
WARM_UP = 256  # values of a stream before its charts begin
GAIN = 0.005  # of the forecast: the level is learnt over some 1 / GAIN values
LEARNING = 0.001  # of the noise: its scale, shape and correlation are learnt over some 1 / LEARNING values
LEAST = 1e-3  # noise that a stream is taken to have at least; of a logarithm, a tenth of a percent
MOST = 4.0  # noises that one value counts as at most
SMOOTHING = 0.015  # of the EWMA chart
HINGES = (0.0, 0.4, 0.8, 1.4, 2.0, 2.8)
SUMS = 9  # charts that add up from where they last were at 0
WINDOWS = (4, 8, 16, 32, 64, 128)
RARE = 30_000  # values of a healthy stream in which a chart reaches its usual limit about once
LIMIT = 18.0  # evidence that is an alarm
BEGINS, RARER = 0.5, 0.65  # a healthy stream's value reaches evidence E with probability exp(-0.5 - 0.65 E) at most (measured)

# What the state has of each stream, in the order of its rows.
FIELDS = (
    *("count", "level", "slope", "error", "product", "square", "mean", "scale"),
    *(f"quantile {k}" for k in range(KNOTS)),
    *("slow", "wander", "energy", "unrest", "evidence"),
    *(f"sum {k}" for k in range(SUMS)),
    *(f"since {k}" for k in range(SUMS)),
    *(f"part {length}" for length in WINDOWS),
    *(f"whole {length}" for length in WINDOWS),
)


def _wider(ratio: float) -> Callable[[Floats], Floats]:
    return lambda w: -log(ratio) + w * w / 2 * (1 - 1 / ratio**2)


def _humps(apart: float) -> Callable[[Floats], Floats]:
    rest = 1 - apart**2

    def increment(w: Floats) -> Floats:
        value: Floats = (
            -log(rest) / 2
            - (w * w + apart**2) / (2 * rest)
            + w * w / 2
            + np.logaddexp(apart * w / rest, -apart * w / rest)
            - log(2)
        )
        return value

    return increment


@dataclass(frozen=True, slots=True)
class Chart:
    """One of the set. `usual` is the limit at which it alone says something once in RARE values of healthy streams (measured)."""

    name: str
    direction: Direction | None  # None where its sign tells
    usual: float
    move: float = 0.0  # of the level, that it is tuned to
    odds: Callable[[Floats], Floats] | None = None  # the log-likelihood ratio that it sums, of scores
    wanders: bool = False  # it is held against how the level, or the spread, wanders by itself


CHARTS = (
    Chart("page-hinkley", "up", 7.0, move=0.35, wanders=True),
    Chart("page-hinkley", "down", 7.0, move=-0.35, wanders=True),
    Chart("cusum", "up", 15.0, move=1.4),
    Chart("cusum", "down", 15.0, move=-1.4),
    Chart("spread", "wider", 9.5, odds=_wider(1.4), wanders=True),
    Chart("spread", "wider", 10.0, odds=_wider(2.2), wanders=True),
    Chart("spread", "narrower", 11.5, odds=_wider(0.7)),
    Chart("spread", "narrower", 9.5, odds=_wider(0.45)),
    Chart("shape", "shape", 7.5, odds=_humps(0.85)),
    Chart("window", None, 13.0),
    *(Chart("window", None, 9.0, wanders=True) for _ in WINDOWS[1:]),
    Chart("ewma", None, 12.0, wanders=True),
)


@cache  # of each chart, whatever the streams
def _increments(odds: Callable[[Floats], Floats]) -> Floats:
    """A log-likelihood ratio as hinges of the score's magnitude, such that its exponential has expectation 1 without a change."""
    grid = np.linspace(-8, 8, 8001)
    normal = np.exp(-grid * grid / 2) / sqrt(2 * pi)
    scores = np.clip(grid, -MOST, MOST)
    wanted = odds(scores)
    pieces = np.stack([np.ones_like(grid), *(np.maximum(np.abs(scores) - hinge, 0) for hinge in HINGES)], axis=1)
    weights = np.sqrt(normal * (1 + np.exp(wanted)))
    found: Floats = np.linalg.lstsq(pieces * weights[:, None], wanted * weights, rcond=None)[0]
    found[0] -= log(float(np.sum(np.exp(pieces @ found) * normal) * (grid[1] - grid[0])))
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """What a stream's strongest chart says."""

    stream: int
    chart: str
    statistic: float
    usual: float  # what the statistic reaches once in RARE values of a healthy stream
    evidence: float
    ago: int  # values that the stream has had since the change began, as estimated, that first one included
    direction: Direction
    size: float  # of a level, in standard deviations of the stream's noise; of spread and shape, times its standard deviation


class Charts:
    """A set of sequential change detectors over streams, which share a forecast, a scale of evidence and one limit.

    *Formula.* A stream's forecast is a level and a slope by exponential smoothing, which learn from an error e of at most 2.5
    noises:

        level += slope + gain e,  slope += gain^2 / 25 e

    with larger gains while there are few values, those of a line through them, and where the stream wanders (up to 4 times, the
    root of W below). What the error before does not tell of an error, e - phi e_before, is put in its place among the stream's own
    errors, by seven quantiles that follow these, and becomes the normal score w that has this place, of at most 4. On a healthy
    stream w is standard normal and independent of the w before, whatever the stream's scale, skewness and correlation. The charts,
    two-sided where that makes sense:

        CUSUM          S = max(S, 0) + 1.4 w - 1.4^2 / 2                   a move by 1.4 noises, the log-likelihood ratio
        Page-Hinkley   the same with 0.35, over W                          a small move that lasts
        EWMA           m^2 (2 - l) / l / 2 over W, m += l (w - m)          a move that stays near what is usual; l = 0.015
        window         (sum of w)^2 / (2 length) over W                    any move, in the newest 4 to 255 values
        spread         S = max(S, 0) + log-likelihood ratio, up over V     1.4 and 2.2 times the deviation; 0.7 and 0.45 times
        shape          likewise                                            two humps of the same mean and deviation

    W is the EWMA's own mean square over what it is for independent scores, at least 1: a stream whose level wanders by itself has
    to move by more than it usually does. V is the same for the mean square of w. Page-Hinkley's test is CUSUM against a running
    mean, which the forecast is; the window is adaptive in that its length is the one, of six that double, that says most, each
    kept as two sums. Each statistic is divided by what it reaches alone once in 30,000 values of healthy streams, and multiplied
    by log 30,000. The largest of these is the evidence: one more is two to three times as rare, whatever the chart.

    *Meaning.* An alarm is evidence above `limit`. `warm_up`: values before the charts begin. `gain`: over some 1 / gain values a
    stream's new level is no longer news. `learning`: the same of its noise. `least`: the least noise that a stream is taken to
    have, so that a constant one may move a little. `without`: charts, by name, that are not asked. Absent values (NaN, infinite)
    leave a stream as it is.

    *Trade-off.* A higher limit costs delay in proportion to itself, and saves false alarms exponentially. A smaller gain keeps
    small and slow changes in sight for longer, and takes a trend that bends for a change. One value alone is no alarm, however far
    away, as 4^2 / 2 and 1.4 x 4 - 0.98 are less than any chart's usual limit; a chart that stands high already it may push over. A
    move of less than about one noise that comes slowly is learnt before it is told.

    *Delay.* See benchmarks/DETECTORS.md, which also says what each chart earns. There the EWMA chart earns nothing and the window
    next to nothing. They are kept for what they know: the EWMA's mean square is W, the window's sums are a move's size and onset.

    *Expected false alarms.* On 1,000 streams of 4,000 values of independent normal noise the evidence crosses 10 once in 5,000
    values, 12 once in 35,000, 15 once in 270,000 and 18 once in 3,000,000; on noise of correlation 0.6, which has to be learnt,
    once in 2,300, 10,000, 81,000 and 430,000; in the first hundreds of values after the warm-up twice as often. A trend that bends
    from one side of its noise to the other within 30 values sets off one stream in 60 in 500 values
    (tests/detectors/test_charts.py). A healthy training is not stationary over thousands of steps: many streams move together when
    the learning rate does, and whoever reads the evidence has to ask what explains it.

    *Reference.* Page, Continuous inspection schemes, 1954; Hinkley, 1971; Roberts, Control chart tests based on geometric moving
    averages, 1959; Bifet and Gavalda, Learning from time-changing data with adaptive windowing, 2007; Gardner, Exponential
    smoothing: the state of the art, 2006; Robbins and Monro, 1951, for the quantiles.
    """

    def __init__(
        self,
        streams: int,
        *,
        limit: float = LIMIT,
        warm_up: int = WARM_UP,
        gain: float = GAIN,
        learning: float = LEARNING,
        least: float = LEAST,
        without: Collection[str] = (),
    ) -> None:
        if warm_up < CALIBRATION:
            raise ValueError(f"a warm-up of {warm_up} values is too short: a stream is calibrated by its first {CALIBRATION}")
        self.limit = limit
        self.state: Floats = np.zeros((ROWS, streams))
        self.first: Floats = np.zeros((CALIBRATION, streams))
        slope_gain = gain * gain / 25  # so slow that level and slope do not swing
        told = [warm_up, gain, slope_gain, learning, least, MOST, SMOOTHING]
        told += [chart.move for chart in CHARTS if chart.move]
        told += [c for chart in CHARTS if chart.odds for c in _increments(chart.odds)]
        self._weights = [0.0 if chart.name in without else log(RARE) / chart.usual for chart in CHARTS]
        told += self._weights
        told += [float(chart.wanders) for chart in CHARTS]
        assert len(told) == SETTINGS  # noqa: S101, the kernel reads so many
        self._settings = np.array(told, dtype=np.float64)

    @property
    def streams(self) -> int:
        return int(self.state.shape[1])

    def block(self, values: ArrayLike, scores: Floats | None = None) -> Floats:
        """The evidence [steps, streams] after each step of `values`; `scores`, of the same shape, is filled where it is given."""
        dense = np.ascontiguousarray(values, dtype=np.float64)
        if dense.ndim != 2 or dense.shape[1] != self.streams:
            raise ValueError(f"values of shape {dense.shape} are not [steps, {self.streams}]")
        evidence = np.empty_like(dense)
        kept = [self.state, self.first, evidence, *([] if scores is None else [scores])]
        if any(not each.flags.c_contiguous or each.dtype != np.float64 for each in kept):
            raise ValueError("state, first values and scores are dense arrays of float64")
        _native.follow(
            dense.ctypes.data,
            len(dense),
            self.streams,
            self._settings.ctypes.data,
            self.state.ctypes.data,
            self.first.ctypes.data,
            evidence.ctypes.data,
            0 if scores is None else scores.ctypes.data,
        )
        return evidence

    def step(self, values: ArrayLike) -> Floats:
        """The same of one step: the evidence [streams]."""
        evidence: Floats = self.block(np.asarray(values, dtype=np.float64)[None])[0]
        return evidence

    def row(self, name: str) -> Floats:
        """A number of every stream, by its name in FIELDS: a view into the state."""
        values: Floats = self.state[FIELDS.index(name)]
        return values

    @property
    def ready(self) -> NDArray[np.bool_]:
        """Which streams' charts have begun."""
        begun: NDArray[np.bool_] = self.row("count") > self._settings[0]
        return begun

    @property
    def evidence(self) -> Floats:
        """Of every stream, after its newest value."""
        return self.row("evidence")

    def reset(self, streams: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> None:
        """These streams begin anew with their next value: their level, noise and charts are forgotten."""
        self.state[:, streams] = 0
        self.first[:, streams] = 0

    def rearm(self, streams: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> None:
        """The charts of these streams begin anew. What their level and noise are is kept."""
        for name in FIELDS:
            if name.startswith(("sum ", "part ", "whole ")) or name in ("slow", "evidence"):
                self.row(name)[streams] = 0

    def change(self, stream: int) -> Change:
        """What the strongest chart of a stream says after its newest value."""
        column = dict(zip(FIELDS, self.state[:, stream].tolist(), strict=True))
        told, said = max((self._said(chart, place, column) for place, chart in enumerate(CHARTS)), key=lambda each: each[0])
        place, statistic, ago, mean = said
        chart = CHARTS[place]
        correlation = min(max(column["product"] / max(column["square"], 0.25), 0.0), 0.9)
        size = mean * sqrt((1 + correlation) / (1 - correlation)) if chart.odds is None else sqrt(max(column["energy"], 0.0))
        direction: Direction = chart.direction or ("up" if mean > 0 else "down")
        return Change(stream, chart.name, statistic, chart.usual, told, ago, direction, size)

    def _said(self, chart: Chart, place: int, column: dict[str, float]) -> tuple[float, tuple[int, float, int, float]]:
        """Of one chart: its evidence; its place, its statistic, since how many values, and the mean of the scores since then."""
        count = column["count"]
        if place < SUMS:
            total, ago = column[f"sum {place}"], max(1.0, count - column[f"since {place}"] + 1)
            mean = total / (chart.move * ago) + chart.move / 2 if chart.move else 0.0
            statistic = max(total, 0.0)
        elif chart.name == "window":
            length = WINDOWS[place - SUMS]
            over = count % length
            ago = length + over
            total = column[f"whole {length}"] + column[f"part {length}"]
            mean, statistic = total / ago, total**2 / (2 * ago)
        else:
            mean, ago = column["slow"], min(count, 2 / SMOOTHING)
            statistic = mean**2 * (2 - SMOOTHING) / SMOOTHING / 2
        if chart.wanders:
            statistic /= max(column["unrest" if chart.odds else "wander"], 1.0)
        return self._weights[place] * statistic, (place, statistic, int(ago), mean)


def probability(evidence: float, values: int) -> float:
    """A bound of how likely a healthy stream reaches this evidence within so many values, as measured (see Charts)."""
    return min(1.0, values * exp(-BEGINS - RARER * evidence))


def e_value(probability: float) -> float:
    """What may be averaged over streams: its expectation is at most 1 without a change (Vovk and Wang 2021, a mixed calibrator)."""
    p = max(probability, 1e-300)
    return 0.5 if p > 0.999 else (1 - p + p * log(p)) / (p * log(p) ** 2)
