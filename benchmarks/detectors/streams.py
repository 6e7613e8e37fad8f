"""Streams with known change points, on noise recorded from healthy training.

A trial is LEAD steps as they were recorded and JUDGED steps after the change. A change is put into what a recorded stream does
around its own slow trend: the trend stays, its noise is moved, scaled or replaced. Sizes are in robust standard deviations of that
noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.detectors.record import FOLDER, PARTS, noise

Floats = NDArray[np.float64]
LEAD, JUDGED = 800, 600
TREND = 201  # steps whose median is a stream's slow trend
CORRELATION = 0.6  # of noise that is correlated
SPIKE = 8.0  # noises that a spike of one step is high
AFTER = 100  # steps from a spike to the level that follows it


@dataclass(frozen=True, slots=True)
class Recording:
    names: tuple[str, ...]
    values: Floats  # [steps, streams]

    @classmethod
    def load(cls, use: str, folder: Path = FOLDER) -> Recording:
        """`use` is tuning or scoring. What the rounding took is given back as noise, so that no two values are equal by it."""
        with np.load(folder / f"{use}.npz", allow_pickle=False) as kept:
            codes, quantum, offset = kept["codes"].astype(float), kept["quantum"], kept["offset"]
            names = tuple(str(name) for name in kept["names"])
        codes += np.random.default_rng(PARTS).uniform(-0.5, 0.5, codes.shape)
        return cls(names, codes * quantum + offset)


@dataclass(frozen=True, slots=True)
class Noise:
    """Recorded stretches, one a column: their slow trend, and what they do around it in units of its spread."""

    trend: Floats
    residuals: Floats
    scale: Floats

    @property
    def values(self) -> Floats:
        return self.trend + self.residuals * self.scale


Change = Callable[[Floats, Floats, float, np.random.Generator], Floats]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A change of the residuals [steps, trials] after LEAD; gives them changed."""

    name: str
    title: str
    sizes: tuple[float, ...]
    change: Change
    unit: str = "noises"
    is_correlated: bool = False
    begins: int = 0  # the step of the judged part at which the change is; what is said before is a false alarm


def stretches(recording: Recording) -> Noise:
    """Every stream's stretches of a trial's length, whose judged parts do not overlap."""
    values = recording.values
    starts = range(0, len(values) - LEAD - JUDGED + 1, JUDGED)
    stacked = np.concatenate([values[start : start + LEAD + JUDGED] for start in starts], axis=1)
    trend = _trend(stacked)
    residuals = stacked - trend
    scale = noise(residuals)
    return Noise(trend, residuals / scale, scale)


def correlated(of: Noise) -> Noise:
    """The same with first-order autoregressive noise, of the same spread, driven by what was recorded."""
    residuals = np.empty_like(of.residuals)
    residuals[0] = of.residuals[0]
    for step in range(1, len(residuals)):
        residuals[step] = CORRELATION * residuals[step - 1] + np.sqrt(1 - CORRELATION**2) * of.residuals[step]
    return Noise(of.trend, residuals, of.scale)


def changed(of: Noise, scenario: Scenario, size: float, seed: int = 0) -> Floats:
    """The streams [steps, trials] with the scenario's change from LEAD on."""
    generator = np.random.default_rng([seed, *scenario.name.encode(), round(1000 * size)])
    since = np.arange(1.0, JUDGED + 1)[:, None]
    residuals = of.residuals.copy()
    residuals[LEAD:] = scenario.change(residuals[LEAD:], since, size, generator)
    return of.trend + residuals * of.scale


def _trend(values: Floats) -> Floats:
    """The running median, by whole windows and straight lines between their middles."""
    steps = np.arange(len(values))
    middles = np.arange(TREND // 2, len(values), TREND // 2)
    medians = [np.median(values[max(0, middle - TREND // 2) : middle + TREND // 2 + 1], axis=0) for middle in middles]
    table = np.stack(medians)
    return np.stack([np.interp(steps, middles, column) for column in table.T], axis=1)


def _level(residuals: Floats, since: Floats, size: float, generator: np.random.Generator) -> Floats:
    return residuals + size


def _fall(residuals: Floats, since: Floats, size: float, generator: np.random.Generator) -> Floats:
    return residuals - size


def _slope(residuals: Floats, since: Floats, size: float, generator: np.random.Generator) -> Floats:
    return residuals + size * since / 100


def _spread(residuals: Floats, since: Floats, size: float, generator: np.random.Generator) -> Floats:
    return residuals * size


def _spike(residuals: Floats, since: Floats, size: float, generator: np.random.Generator) -> Floats:
    """Up and over in one step, which is no change; then a level that lasts."""
    return residuals + SPIKE * (since == 1) + size * (since > AFTER)


def _shape(residuals: Floats, since: Floats, size: float, generator: np.random.Generator) -> Floats:
    """Two humps, each of spread sqrt(1 - size^2), with the mean and the variance that the noise of that stream had."""
    mean, deviation = residuals.mean(axis=0), residuals.std(axis=0)
    humps = np.where(generator.random(residuals.shape) < 0.5, -size, size)
    return mean + deviation * (humps + np.sqrt(1 - size**2) * (generator.permuted(residuals, axis=0) - mean) / deviation)


SCENARIOS = (
    Scenario("level-up", "level up", (0.5, 1, 2), _level),
    Scenario("level-down", "level down, small", (0.35, 0.5, 0.75), _fall),
    Scenario("level-large", "level up, large", (3, 5, 10), _level),
    Scenario("slope", "slope", (1, 2, 4), _slope, "noises in 100 steps"),
    Scenario("slow-slope", "slow slope", (0.25, 0.35, 0.5), _slope, "noises in 100 steps"),
    Scenario("spread-up", "variance up", (1.3, 1.6, 2.5), _spread, "times the standard deviation"),
    Scenario("spread-down", "variance down", (0.75, 0.6, 0.4), _spread, "times the standard deviation"),
    Scenario("shape", "distribution, with the same mean and variance", (0.8, 0.9, 0.97), _shape, "humps' distance from the mean"),
    Scenario("level-correlated", "level up, on correlated noise", (0.75, 1.5, 3), _level, is_correlated=True),
    Scenario("spike", "level up after a spike", (0.5, 1, 2), _spike, begins=AFTER),
)
