"""What one rank's folder holds, read whole but for what is large: histograms and bins are read again by whoever wants them.

`differences` and `merged_scalars` are what comes of it for frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from resmon.errors import FlightError, FlightVersionError
from resmon.flight import incidents, layout, thinned
from resmon.flight.bins import LEVELS
from resmon.flight.endings import Remains, conclude
from resmon.flight.journal import Lines
from resmon.flight.reader import Segments, Skip, arrays_of, read_end, read_info, step_records, typed
from resmon.flight.schema import Kind, Records, RowFormat, texts
from resmon.records import (
    MAGNITUDE_COLUMNS,
    Bools,
    Checkpoint,
    Floats,
    Ints,
    Outcome,
    ResidualSite,
    RunInfo,
    StepRecord,
)
from resmon.scores.gaps import Gap, Gaps
from resmon.scores.targets import Reached

Array = npt.NDArray[Any]
Line = TypeVar("Line")

ROWS = 4096  # that are held in full at once


@dataclass(slots=True)
class Span:
    """Rows with the same sites; what frames are made of, without the histograms."""

    sites: tuple[ResidualSite, ...]
    groups: tuple[str, ...]
    step: Ints
    time: Ints
    complete: Bools
    skipped: Bools
    run: Floats
    run_present: Bools
    group_values: Floats  # [rows, len(GROUP_VALUES), groups]
    group_present: Bools
    blocks: Floats  # [rows, len(BLOCK_VALUES), sites]
    blocks_present: Bools
    counts: Ints

    @classmethod
    def of(cls, form: RowFormat, records: Records) -> Span:
        return cls(
            form.sites,
            form.groups,
            records["step"].copy(),
            records["time"].copy(),
            records["complete"].astype(bool),
            records["skipped"].astype(bool),
            *arrays_of(records),
        )


@dataclass(slots=True)
class Scalars:
    step: Ints
    time: Ints
    names: list[str]
    value: Floats


class Rank:
    """What one rank's folder holds."""

    def __init__(self, number: int, folder: Path, skipped: list[Skip]) -> None:
        self.number = number
        self.folder = folder
        try:
            self.info: RunInfo | None = read_info(folder)
        except FlightVersionError:
            raise
        except FlightError as error:
            self.info = None
            skipped.append(Skip(folder / layout.INFO, 0, 0, 0, str(error)))
        # Asked in this order: who ended after the first question has left the mark that the second finds.
        held = layout.is_held(folder / layout.LOCK)
        self.end = read_end(folder)
        self.alive = held and self.end is None
        self.spans: list[Span] = []
        self.newest: StepRecord | None = None
        for form, records in self.rows("steps", "steps", skipped):
            self.spans.append(Span.of(form, records))
            (self.newest,) = step_records(form, records[-1:])
        self.scalars = [
            Scalars(records["step"].copy(), records["time"].copy(), texts(records, "name"), records["value"].copy())
            for _, records in self.rows("scalars", "scalars", skipped)
        ]
        places: list[tuple[Ints, Ints]] = []
        for level in range(LEVELS):
            bins = [np.stack([r["first_step"], r["last_step"]]) for _, r in self.rows(f"bins-{level}", "bins", skipped)]
            first, last = np.concatenate([np.empty((2, 0), np.int64), *bins], axis=1)
            places.append((first, last))
            for _ in self.rows(f"scalarbins-{level}", "scalarbins", skipped):
                pass  # read for what is to be said of damage; `Flight.bins` reads them again
        self.finest = [first[keep] for (first, _), keep in zip(places, thinned.finest(places), strict=True)]

        self.checkpoints = self._lines(layout.CHECKPOINTS, partial(typed, Checkpoint), "a checkpoint", skipped)
        self.reached = self._lines(layout.REACHED, partial(typed, Reached), "a target that was met", skipped)
        self.incidents, skips = incidents.read(folder, ended=not self.alive)
        skipped += skips
        self.outcome: Outcome | None = None  # while it lives
        if not self.alive:
            known = incidents.newest(self.incidents)
            end, incident = conclude(Remains(folder, self.info, self.end, self.newest, known))
            self.outcome = end.outcome
            self.incidents += [incident] if incident is not None else []

    def _lines(self, name: str, make: Callable[[Any], Line], what: str, skipped: list[Skip]) -> list[Line]:
        lines = Lines(self.folder / name, make, what)
        found = lines.poll(ended=not self.alive)
        skipped += lines.skips
        return found

    def gaps(self) -> dict[str, list[Gap]]:
        """By score, in order."""
        recorded = concatenate([span.step for span in self.spans], np.int64)
        lost = recorded[1:][np.diff(recorded) > 1].tolist()[::-1]  # behind these holes it goes on; the next one last
        logged = [row for chunk in self.scalars for row in zip(chunk.step.tolist(), chunk.names, chunk.value.tolist(), strict=True)]
        gaps = Gaps()
        found: dict[str, list[Gap]] = {}
        for step, name, value in sorted(logged, key=lambda row: row[0]):
            while lost and lost[-1] <= step:
                lost.pop()
                gaps.interrupt()
            if gap := gaps.add(step, name, value):
                found.setdefault(gap.score, []).append(gap)
        return found

    def rows(self, stem: str, kind: Kind, skipped: list[Skip]) -> Iterator[tuple[RowFormat, Records]]:
        segments = Segments(self.folder, stem, kind)
        try:
            while (rows := segments.read(ROWS, ended=not self.alive)) is not None:
                yield rows
        finally:
            segments.close()
            skipped += segments.skips


def differences(rank: Rank, first: int | None, last: int | None) -> Iterator[tuple[Ints, tuple[ResidualSite, ...], Array, Floats]]:
    """Of each row whose predecessor is there: its step, and each site's counts and sum of that step alone."""
    before: dict[tuple[str, str], tuple[Ints, float]] = {}
    total = 0  # of steps, as the row before has it
    for form, records in rank.rows("steps", "steps", []):
        sites = form.sites
        if last is not None and records["step"][0] > last:
            return
        buckets = np.ascontiguousarray(records["magnitude_buckets"]).reshape(len(records), len(sites), MAGNITUDE_COLUMNS)
        sums = np.ascontiguousarray(records["magnitude_sum"])
        totals = records["steps_total"].copy()
        nothing = (np.zeros(MAGNITUDE_COLUMNS, np.int64), 0.0)
        old = [before.get((site.model, site.name), nothing) for site in sites]
        own = np.diff(buckets, axis=0, prepend=np.array([b for b, _ in old], np.int64).reshape(1, len(sites), MAGNITUDE_COLUMNS))
        own_sums = np.diff(sums, axis=0, prepend=np.array([s for _, s in old]).reshape(1, len(sites)))
        # A step that was cut short counts as no step, so its row's total is that of the row before.
        follows = totals - records["complete"] == np.r_[total, totals[:-1]]
        if first is not None:
            follows &= records["step"] >= first
        if last is not None:
            follows &= records["step"] <= last
        counts = own[follows].reshape(-1, MAGNITUDE_COLUMNS).astype(np.int32)
        yield records["step"][follows], sites, counts, own_sums[follows].reshape(-1)
        before |= {(site.model, site.name): (buckets[-1, i].copy(), float(sums[-1, i])) for i, site in enumerate(sites)}
        total = int(totals[-1])


def merged_scalars(ranks: Sequence[Rank]) -> dict[str, tuple[Ints, Floats, Ints]]:
    """For each logged name the steps, rising, the mean over ranks of what each logged last at that step, and how many did."""
    by_name: dict[str, list[tuple[Ints, Floats]]] = {}
    for rank in ranks:
        step = concatenate([chunk.step for chunk in rank.scalars], np.int64)
        value = concatenate([chunk.value for chunk in rank.scalars], np.float64)
        codes: dict[str, int] = {}
        code = np.array([codes.setdefault(name, len(codes)) for chunk in rank.scalars for name in chunk.names], np.int64)
        # The newest of each step and name: sorted by arrival within them, the last.
        order = np.lexsort((np.arange(len(step)), step, code))
        step, value, code = step[order], value[order], code[order]
        newest = np.r_[(np.diff(step) != 0) | (np.diff(code) != 0), np.ones(min(1, len(step)), bool)]
        step, value, code = step[newest], value[newest], code[newest]
        bounds = np.searchsorted(code, np.arange(len(codes) + 1))
        for name, i in codes.items():
            part = slice(bounds[i], bounds[i + 1])
            by_name.setdefault(name, []).append((step[part], value[part]))
    merged: dict[str, tuple[Ints, Floats, Ints]] = {}
    for name, parts in by_name.items():
        steps, group = np.unique(np.concatenate([step for step, _ in parts]), return_inverse=True)
        count = np.bincount(group)
        merged[name] = (steps, np.bincount(group, np.concatenate([value for _, value in parts])) / count, count)
    return merged


def concatenate(parts: Sequence[Array], kind: Any, shape: tuple[int, ...] = ()) -> Array:
    return np.concatenate(parts) if parts else np.empty((0, *shape), kind)
