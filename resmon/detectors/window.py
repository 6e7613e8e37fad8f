"""Sixteen steps at once: what most detectors look at.

A block's numbers jitter from step to step, so a level is the median of a window, which a few odd steps do not move. Windows are
made once for all detectors; each statistic is computed when the first of them asks for it. A window is handed over when the first
step after it comes: what was logged at its last step is there by then, live as in a replay. It ends early where the sites change or
steps are missing, as in a flight whose older steps were thinned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from resmon.records import (
    BLOCK_COUNTS,
    GROUP_VALUES,
    MAGNITUDE_COLUMNS,
    RUN_VALUES,
    Bools,
    Floats,
    Ints,
    ResidualSite,
    ScalarRecord,
    StepRecord,
)
from resmon.statistics import Column, statistics

WINDOW = 16  # steps
HELD = 4096  # calls of `log` that wait for their window
LARGE = 64 << 10  # bytes of a step's histograms, beyond which those that nobody looks at are let go
_ELEMENTS = BLOCK_COUNTS.index("elements")


class Window:
    """`n` steps in a row (at most WINDOW) of S sites. In all arrays NaN is: absent, or not finite."""

    def __init__(
        self,
        records: Sequence[StepRecord],
        sites: tuple[ResidualSite, ...],
        models: Mapping[str, Ints],
        scalars: Mapping[str, Floats],
        before: Ints | None,
    ) -> None:
        self.sites = sites
        self.models = models  # indices of each model's sites
        self.scalars = scalars  # logged values by name, [n]; the mean of several at one step
        self._records = tuple(records)
        self._before = before
        self._blocks: dict[str, Floats] = {}
        self._medians: dict[str, Floats] = {}
        self._statistics: dict[str, Column] | None = None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def first_step(self) -> int:
        return self._records[0].step

    @property
    def step(self) -> int:
        """The last one."""
        return self._records[-1].step

    @property
    def time(self) -> float:
        """Of the last step."""
        return self._records[-1].time

    @property
    def steps(self) -> Ints:
        return np.array([record.step for record in self._records])

    @property
    def skipped(self) -> int:
        """Steps that a gradient scaler skipped."""
        return sum(record.skipped for record in self._records)

    def blocks(self, statistic: str) -> Floats:
        """One of statistics.STATISTICS at each step, [n, S]."""
        known = self._blocks.get(statistic)
        if known is None:
            column = self._all()[statistic]
            known = self._blocks[statistic] = np.where(column.present & np.isfinite(column.values), column.values, np.nan)
        return known

    def present(self, statistic: str) -> Bools:
        """Whether it was there at each step, finite or not, [n, S]."""
        return self._all()[statistic].present

    def median(self, statistic: str) -> Floats:
        """Of the block's steps, [S]; NaN where fewer than half of them have a value."""
        known = self._medians.get(statistic)
        if known is None:
            known = self._medians[statistic] = median(self.blocks(statistic), (len(self) + 1) // 2)
        return known

    def counts(self, name: str) -> Ints:
        """One of records.BLOCK_COUNTS at each step, [n, S]; elements is 0 where a site did not run."""
        return np.stack([record.counts[BLOCK_COUNTS.index(name)] for record in self._records])

    def run(self, name: str) -> Floats:
        """One of records.RUN_VALUES at each step, [n]."""
        i = RUN_VALUES.index(name)
        values = [record.run[i] if record.run_present[i] else np.nan for record in self._records]
        return _finite(np.array(values, np.float64))

    def groups(self, name: str) -> Floats:
        """One of records.GROUP_VALUES at each step and of each parameter group, [n, G]; G may be 0."""
        i = GROUP_VALUES.index(name)
        width = min(record.groups.shape[1] for record in self._records)
        rows = [np.where(record.groups_present[i], record.groups[i], np.nan)[:width] for record in self._records]
        return _finite(np.stack(rows))

    def in_model(self, flags: Bools) -> Bools:
        """Whether it is so of any site of the same model, [S]."""
        found = np.zeros(len(self.sites), bool)
        for mine in self.models.values():
            found[mine] = flags[mine].any()
        return found

    @property
    def histogram(self) -> Ints:
        """Sampled |y| of each site in these steps, [S, MAGNITUDE_COLUMNS]."""
        newest = self._records[-1].magnitude_buckets
        # They are cumulative; where the step before is not known, what is known begins with the first step.
        before = self._before if self._before is not None else self._records[0].magnitude_buckets
        sampled: Ints = np.maximum(newest - before, 0)
        return sampled

    def _all(self) -> dict[str, Column]:
        if self._statistics is None:
            counts = np.stack([record.counts for record in self._records], axis=1)
            values = np.stack([record.blocks for record in self._records], axis=1)
            present = np.stack([record.blocks_present for record in self._records], axis=1)
            elements = np.broadcast_to(counts[_ELEMENTS], values.shape)
            self._statistics = statistics(values, present, elements, counts)
        return self._statistics


class Windows:
    """Gathers steps and logged values into windows, which `add` and `flush` give."""

    def __init__(self) -> None:
        self._records: list[StepRecord] = []
        self._sites: tuple[ResidualSite, ...] = ()
        self._models: dict[str, Ints] = {}
        self._scalars: deque[ScalarRecord] = deque(maxlen=HELD)
        self._before: Ints | None = None  # cumulative histograms at the end of the window before

    def add(self, record: StepRecord, sites: Sequence[ResidualSite]) -> Iterator[Window]:
        """Take a step; the window that is over now, where one is."""
        changed = sites is not self._sites and tuple(sites) != self._sites
        broken = bool(self._records) and record.step != self._records[-1].step + 1
        if self._records and (changed or broken or len(self._records) == WINDOW):
            yield self._window()
        if changed:
            self._sites = tuple(sites)
            self._models = by_model(self._sites)
        if changed or broken:
            self._before = None
        if record.complete:
            if len(self._records) > 1 and record.magnitude_buckets.nbytes > LARGE:
                # Cumulative: of a window the first and the last are looked at, and they are most of a row. (An empty part of them
                # would be a view, which holds all.)
                self._records[-1] = replace(self._records[-1], magnitude_buckets=np.empty((0, MAGNITUDE_COLUMNS), np.int64))
            self._records.append(record)

    def log(self, record: ScalarRecord) -> None:
        """Take logged values."""
        self._scalars.append(record)

    def flush(self) -> Iterator[Window]:
        """The run is over."""
        if self._records:
            yield self._window()

    def _window(self) -> Window:
        records, self._records = self._records, []
        first, last = records[0].step, records[-1].step
        sums: dict[str, list[float]] = {}
        counts: dict[str, list[int]] = {}
        for each in self._scalars:
            if first <= each.step <= last:
                for name, value in each.values.items():
                    if isfinite(value):
                        if name not in sums:
                            sums[name], counts[name] = [0.0] * (last - first + 1), [0] * (last - first + 1)
                        sums[name][each.step - first] += value
                        counts[name][each.step - first] += 1
        while self._scalars and self._scalars[0].step <= last:
            self._scalars.popleft()
        if any(each.step <= last for each in self._scalars):  # logged behind a later one
            self._scalars = deque((each for each in self._scalars if each.step > last), HELD)
        with np.errstate(invalid="ignore", over="ignore"):
            scalars = {name: _finite(np.array(sums[name]) / np.array(counts[name])) for name in sums}
        window = Window(records, self._sites, self._models, scalars, self._before)
        self._before = records[-1].magnitude_buckets
        return window


def median(values: npt.NDArray[Any], least: int = 1) -> npt.NDArray[Any]:
    """Over the first axis, of what is not NaN; NaN where that are fewer than `least`."""
    if not len(values):
        return np.full(values.shape[1:], np.nan)
    ordered = np.sort(values, axis=0)  # NaN comes last
    if not np.isnan(ordered[-1]).any():
        middle: npt.NDArray[Any] = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
        return middle if len(values) >= least else np.full(values.shape[1:], np.nan)
    there = len(values) - np.isnan(ordered).sum(axis=0)
    low, high = np.maximum(there - 1, 0) // 2, np.minimum(there // 2, len(values) - 1)
    middle = (np.take_along_axis(ordered, low[None], 0)[0] + np.take_along_axis(ordered, high[None], 0)[0]) / 2
    return np.where(there >= max(1, least), middle, np.nan)


def by_model(sites: Sequence[ResidualSite]) -> dict[str, Ints]:
    """Indices of the sites of each model."""
    models: dict[str, list[int]] = {}
    for i, site in enumerate(sites):
        models.setdefault(site.model, []).append(i)
    return {model: np.array(mine, np.int64) for model, mine in models.items()}


def rearranged(values: Any, old: Sequence[ResidualSite], new: Sequence[ResidualSite], fill: Any) -> Any:
    """An array whose last axis is of the old sites, for the new ones: what is known of a site stays with it."""
    places = {(site.model, site.name): i for i, site in enumerate(old)}
    found = np.array([places.get((site.model, site.name), -1) for site in new], np.int64)
    made = np.full((*values.shape[:-1], len(new)), fill, values.dtype)
    made[..., found >= 0] = values[..., found[found >= 0]]
    return made


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)
