"""Scores as a loop logs them, for the detectors that read them: made from a seed, or of a real training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from resmon.detectors import Detector
from resmon.flight.reader import Follower
from resmon.records import Columns, Finding, Floats, ScalarRecord, StepRecord
from tests import synthetic

BASE = synthetic.Training(()).step()


def step_of(step: int, rate: float | None = 0.1) -> StepRecord:
    """A record of a model without blocks, of which only the learning rate is told."""
    run, there = synthetic.run_values(learning_rate=rate or 0.0), BASE.run_present.copy()
    there[synthetic.RUN_VALUES.index("learning_rate")] = rate is not None
    return replace(BASE, step=step, time=float(step), run=run, run_present=there)


def feed(
    detector: Detector, logged: Iterable[tuple[int, Mapping[str, float]]], rates: Sequence[float] | None = None
) -> list[Finding]:
    """What a detector says of scores by step; the run's end is not told."""
    events: list[Finding] = []
    before = -1
    for step, values in logged:
        for each in range(before + 1, step + 1) if rates is not None else (step,):
            events += detector.step(step_of(each, rates[each] if rates is not None else 0.1), ())
        before = step
        events += detector.scalars(ScalarRecord(step, float(step), dict(values)))
    return events


def replay(folder: Path, *detectors: Detector) -> list[Finding]:
    """What detectors say of a rank's flight."""
    follower, columns, events = Follower(folder), Columns(), []
    while items := follower.poll():
        for item in items:
            if isinstance(item, Columns):
                columns = item
            for detector in detectors:
                if isinstance(item, StepRecord):
                    events += detector.step(item, columns.sites)
                elif isinstance(item, ScalarRecord):
                    events += detector.scalars(item)
    follower.close()
    return events


def noise(random: np.random.Generator, count: int, kind: str) -> Floats:
    """Multiplicative noise on a logarithmic scale, with a standard deviation of about 1."""
    white = random.normal(0, 1, count)
    if kind == "heavy":
        return random.standard_t(3, count) / 3**0.5
    if kind == "correlated":
        made = np.empty(count)
        state = 0.0
        for i, each in enumerate(white):
            state = 0.95 * state + each * (1 - 0.95**2) ** 0.5
            made[i] = state
        return made
    return white


def healthy_loss(random: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """A loss that falls as losses do, and the learning rates that went with it."""
    step = np.arange(count)
    floor, begin = 10 ** random.uniform(-3, 0.3), 10 ** random.uniform(0.2, 1.1)
    half, power = 10 ** random.uniform(0, 2.3), random.uniform(0.3, 1.5)
    mean = floor + (begin - floor) * (1 + step / half) ** -power
    schedule = random.choice(["constant", "warm-up", "cosine", "restarts"])
    rate = np.full(count, 0.1)
    if schedule != "constant":
        warm = int(random.integers(10, max(11, count // 8)))
        rate *= np.minimum(1.0, (step + 1) / warm)
        if schedule == "cosine":
            rate *= 0.5 * (1 + np.cos(np.pi * step / count)) + 1e-3
        if schedule == "restarts":
            period = max(2, count // int(random.integers(2, 6)))
            rate = 0.1 * (0.5 * (1 + np.cos(np.pi * (step % period) / period)) + 1e-3)
            # A restart throws the loss back, by less than it has come down from the beginning.
            mean = mean + (step >= period) * random.uniform(0, 0.5) * (begin - mean) * np.exp(-(step % period) / (period / 4))
        if schedule == "warm-up":  # the first steps, at hardly any rate, bring nothing, or a hump
            mean = mean * (1 + random.uniform(0, 0.5) * np.exp(-(((step - warm / 2) / (warm / 4)) ** 2)))
    kind = random.choice(["white", "heavy", "correlated"])
    level = random.uniform(0.005, 0.5 if kind == "white" else 0.25)
    loss = mean * np.exp(level * noise(random, count, str(kind)))
    spikes = random.random(count) < random.choice([0.0, 0.003, 0.01])
    loss[spikes] *= random.uniform(1.5, 20, int(spikes.sum()))
    return loss, rate
