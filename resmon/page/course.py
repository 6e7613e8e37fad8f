"""What a screen can show of a run between two steps: columns of equally many steps, of every block and quantity.

A column keeps lowest, mean and highest, so that a spike in one step is seen however many steps stand in its column. The columns are
a power of two wide and as many as the room in memory allows; when the run outgrows them, two become one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from resmon.page.history import NAMES, Logged
from resmon.page.rows import RUN, Rows
from resmon.plots.curves import Curve
from resmon.plots.measures import MEASURES, PLACES, Measure
from resmon.records import MAGNITUDE_COLUMNS, Bools, Floats, Ints, ResidualSite

ROOM = 12 << 20  # bytes that the columns of one course may take
MOST, LEAST = 384, 32  # columns
COARSE = 4  # columns that share one histogram of magnitudes
CELL = 20  # bytes of a quantity, block and column

Sites = tuple[ResidualSite, ...]

_STREAM = next(m for m, measure in enumerate(MEASURES) if measure.name == "skip_rms")


def columns_for(sites: int) -> int:
    """How many columns there is room for."""
    each = max(1, sites) * (CELL * len(MEASURES) + 4 * MAGNITUDE_COLUMNS // COARSE)
    return max(LEAST, min(MOST, ROOM // each // COARSE * COARSE))


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """A quantity of S blocks over C columns of steps, [S, C]: NaN where nothing is known."""

    first: Ints
    last: Ints
    low: Floats
    mean: Floats
    high: Floats
    nonfinite: Bools


class Table:
    """Lowest, highest, sum and weight of values; the second axis is that of columns."""

    def __init__(self, *shape: int) -> None:
        self.low, self.high = (np.full(shape, np.nan, np.float32) for _ in range(2))
        self.total, self.weight = np.zeros(shape), np.zeros(shape, np.float32)

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return self.low, self.high, self.total, self.weight

    def fold(self, where: Any, stretch: Ints, begins: Ints, low: Floats, high: Floats, total: Floats, weight: Floats) -> None:
        """Take stretches of steps in, those from each of `begins` on as one."""
        with np.errstate(over="ignore"):
            self.low[where] = np.fmin(self.low[where], np.fmin.reduceat(low[stretch], begins, axis=0))
            self.high[where] = np.fmax(self.high[where], np.fmax.reduceat(high[stretch], begins, axis=0))
            self.weight[where] += np.add.reduceat(weight[stretch], begins, axis=0)
        self.total[where] += np.add.reduceat(np.where(weight > 0, total, 0.0)[stretch], begins, axis=0)

    def halve(self) -> None:
        """Make one of every two columns, which are the second axis."""
        for table, how in zip(self.arrays, (np.fmin, np.fmax, np.add, np.add), strict=True):
            half = table.shape[1] // 2
            table[:, :half] = how(table[:, 0::2], table[:, 1::2])
            table[:, half:] = np.nan if how in (np.fmin, np.fmax) else 0.0

    def beside(self, other: Table) -> Table:
        """With another's along the last axis."""
        if not self.low.size:  # no copy: of a thousand blocks it is 20 megabytes
            return other
        made = Table(0)
        made.low, made.high, made.total, made.weight = (
            np.concatenate(pair, axis=-1) for pair in zip(self.arrays, other.arrays, strict=True)
        )
        return made


class Course:
    """Columns from step `begin` on. With `until` nothing behind that step is taken in."""

    def __init__(self, begin: int, width: int, columns: int, until: int | None = None) -> None:
        self.begin, self.width, self.until = begin, width, until
        self.sites: Sites = ()
        self.newest = begin - 1  # the last step that was taken in
        self._most = columns
        self._times = np.full(columns, np.nan)
        self._run = Table(len(RUN), columns)
        self._names: dict[str, Table] = {}
        self._blocks = Table(len(MEASURES), columns, 0)
        self._nonfinite = np.zeros((2, columns, 0), bool)
        self._counted = np.full(columns // COARSE, -1, np.int64)  # the step whose counts these are
        self._buckets = np.zeros(
            (columns // COARSE, 0, MAGNITUDE_COLUMNS), np.float32
        )  # whose errors are a millionth of the counts
        self.base: Floats | None = np.zeros((0, MAGNITUDE_COLUMNS))  # counts before the first column; None where not known

    @property
    def size(self) -> int:
        """Bytes."""
        tables = [array for table in (self._blocks, self._run, *self._names.values()) for array in table.arrays]
        return sum(array.nbytes for array in (*tables, self._nonfinite, self._buckets))

    @property
    def used(self) -> int:
        """Columns that have something in them."""
        return max(0, min(self._most, (self.newest - self.begin) // self.width + 1))

    def add(self, rows: Rows) -> None:
        """Take rows in."""
        if self.until is not None:
            rows = rows.take(rows.first <= self.until)
        rows = rows.take(rows.last >= self.begin)
        if not len(rows):
            return
        last = int(rows.last.max())
        self._reach(last)
        place = self._arrange(rows.sites)
        stretch, column = self._columns(rows.first, rows.last)
        begins = np.flatnonzero(np.r_[True, np.diff(column) != 0])
        at = column[begins]
        # In a step's own unit the extremes; the mean's parts stay sums.
        per_step = rows.elements / rows.steps[:, None]
        for m, measure in enumerate(MEASURES):
            value = PLACES[measure.value]
            low, high = (_rooted(table[:, value], measure, per_step) for table in (rows.low, rows.high))
            weight = rows.count[:, value]
            if measure.root == "root mean square":
                weight = weight * per_step
            self._blocks.fold(np.ix_(np.array([m]), at, place), stretch, begins, low, high, rows.total[:, value], weight)
        flags = np.logical_or.reduceat(rows.nonfinite[stretch], begins, axis=0)
        for direction in range(2):
            self._nonfinite[direction][np.ix_(at, place)] |= flags[:, direction]
        for r in range(len(RUN)):
            ranges = (table[:, r] for table in (rows.run_low, rows.run_high, rows.run_total, rows.run_count))
            self._run.fold((r, at), stretch, begins, *ranges)
        self._times[at] = np.fmax(self._times[at], np.fmax.reduceat(rows.time[stretch], begins))
        coarse = np.clip((rows.last - self.begin) // self.width // COARSE, 0, len(self._counted) - 1)
        for i in np.flatnonzero(np.r_[np.diff(coarse) != 0, True]):
            if rows.last[i] > self._counted[coarse[i]]:
                self._counted[coarse[i]] = rows.last[i]
                self._buckets[coarse[i]][place] = rows.buckets[i]
        self.newest = max(self.newest, last if self.until is None else min(last, self.until))

    def log(self, logged: Logged) -> None:
        """Take logged values in."""
        keep = logged.last >= self.begin
        if self.until is not None:
            keep &= logged.first <= self.until
        if not keep.any() or (logged.name not in self._names and len(self._names) >= NAMES):
            return
        self._reach(int(logged.last[keep].max()))
        table = self._names.setdefault(logged.name, Table(1, self._most))
        stretch, column = self._columns(logged.first[keep], logged.last[keep])
        begins = np.flatnonzero(np.r_[True, np.diff(column) != 0])
        ranges = (each[keep] for each in (logged.low, logged.high, logged.total, logged.count))
        table.fold((0, column[begins]), stretch, begins, *ranges)

    def cells(self, measure: Measure) -> Cells:
        """A quantity of all blocks."""
        m, used = MEASURES.index(measure), self.used
        low, high, total, weight = (table[m, :used].T.astype(float) for table in self._blocks.arrays)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(weight > 0, total / weight, np.nan)
            mean = mean if measure.root == "value" else np.sqrt(mean)
        first, last = self._steps(used)
        nonfinite = self._nonfinite[0 if measure.direction == "forward" else 1][:used].T
        return Cells(first, last, low, mean, high, nonfinite)

    def there(self) -> list[Measure]:
        """The quantities that the run has."""
        return [measure for m, measure in enumerate(MEASURES) if bool((self._blocks.weight[m] > 0).any())]

    def run(self, name: str) -> Curve | None:
        """A curve of the run's own values: gradient_norm, learning_rate or duration."""
        value = {"gradient_norm": "gradient_square"}.get(name, name)
        r = list(RUN).index(value)
        curve = self._curve(self._run, r)
        if curve is None or value == name:
            return curve
        return Curve(curve.step, np.sqrt(curve.low), np.sqrt(curve.mean), np.sqrt(curve.high))

    def newest_known(self, first: int, last: int) -> int:
        """The newest of these steps, about, at which a block's stream is a number; the last where there is none."""
        last = max(self.begin, min(last, self.newest))
        known = np.flatnonzero((self._blocks.weight[_STREAM, : self.used] > 0).any(axis=1))
        known = known[(known >= (first - self.begin) // self.width) & (known <= (last - self.begin) // self.width)]
        return last if not len(known) else min(last, self.begin + (int(known[-1]) + 1) * self.width - 1)

    def scores(self) -> list[str]:
        """The names that were logged."""
        return list(self._names)

    def score(self, name: str) -> Curve | None:
        table = self._names.get(name)
        return None if table is None else self._curve(table, 0)

    def time_of(self, step: int) -> float | None:
        """Unix seconds, about."""
        place = (step - self.begin) // self.width
        if not 0 <= place < self.used or np.isnan(self._times[place]):
            return None
        return float(self._times[place])

    def magnitudes(self, block: int) -> tuple[Ints, Ints, Floats]:
        """Of a block's sampled |y| the share in each bucket, [MAGNITUDE_COLUMNS, columns], and these columns' steps."""
        used = -(-self.used // COARSE)
        known = np.flatnonzero(self._counted[:used] >= 0)
        counts = self._buckets[known, block].astype(float)
        base = self.base[block] if self.base is not None and block < len(self.base) else None
        if base is None:
            own, known = np.diff(counts, axis=0), known[1:]
        else:
            own = np.diff(counts, axis=0, prepend=base[None])
        total = own.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.where((total > 0) & (own >= 0).all(axis=1, keepdims=True), own / total, np.nan)
        made = np.full((used, MAGNITUDE_COLUMNS), np.nan)
        made[known] = shares
        first = self.begin + np.arange(used) * self.width * COARSE
        return first, first + self.width * COARSE - 1, made.T

    def _curve(self, table: Table, i: int) -> Curve | None:
        low, high, total, weight = (array[i, : self.used].astype(float) for array in table.arrays)
        there = weight > 0
        if not there.any():
            return None
        first, last = self._steps(self.used)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / weight
        return Curve(((first + np.minimum(last, self.newest)) / 2)[there], low[there], mean[there], high[there])

    def _steps(self, used: int) -> tuple[Ints, Ints]:
        first = self.begin + np.arange(used) * self.width
        return first, first + self.width - 1

    def _columns(self, first: Ints, last: Ints) -> tuple[Ints, Ints]:
        """Which stretch goes into which column: a wide one into all that it reaches."""
        begin, end = (np.clip((at - self.begin) // self.width, 0, self._most - 1) for at in (first, last))
        each = end - begin + 1
        stretch = np.repeat(np.arange(len(first)), each)
        column = begin[stretch] + np.arange(len(stretch)) - np.repeat(np.cumsum(each) - each, each)
        if np.all(np.diff(column) >= 0):
            return stretch, column
        order = np.argsort(column, kind="stable")
        return stretch[order], column[order]

    def _reach(self, last: int) -> None:
        """Make room up to that step."""
        if self.until is not None:
            last = min(last, self.until)
        while (last - self.begin) // self.width >= self._most:
            self._halve()

    def _halve(self) -> None:
        self.width *= 2
        for table in (self._blocks, self._run, *self._names.values()):
            table.halve()
        half = self._most // 2
        self._nonfinite[:, :half] = self._nonfinite[:, 0::2] | self._nonfinite[:, 1::2]
        self._nonfinite[:, half:] = False
        self._times[:half] = np.fmax(self._times[0::2], self._times[1::2])
        self._times[half:] = np.nan
        groups = len(self._counted) // 2
        later = self._counted[1::2] >= 0
        self._buckets[:groups] = np.where(later[:, None, None], self._buckets[1::2], self._buckets[0::2])
        self._counted[:groups] = np.where(later, self._counted[1::2], self._counted[0::2])
        self._buckets[groups:], self._counted[groups:] = 0, -1

    def _arrange(self, sites: Sites) -> Ints:
        """Where these blocks stand; new ones get a place behind the others."""
        if sites is self.sites or sites == self.sites:
            return np.arange(len(sites))
        places = {(site.model, site.name): i for i, site in enumerate(self.sites)}
        new = [site for site in sites if (site.model, site.name) not in places]
        if new:
            more = len(new)
            self._blocks = self._blocks.beside(Table(len(MEASURES), self._most, more))
            self._nonfinite = np.concatenate([self._nonfinite, np.zeros((2, self._most, more), bool)], axis=2)
            self._buckets = np.concatenate(
                [self._buckets, np.zeros((len(self._buckets), more, MAGNITUDE_COLUMNS), np.float32)], axis=1
            )
            if self.base is not None:
                self.base = np.concatenate([self.base, np.zeros((more, MAGNITUDE_COLUMNS))])
            self.sites = (*self.sites, *new)
            places = {(site.model, site.name): i for i, site in enumerate(self.sites)}
        return np.array([places[site.model, site.name] for site in sites], np.int64)


def _rooted(values: Floats, measure: Measure, per_step: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        if measure.root == "value":
            return values
        found: Floats = np.sqrt(values / per_step if measure.root == "root mean square" else values)
        return found
