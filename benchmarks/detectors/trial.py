"""What one process does of the bench: find a contender's limits, or try it in the scenarios."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from benchmarks.detectors.contenders import GIVEN, GRIDS, RIVERS, Contender, Ours, River, kswin
from benchmarks.detectors.scoring import Score, limit_for, run_length, score
from benchmarks.detectors.streams import LEAD, SCENARIOS, Floats, Noise, Recording, Scenario, changed, correlated, stretches
from resmon.detectors.charts import CHARTS, Charts

EVERY = 3  # KSWIN takes so long that it is tuned and tried on one trial in so many, PageHinkley and ADWIN are tuned so
CLOCKED = 10_000  # streams on which an update of ours is clocked


@dataclass(frozen=True, slots=True)
class Tuning:
    """One set of a contender's settings on the tuning streams: limits by whether the noise is correlated, and the mean delay."""

    name: str
    settings: dict[str, Any]
    limits: dict[bool, float]
    delays: dict[str, float]  # by scenario, at its middle size

    @property
    def delay(self) -> float:
        return float(np.mean(list(self.delays.values())))


@dataclass(frozen=True, slots=True)
class Result:
    """One contender on the scoring streams, with the same limits throughout."""

    name: str
    how: str  # tuned, default, or level: the limits with which false alarms are the same on the scoring streams
    settings: dict[str, Any]
    limits: dict[bool, float]
    run_length: dict[bool, float]
    scores: dict[str, dict[float, Score]] = field(default_factory=dict)  # by scenario and size

    def delay(self, scenario: str) -> float:
        """The mean over the sizes."""
        return float(np.mean([each.delay for each in self.scores[scenario].values()]))


@cache
def _noise(use: str, is_correlated: bool) -> Noise:
    noise = stretches(Recording.load(use))
    return correlated(noise) if is_correlated else noise


def _some(values: Floats, every: int) -> Floats:
    return values[:, ::every]


def contender(name: str, settings: dict[str, Any]) -> Contender:
    if name == Ours().name:
        return Ours(settings=settings)
    plain = name.removesuffix(GIVEN)
    made: Contender = kswin(**settings) if plain == "KSWIN" else RIVERS[plain](name.removeprefix(plain), **settings)
    return made


def candidates() -> list[tuple[str, dict[str, Any]]]:
    """Names and settings that are tuned: those of river's grids, and ours as it is and without one of its charts."""
    ours = [{}, *({"without": (name,)} for name in dict.fromkeys(chart.name for chart in CHARTS))]
    return [*((Ours().name, each) for each in ours), *((name, each.settings) for name, grid in GRIDS.items() for each in grid)]


def tune(name: str, settings: dict[str, Any], every: int) -> Tuning:
    """Limits by the healthy tuning streams; the delay over the scenarios, each at its middle size."""
    who = contender(name, settings)
    limits = _limits(who, "tuning", every)
    delays = {each.name: _score(who, "tuning", each, each.sizes[1], limits, every).delay for each in SCENARIOS}
    return Tuning(name, settings, limits, delays)


def try_tuned(best: Tuning, every: int) -> list[Result]:
    """On the scoring streams: with the limits of the tuning streams, and with those that the scoring streams themselves give."""
    who = contender(best.name, best.settings)
    return [_tried(who, "tuned", _limits(who, "tuning", every), every), _tried(who, "level", _limits(who, "scoring", every), every)]


def try_default(name: str, every: int) -> Result:
    who = contender(name, {})
    return _tried(who, "default", dict.fromkeys((False, True), who.default), every)


def _limits(who: Contender, use: str, every: int) -> dict[bool, float]:
    return {kind: limit_for(who, _some(_noise(use, kind).values, every)) for kind in (False, True)}


def _tried(who: Contender, how: str, limits: dict[bool, float], every: int) -> Result:
    healthy = {kind: _some(_noise("scoring", kind).values, every) for kind in (False, True)}
    lengths = {kind: run_length(who.first_alarms(values, limits[kind])) for kind, values in healthy.items()}
    scores = {
        scenario.name: {size: _score(who, "scoring", scenario, size, limits, every) for size in scenario.sizes}
        for scenario in SCENARIOS
    }
    return Result(who.name, how, who.settings, limits, lengths, scores)


def _score(who: Contender, use: str, scenario: Scenario, size: float, limits: dict[bool, float], every: int) -> Score:
    noise = _noise(use, scenario.is_correlated)
    values = _some(changed(noise, scenario, size), every)
    return score(who.first_alarms(values, limits[scenario.is_correlated]), scenario.begins)


def clock(name: str, settings: dict[str, Any]) -> float:
    """Microseconds per update of one stream, the median of five; ours of 10,000 streams one step at a time."""
    who = contender(name, settings)
    values = np.random.default_rng(1).normal(size=(LEAD, 20))
    if isinstance(who, River):
        steps = 200 if name == "KSWIN" else LEAD
        times = [_seconds(who, values[:steps]) / (steps * values.shape[1]) for _ in range(5)]
        return float(np.median(times)) * 1e6
    charts, rows = Charts(CLOCKED), np.random.default_rng(1).normal(size=(400, CLOCKED))
    charts.block(rows)
    times = []
    for row in rows[:101]:
        begin = time.perf_counter()
        charts.step(row)
        times.append((time.perf_counter() - begin) / CLOCKED)
    return float(np.median(times)) * 1e6


def _seconds(who: River, values: Floats) -> float:
    begin = time.perf_counter()
    who.run(values)
    return time.perf_counter() - begin
