"""Who is tried: the charts, and river's PageHinkley, ADWIN and KSWIN. Each takes trials [steps, trials] and says when it first
alarms.

river's detectors take one stream each, and numbers of any scale: a threshold that serves many streams needs streams that are
alike. So they are offered the logarithms in units of their noise over the warm-up, and the errors of the charts' forecasts in
units of their noise, which are free of trends (with the charts' gain, and with one of 0.002). Tuning takes the best of these for
each. Apart from these, PageHinkley and ADWIN are tried on the charts' own scores, which are free of skewness and correlation as
well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from math import exp, isnan, log
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from river import drift

from benchmarks.detectors.record import noise
from benchmarks.detectors.streams import JUDGED, LEAD, Floats
from resmon.detectors.charts import CALIBRATION, GAIN, LEAST, LIMIT, WARM_UP, Charts

Ints = NDArray[np.int64]
SLOW_GAIN = 0.002


class Contender(Protocol):
    """A detector with its settings; `span` holds the limits that are tried, from the most to the fewest alarms, geometrically."""

    name: str
    settings: dict[str, Any]
    default: float  # its limit by default
    span: tuple[float, float]

    def first_alarms(self, values: Floats, limit: float) -> Ints:
        """The step of the judged part, from 0, at which each trial's first alarm is; JUDGED where there is none."""

    def run(self, values: Floats) -> None:
        """All updates and nothing else, for the clock."""


@dataclass(frozen=True)
class Ours:
    """The whole set. An alarm in the lead rearms the stream's charts, as river's detectors begin anew after theirs."""

    name: str = "resmon"
    settings: dict[str, Any] = field(default_factory=dict)
    default: float = LIMIT
    span: tuple[float, float] = (4.0, 60.0)

    def first_alarms(self, values: Floats, limit: float) -> Ints:
        charts = Charts(values.shape[1], **self.settings)
        for row in values[:LEAD]:
            alarms = charts.step(row) > limit
            if alarms.any():
                charts.rearm(alarms)
        above = charts.block(values[LEAD:]) > limit
        first: Ints = np.where(above.any(axis=0), above.argmax(axis=0), JUDGED)
        return first

    def run(self, values: Floats) -> None:
        charts = Charts(values.shape[1], **self.settings)
        for row in values:
            charts.step(row)


@dataclass(frozen=True)
class River:
    """One of river's, for every stream one of its own."""

    name: str
    make: Callable[[float, dict[str, Any]], Any]
    settings: dict[str, Any]
    default: float
    span: tuple[float, float]
    memory: int = LEAD  # steps before the change that can matter

    def first_alarms(self, values: Floats, limit: float) -> Ints:
        streams = prepared(values, self.settings.get("stream", "raw"))[LEAD - self.memory :]
        return np.array([self._first(stream.tolist(), limit) for stream in streams.T], dtype=np.int64)

    def _first(self, stream: Sequence[float], limit: float) -> int:
        detector = self.make(limit, self.settings)
        for step, value in enumerate(stream, start=-self.memory):
            if not isnan(value):  # as a stream's first errors and scores are
                detector.update(value)
                if step >= 0 and detector.drift_detected:
                    return step
        return JUDGED

    def run(self, values: Floats) -> None:
        for stream in values.T:
            detector = self.make(self.default, {})
            for value in stream.tolist():
                detector.update(value)


@dataclass(frozen=True)
class Kswin(River):
    """river's KSWIN takes a fifth of a millisecond an update. So its p-values are kept, and all limits are tried on them: with
    alpha 0 it never begins anew, which nothing but its window of the last values can tell."""

    kept: dict[bytes, Floats] = field(default_factory=dict, compare=False)

    def first_alarms(self, values: Floats, limit: float) -> Ints:
        if limit >= self.default:  # it will not run for long
            return super().first_alarms(values, limit)
        key = sha256(np.ascontiguousarray(values)).digest()
        if key not in self.kept:
            streams = prepared(values, self.settings.get("stream", "raw"))[LEAD - self.memory :]
            self.kept[key] = np.stack([self._probabilities(stream.tolist()) for stream in streams.T], axis=1)
        below = self.kept[key] <= limit
        return np.where(below.any(axis=0), below.argmax(axis=0), JUDGED)

    def _probabilities(self, stream: Sequence[float]) -> Floats:
        detector = self.make(0.0, self.settings)
        for value in stream[: self.memory]:
            detector.update(value)
        probabilities = np.empty(JUDGED)
        for step, value in enumerate(stream[self.memory :]):
            detector.update(value)
            probabilities[step] = detector.p_value
        return probabilities


def prepared(values: Floats, how: str) -> Floats:
    if how == "raw":
        return values
    if how == "standardised":
        first = values[:WARM_UP]
        return (values - np.median(first, axis=0)) / noise(first)
    charts = Charts(values.shape[1], gain=SLOW_GAIN if how.startswith("slow") else GAIN)
    found = np.full_like(values, np.nan)
    if how.endswith("scores"):
        charts.block(values, found)
        return found
    for step, row in enumerate(values):
        charts.step(row)
        if step >= CALIBRATION:
            found[step] = charts.row("error") / np.maximum(charts.row("scale"), LEAST)
    return found


def _page_hinkley(limit: float, settings: dict[str, Any]) -> Any:
    return drift.PageHinkley(threshold=limit, **_own(settings))


def _adwin(limit: float, settings: dict[str, Any]) -> Any:
    return drift.ADWIN(delta=limit, **_own(settings))


def _kswin(limit: float, settings: dict[str, Any]) -> Any:
    return drift.KSWIN(alpha=limit, seed=1, **_own(settings))


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "stream"}


def page_hinkley(given: str = "", /, **settings: Any) -> River:
    return River(f"PageHinkley{given}", _page_hinkley, settings, 50.0, (1.0, 3000.0))


def adwin(given: str = "", /, **settings: Any) -> River:
    return River(f"ADWIN{given}", _adwin, settings, 0.002, (1.0, exp(-200.0)))


def kswin(**settings: Any) -> River:
    return Kswin("KSWIN", _kswin, settings, 0.005, (0.1, exp(-60.0)), memory=2 * settings.get("window_size", 100))


STREAMS = ("standardised", "errors", "slow errors")
SCORES = ("scores", "slow scores")
GIVEN = " on our scores"  # a contender that is given them
RIVERS = {"PageHinkley": page_hinkley, "ADWIN": adwin}
GRIDS: dict[str, list[River]] = {
    "PageHinkley": [
        page_hinkley(stream=stream, delta=delta, alpha=alpha)
        for stream, delta, alpha in product(STREAMS, (0.05, 0.15, 0.25, 0.4, 0.7), (0.9999, 0.999, 0.99))
    ],
    "ADWIN": [adwin(stream=stream, clock=clock) for stream, clock in product(STREAMS, (1, 8, 32))],
    "KSWIN": [kswin(stream=stream) for stream in ("standardised", "errors")],
    f"PageHinkley{GIVEN}": [
        page_hinkley(GIVEN, stream=stream, delta=delta) for stream, delta in product(SCORES, (0.15, 0.25, 0.4, 0.7))
    ],
    f"ADWIN{GIVEN}": [adwin(GIVEN, stream=stream, clock=clock) for stream, clock in product(SCORES, (1, 8))],
}


def middle(low: float, high: float) -> float:
    return exp((log(low) + log(high)) / 2)
