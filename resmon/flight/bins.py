"""Thinned history: minimum, maximum, sum and count of every value over growing bins.

Bins of 64 steps are made from steps, those of 512 from eight of these, and so on by eights; so what is thinned at one level is
whole in the next. Values that are absent, NaN or infinite are left out of all four numbers, a bin without a finite value has
count 0 and no minimum. What that costs a step does not grow with the number of levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from resmon.flight.schema import BINNED_BLOCK_VALUES, STATISTICS, Row, nanoseconds
from resmon.records import BLOCK_COUNTS, BLOCK_VALUES, GROUP_VALUES, RUN_VALUES, Bools, Floats, Ints, ScalarRecord, StepRecord

LEVELS = 6  # bins of 64, 512, 4,096, 32,768, 262,144 and 2,097,152 steps
STEPS = 64  # of a bin of the first level
FACTOR = 8
# Of the first level so many steps are summarised at once: a handful of vector operations for all of them.
AT_ONCE = 8

# A run that logs under ever new names must not grow the training process: beyond this many a bin takes no new ones.
NAMES = 1000

_SKIP = BLOCK_VALUES.index("skip_square")
_BRANCH = BLOCK_VALUES.index("branch_square")
_KEPT_SQUARE = BLOCK_VALUES.index("kept_square")


@dataclass(slots=True, eq=False)
class Bin:
    """What is summarised of some steps; arrays of numbers hold the run's values, then G of each group's, then S of each block's."""

    low: Floats
    high: Floats
    sum: Floats
    count: Ints
    counts: Ints  # sums of [len(BLOCK_COUNTS), S]
    steps: int = 0
    first_step: int = 0
    first_time: float = 0.0
    last: StepRecord | None = None  # for the counters as at the bin's end
    parts: int = 0  # bins of the finer level in this one
    scalars: dict[str, ScalarBin] = field(default_factory=dict)

    @classmethod
    def empty(cls, sites: int, groups: int) -> Bin:
        size = len(RUN_VALUES) + len(GROUP_VALUES) * groups + len(BINNED_BLOCK_VALUES) * sites
        nothing = np.full(size, np.nan)
        counts = np.zeros((len(BLOCK_COUNTS), sites), np.int64)
        return cls(nothing, nothing.copy(), np.zeros(size), np.zeros(size, np.int64), counts)

    def clear(self) -> None:
        self.low.fill(np.nan)
        self.high.fill(np.nan)
        for array in (self.sum, self.count, self.counts):
            array.fill(0)
        self.steps = self.parts = 0
        self.last = None
        self.scalars = {}

    def take(self, values: Floats, counts: Ints) -> None:
        """Take the values of some steps in, [steps, ...] and NaN where they do not count, and the sums of their counts."""
        there = ~np.isnan(values)
        np.fmin(self.low, np.fmin.reduce(values), out=self.low)
        np.fmax(self.high, np.fmax.reduce(values), out=self.high)
        with np.errstate(over="ignore"):
            self.sum += np.add.reduce(values, where=there)
        self.count += np.count_nonzero(there, axis=0)
        self.counts += counts

    def fold(self, finer: Bin) -> None:
        """Take a whole bin of the finer level in."""
        np.fmin(self.low, finer.low, out=self.low)
        np.fmax(self.high, finer.high, out=self.high)
        self.sum += finer.sum
        self.count += finer.count
        self.counts += finer.counts
        if not self.steps:
            self.first_step, self.first_time = finer.first_step, finer.first_time
        self.steps += finer.steps
        self.parts += 1
        self.last = finer.last or self.last
        for name, scalar in finer.scalars.items():
            self.logged(name, scalar)

    def logged(self, name: str, scalar: ScalarBin) -> None:
        """Take a name's summary in."""
        mine = self.scalars.get(name)
        if mine is None and len(self.scalars) < NAMES:
            mine = self.scalars[name] = ScalarBin()
        if mine is not None:
            mine.fold(scalar)

    def fill(self, row: Row, last: StepRecord) -> None:
        """Write the bin, which ends with `last`, into a row of kind "bins"."""
        self._fill_place(row, last)
        row.fields["steps"][0] = self.steps
        names = [*RUN_VALUES, *(f"group_{name}" for name in GROUP_VALUES), *(f"block_{name}" for name in BINNED_BLOCK_VALUES)]
        begin = 0
        for name in names:
            part = slice(begin, begin := begin + row.fields[f"{name}_sum"].size)
            for statistic, values in zip(STATISTICS, (self.low, self.high, self.sum, self.count), strict=True):
                row.fields[f"{name}_{statistic}"][:] = values[part]
            for statistic in ("min", "max"):
                row.validity(f"{name}_{statistic}", self.count[part] > 0)
        for name, values in zip(BLOCK_COUNTS, self.counts, strict=True):
            row.fields[f"block_{name}_sum"][:] = values
        fill_counters(row, last)

    def fill_scalar(self, row: Row, last: StepRecord, name: bytes, scalar: ScalarBin) -> None:
        """Write what was logged under a name into a row of kind "scalarbins"."""
        self._fill_place(row, last)
        row.text("name", name)
        there = np.array([scalar.count > 0])
        for statistic, value in zip(STATISTICS, (scalar.low, scalar.high, scalar.sum, scalar.count), strict=True):
            row.fields[f"value_{statistic}"][0] = value
        row.validity("value_min", there)
        row.validity("value_max", there)

    def _fill_place(self, row: Row, last: StepRecord) -> None:
        row.fields["first_step"][0] = self.first_step
        row.fields["last_step"][0] = last.step
        row.fields["first_time"][0] = nanoseconds(self.first_time)
        row.fields["last_time"][0] = nanoseconds(last.time)


@dataclass(slots=True)
class ScalarBin:
    """What is summarised of one logged name."""

    low: float = math.inf
    high: float = -math.inf
    sum: float = 0.0
    count: int = 0

    def fold(self, other: ScalarBin) -> None:
        """Take another summary of the name in."""
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.sum += other.sum
        self.count += other.count


class Bins:
    """All levels of one rank's bins; a full bin is handed to `write(level, bin, its last step)` and folded into the next level.

    A bin is closed by the step after it, not by its own last one, so that what is logged at the last step finds its bin.
    """

    def __init__(self, sites: int, groups: int, write: Callable[[int, Bin, StepRecord], None]) -> None:
        self._write = write
        self._levels = [Bin.empty(sites, groups) for _ in range(LEVELS)]
        self._newest: list[StepRecord] = []  # of the open bin of the first level, not summarised yet

    def step(self, record: StepRecord) -> None:
        """Take a step in."""
        current = self._levels[0]
        if current.steps == STEPS:
            self._close(0)
        if not current.steps:
            current.first_step, current.first_time = record.step, record.time
        current.steps += 1
        current.last = record
        self._newest.append(record)
        if len(self._newest) == AT_ONCE:
            self._summarise()

    def _summarise(self) -> None:
        records, self._newest = self._newest, []
        if records:
            self._levels[0].take(_values(records), np.sum([record.counts for record in records], axis=0))

    def scalars(self, record: ScalarRecord) -> None:
        """Take logged values in."""
        for name, value in record.values.items():
            one = ScalarBin(value, value, value, 1) if math.isfinite(value) else ScalarBin()
            self._levels[0].logged(name, one)

    def close(self) -> None:
        """Write what is open on every level, as far as it goes: the run is over, or its sites change."""
        for level in range(LEVELS):
            self._close(level)

    def _close(self, level: int) -> None:
        if level == 0:
            self._summarise()
        current = self._levels[level]
        if current.last is None:
            return
        if level + 1 < LEVELS:
            coarser = self._levels[level + 1]
            if coarser.parts == FACTOR:
                self._close(level + 1)
            coarser.fold(current)
        try:
            self._write(level, current, current.last)
        finally:
            current.clear()


def _values(records: Sequence[StepRecord]) -> Floats:
    """What is summarised of some steps, [steps, ...], NaN where it is absent, NaN or infinite."""
    run = _there([record.run for record in records], [record.run_present for record in records])
    groups = _there([record.groups for record in records], [record.groups_present for record in records])
    blocks = _there([record.blocks for record in records], [record.blocks_present for record in records])
    kept = np.array([record.blocks_present[_KEPT_SQUARE] for record in records])
    with np.errstate(all="ignore"):
        ratios = np.sqrt(blocks[:, _BRANCH] / np.where(kept, blocks[:, _KEPT_SQUARE], blocks[:, _SKIP]))
    values = np.concatenate([each.reshape(len(records), -1) for each in (run, groups, blocks, ratios)], axis=1)
    values[np.isinf(values)] = np.nan
    return values


def _there(values: Sequence[Floats], present: Sequence[Bools]) -> Floats:
    return np.where(present, values, np.nan)


def fill_counters(row: Row, record: StepRecord) -> None:
    """The cumulative counters, which rows of steps and of bins have alike."""
    fields = row.fields
    fields["steps_total"][0] = record.steps_total
    fields["skipped_total"][0] = record.skipped_total
    fields["clipped_total"][0] = record.clipped_total
    fields["errors_total"][0] = record.errors_total
    fields["samples_total"][0] = record.samples_total
    fields["duration_total"][0] = record.duration_total
    fields["phase_totals"][:] = record.phase_totals
    fields["duration_buckets"][:] = record.duration_buckets
    fields["nonfinite_steps"][:] = record.nonfinite_steps
    fields["magnitude_buckets"][:] = record.magnitude_buckets.reshape(-1)
    fields["magnitude_sum"][:] = record.magnitude_sum
