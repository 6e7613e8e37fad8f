"""A training as the records of its blocks, made of the courses of their statistics; and what detectors say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from resmon.detectors import Detector
from resmon.detectors.window import Windows
from resmon.flight.reader import Follower
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    MAGNITUDE_COLUMNS,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    RUN_VALUES,
    Columns,
    Finding,
    Floats,
    ResidualSite,
    ScalarRecord,
    StepRecord,
)
from tests import synthetic

ELEMENTS = 32
Item = Columns | StepRecord | ScalarRecord
# Each statistic of a block as the value that a record holds, and what turns it into that.
_SQUARED = {
    "skip_rms": ("skip_square", ELEMENTS),
    "branch_rms": ("branch_square", ELEMENTS),
    "output_rms": ("output_square", ELEMENTS),
    "gradient_norm": ("gradient_square", 1),
    "output_gradient_norm": ("output_gradient_square", 1),
}


def course(
    steps: int,
    sites: Sequence[ResidualSite] | int = 6,
    *,
    first: int = 0,
    seed: int = 0,
    jitter: float = 0.05,
    run: Mapping[str, Any] | None = None,
    scalars: Mapping[str, Any] | None = None,
    magnitude: Any = None,
    **statistics: Any,
) -> list[Item]:
    """Steps from `first` on. Each of `statistics` is a number or an array that broadcasts to [steps, S], to which relative noise is
    added; NaN is absent. A name of BLOCK_VALUES or BLOCK_COUNTS is set as it is, without noise. `run` and `scalars` are by name,
    a number or an array [steps]; what is logged as NaN is not logged. `magnitude` is the mean log2 of |y|, [steps, S], of which
    ELEMENTS values a step are drawn for the histograms; without it these are empty.
    """
    known = synthetic.sites(sites) if isinstance(sites, int) else tuple(sites)
    training = synthetic.Training(known)
    base, random, shape = training.step(), np.random.default_rng(seed), (steps, len(known))
    usual = {"skip_rms": 1.0, "branch_rms": 0.3, "output_rms": 1.05, "gradient_norm": 0.1, "output_gradient_norm": 0.01}
    squares: dict[str, Floats] = {}
    for name, value in (usual | statistics).items():
        if name in _SQUARED:
            into, times = _SQUARED[name]
            noisy = np.broadcast_to(np.asarray(value, float), shape) * np.exp(jitter * random.normal(0, 1, shape))
            squares[into] = noisy**2 * times
        else:
            squares[name] = np.broadcast_to(np.asarray(value, float), shape)
    values = {name: np.broadcast_to(np.asarray(each, float), steps) for name, each in (run or {}).items()}
    logged = {name: np.broadcast_to(np.asarray(each, float), steps) for name, each in (scalars or {}).items()}
    buckets = np.broadcast_to(base.magnitude_buckets, (steps, *base.magnitude_buckets.shape))
    if magnitude is not None:
        drawn = np.broadcast_to(np.asarray(magnitude, float), shape)[..., None] + random.normal(0, 1.5, (*shape, ELEMENTS))
        places = np.clip(np.ceil(drawn) - MAGNITUDE_LOW, 0, MAGNITUDE_LARGER).astype(int)
        buckets = (places[..., None] == np.arange(MAGNITUDE_COLUMNS)).sum(axis=2).cumsum(axis=0)
    made: list[Item] = [Columns(known)]
    for i in range(steps):
        blocks, present, counts = np.zeros_like(base.blocks), np.zeros_like(base.blocks_present), np.zeros_like(base.counts)
        counts[BLOCK_COUNTS.index("elements")] = ELEMENTS
        for name, each in squares.items():
            if name in BLOCK_COUNTS:
                counts[BLOCK_COUNTS.index(name)] = each[i]
            else:
                blocks[BLOCK_VALUES.index(name)] = each[i]
                present[BLOCK_VALUES.index(name)] = ~np.isnan(each[i])
        of_run, there = synthetic.run_values(**{name: float(each[i]) for name, each in values.items()}), base.run_present.copy()
        there[RUN_VALUES.index("loss_scale")] = "loss_scale" in values
        for name, each in values.items():
            there[RUN_VALUES.index(name)] = not np.isnan(each[i])
        step = first + i
        made.append(
            replace(
                base,
                step=step,
                time=1000.0 + step,
                run=of_run,
                run_present=there,
                blocks=blocks,
                blocks_present=present,
                counts=counts,
                steps_total=step + 1,
                magnitude_buckets=buckets[i],
            )
        )
        now = {name: float(each[i]) for name, each in logged.items() if not np.isnan(each[i])}
        if now:
            made.append(ScalarRecord(step, 1000.0 + step, now))
    return made


class Alone:
    """One detector, told of everything as the bank tells it."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.windows = Windows()
        self.columns = Columns()
        self.newest = (0, 0.0)

    def take(self, items: Iterable[Item]) -> list[Finding]:
        events: list[Finding] = []
        for item in items:
            if isinstance(item, Columns):
                self.columns = item
            elif isinstance(item, StepRecord):
                self.newest = (item.step, item.time)
                for window in self.windows.add(item, self.columns.sites):
                    events += self.detector.window(window)
                events += self.detector.step(item, self.columns.sites)
            else:
                self.windows.log(item)
                events += self.detector.scalars(item)
        return events

    def end(self) -> list[Finding]:
        events = [event for window in self.windows.flush() for event in self.detector.window(window)]
        return [*events, *self.detector.end(*self.newest)]


def said(detector: Detector, *items: Iterable[Item], end: bool = False) -> list[Finding]:
    """What a detector says of these stretches, one after the other; the run's end is told where that is asked for."""
    alone = Alone(detector)
    events = [event for stretch in items for event in alone.take(stretch)]
    return events + alone.end() if end else events


def recorded(run: Path) -> list[Item]:
    """What the first rank of a run's newest attempt wrote."""
    follower = Follower(max(run.glob("attempt-*")) / "rank-00000")
    items: list[Item] = []
    while found := follower.poll():
        items += found
    follower.close()
    return items
