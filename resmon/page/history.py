"""A flight's history between two steps, each step once, as coarsely as a screen can show it.

A flight holds its past at several resolutions already: full rows of its first steps, its newest and those before an incident, bins
of 64, 512, 4,096, ... steps of all (flight.bins). So a run of any length is read in bounded time: where a column of the screen is
wider than a bin, bins are read and no full rows but those that no bin holds yet; where it is narrower, full rows as far as they are
there, and bins where they are not. What is read at once is small, whatever the number of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from resmon.flight import layout
from resmon.flight.bins import FACTOR, LEVELS, STEPS
from resmon.flight.reader import WAITING, Segments, Skip, read_info
from resmon.flight.schema import Records, RowFormat, texts
from resmon.page.rows import Rows, merged, of_bins, of_steps
from resmon.records import Bools, Floats, Ints

FULL = 96 << 20  # bytes of full rows that are read at most of a rank for one view; beyond it, bins
AT_ONCE = 4_000  # numbers of blocks times rows that are held at once
NAMES = 64  # logged names that are drawn at most


@dataclass(frozen=True, slots=True, eq=False)
class Logged:
    """Values that were logged under one name: over stretches of steps, which are one step long where all is there in full."""

    name: str
    first: Ints
    last: Ints
    low: Floats
    high: Floats
    total: Floats
    count: Floats

    def take(self, keep: Bools) -> Logged:
        """Some of them."""
        return Logged(self.name, *(getattr(self, name)[keep] for name in Logged.__slots__[1:]))


class RankHistory:
    """One rank's flight."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_info(folder)
        self.skips: list[Skip] = []
        self._live = Segments(folder, "steps", "steps")
        self._scalars = Segments(folder, "scalars", "scalars")
        self._ahead: list[Rows] = []  # read and not given yet, as other ranks are behind
        self.newest = -1  # step that was read

    def close(self) -> None:
        self._live.close()
        self._scalars.close()

    def alive(self) -> bool:
        return layout.is_held(self.folder / layout.LOCK)

    @property
    def skipped(self) -> list[Skip]:
        """What could not be read; what was met twice stands there twice."""
        return [*self.skips, *self._live.skips, *self._scalars.skips]

    def segments(self, stem: str) -> list[tuple[int, int]]:
        """First step and size of each segment on file."""
        found = []
        try:
            for path in self.folder.glob(f"{stem}-*.arrow"):
                digits = path.name.removeprefix(f"{stem}-").removesuffix(".arrow")
                if digits.isascii() and digits.isdecimal():
                    found.append((int(digits), path.stat().st_size))
        except OSError:
            pass  # thinned, or the run is gone
        return sorted(found)

    def covered(self) -> list[tuple[int, int]]:
        """From which to which step full rows stand on file, as the segments' names and sizes tell it."""
        segments = self.segments("steps")
        form, begin = self._form()
        if form is None:
            return []
        made: list[tuple[int, int]] = []
        for (first, size), (following, _) in pairwise([*segments, (1 << 62, 0)]):
            rows = (size - begin) // form.size
            if rows <= 0:
                continue
            last = min(first + rows, following) - 1
            if made and made[-1][1] == first - 1:
                first = made.pop()[0]
            made.append((first, last))
        return made

    def row_size(self) -> int:
        form, _ = self._form()
        return form.size if form is not None else 1

    def _form(self) -> tuple[RowFormat | None, int]:
        """What the newest segment's rows look like, and where they begin in it."""
        newest = Segments(self.folder, "steps", "steps")
        try:
            newest.newest()
            rows = newest.read(1)
            return (rows[0] if rows is not None else None), newest.begin
        finally:
            newest.close()

    def bins(self, level: int, first: int, last: int) -> Iterator[Rows]:
        """The bins of a level that hold steps behind `first` and begin up to `last`."""
        for form, records in self._read(f"bins-{level}", first, last):
            records = records[(records["last_step"] >= first) & (records["first_step"] <= last)]
            if len(records):
                yield of_bins(form, records)

    def full(self, first: int, last: int) -> Iterator[Rows]:
        """The full rows of these steps."""
        for form, records in self._read("steps", first, last):
            records = records[(records["step"] >= first) & (records["step"] <= last)]
            if len(records):
                yield of_steps(form, records)

    def _read(self, stem: str, first: int, last: int) -> Iterator[tuple[RowFormat, Records]]:
        segments = Segments(self.folder, stem, "steps" if stem == "steps" else "bins")
        column = "step" if stem == "steps" else "first_step"
        begin = max((begin for begin, _ in self.segments(stem) if begin <= first), default=0)
        segments.go_to((begin, 0))
        sites = 100
        try:
            while (found := segments.read(max(1, AT_ONCE // max(1, sites) // (1 if stem == "steps" else 3)))) is not None:
                form, records = found
                sites = len(form.sites)
                if int(records[column][0]) > last:
                    return
                yield form, records
        finally:
            segments.close()
            self.skips += segments.skips

    def logged(self, first: int, last: int) -> Iterator[Logged]:
        """What was logged at these steps, as far as it is there in full."""
        for names, records in self._scalar_rows("scalars", first, last):
            yield from _single(names, records)

    def logged_bins(self, level: int, first: int, last: int) -> Iterator[Logged]:
        """Likewise of bins that hold steps behind `first` and begin up to `last`."""
        for names, records in self._scalar_rows(f"scalarbins-{level}", first, last):
            for name, places in names.items():
                rows = records[places]
                numbers = (rows[f"value_{each}"].astype(float) for each in ("min", "max", "sum", "count"))
                low, high, total, count = numbers
                there = count > 0
                low[~there] = high[~there] = np.nan
                yield Logged(name, rows["first_step"].copy(), rows["last_step"].copy(), low, high, total, count)

    def logged_since(self) -> list[Logged]:
        """What is new among the newest."""
        made: list[Logged] = []
        while (found := self._scalars.read(4096)) is not None:
            made += _single(_by_name(found[1]), found[1])
        return made

    def _scalar_rows(self, stem: str, first: int, last: int) -> Iterator[tuple[dict[str, Ints], Records]]:
        segments = Segments(self.folder, stem, "scalars" if stem == "scalars" else "scalarbins")
        begins, ends = ("step", "step") if stem == "scalars" else ("first_step", "last_step")
        begin = max((begin for begin, _ in self.segments(stem) if begin <= first), default=0)
        segments.go_to((begin, 0))
        try:
            while (found := segments.read(4096)) is not None:
                records = found[1]
                records = records[(records[ends] >= first) & (records[begins] <= last)]
                if len(records):
                    yield _by_name(records), records
                if int(found[1][begins][0]) > last:
                    return
        finally:
            segments.close()
            self.skips += segments.skips

    def follow(self, behind: int) -> None:
        """Go on with the full rows behind that step, in `fresh` and `logged_since`."""
        for segments, stem in ((self._live, "steps"), (self._scalars, "scalars")):
            begin = max((first for first, _ in self.segments(stem) if first <= behind + 1), default=0)
            segments.go_to((begin, 0))
        self.newest = behind

    def fresh(self, limit: int) -> bool:
        """Read some of what is new; False where there is nothing."""
        found = self._live.read(limit, ended=not self.alive())
        if found is None:
            return False
        form, records = found
        records = records[records["step"] > self.newest]
        if len(records):
            self.newest = int(records["step"][-1])
            self._ahead.append(of_steps(form, records))
        return True

    def until(self, step: int) -> list[Rows]:
        """What was read up to that step, which is given once."""
        given, kept = [], []
        for rows in self._ahead:
            inside = rows.first <= step
            if inside.any():
                given.append(rows.take(inside))
            if not inside.all():
                kept.append(rows.take(~inside))
        self._ahead = kept
        return given


def _by_name(records: Records) -> dict[str, Ints]:
    """The places of each name's rows."""
    if not len(records):
        return {}
    field = np.ascontiguousarray(records["name"])
    _, places, codes = np.unique(field, axis=0, return_index=True, return_inverse=True)
    names = texts(records[places], "name")
    codes = codes.reshape(-1)
    return {name: np.flatnonzero(codes == i) for i, name in enumerate(names)}


def _single(names: dict[str, Ints], records: Records) -> list[Logged]:
    made = []
    for name, places in names.items():
        step, value = records["step"][places], records["value"][places].astype(float)
        finite = np.isfinite(value)
        kept = np.where(finite, value, np.nan)
        made.append(Logged(name, step, step, kept, kept, np.nan_to_num(kept), finite.astype(float)))
    return made


class History:
    """All ranks of an attempt."""

    def __init__(self, ranks: dict[int, RankHistory]) -> None:
        self.ranks = dict(sorted(ranks.items()))

    @property
    def expected(self) -> int:
        """How many ranks hold shares of the gradients."""
        return max((rank.info.world_size for rank in self.ranks.values()), default=1)

    def close(self) -> None:
        for rank in self.ranks.values():
            rank.close()

    def span(self) -> tuple[int, int] | None:
        """The first and the newest step on file, about; None where there is none yet."""
        covered = [place for rank in self.ranks.values() for place in rank.covered()]
        if not covered:
            return None
        begins = [first for rank in self.ranks.values() for level in range(LEVELS) for first, _ in rank.segments(f"bins-{level}")]
        return min([first for first, _ in covered] + begins), max(last for _, last in covered)

    def plan(self, first: int, last: int, width: int) -> Plan:
        """How to read these steps for columns of so many steps."""
        covered = _intersection([rank.covered() for rank in self.ranks.values()])
        covered = [(max(begin, first), min(end, last)) for begin, end in covered if begin <= last and end >= first]
        size = max((rank.row_size() for rank in self.ranks.values()), default=1)
        if width >= STEPS:
            level = min(LEVELS - 1, round(math.log2(width // STEPS)) // round(math.log2(FACTOR)))
            return Plan(level, ((first, last),), ())
        if sum(end - begin + 1 for begin, end in covered) * size > FULL:
            return Plan(0, ((first, last),), ())
        gaps, at = [], first
        for begin, end in covered:
            if begin > at:
                gaps.append((at, begin - 1))
            at = end + 1
        if at <= last:
            gaps.append((at, last))
        return Plan(0, tuple(gaps), tuple(covered))

    def between(self, first: int, last: int, width: int) -> Iterator[Rows]:
        """The rows of these steps, for columns of so many steps; of several ranks one. Not everywhere in the steps' order."""
        plan = self.plan(first, last, width)
        spans: list[tuple[int, int]] = []
        full = list(plan.full)
        for begin, end in plan.gaps:
            reached = begin - 1
            for level, since, until in self._levels("bins", plan.level, begin, end):
                streams = [rank.bins(level, max(since, reached + 1), until) for rank in self.ranks.values()]
                for rows in aligned(streams, self.expected):
                    rows = rows.take((rows.first > reached) | (rows.last > reached))
                    if len(rows):
                        reached = max(reached, int(rows.last[-1]))
                        spans += zip(rows.first.tolist(), rows.last.tolist(), strict=True)
                        yield rows
            if reached < end:
                full.append((reached + 1, end))
        begins, ends = np.array(sorted(spans), np.int64).reshape(-1, 2).T
        for begin, end in full:
            for rows in aligned([rank.full(begin, end) for rank in self.ranks.values()], self.expected):
                yield rows.take(~_within(rows.first, begins, ends))

    def _levels(self, stem: str, level: int, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Levels of bins, the oldest steps' first, and from where to where each is the finest that is wanted and there.

        Of the finer ones the oldest go first, so that each begins later than the coarser one, which it then follows; what the
        wanted level does not hold yet, finer ones do.
        """
        begins = {}
        for each in range(LEVELS):
            segments = [rank.segments(f"{stem}-{each}") for rank in self.ranks.values()]
            if all(segments):
                begins[each] = max(found[0][0] for found in segments)
        for each in sorted((each for each in begins if each >= level), reverse=True):
            finer = [begins[other] for other in begins if level <= other < each]
            until = min([last, *(begin - 1 for begin in finer)])
            if until >= first:
                yield each, first, until
        for each in sorted((each for each in begins if each < level), reverse=True):
            yield each, first, last

    def logged(self, first: int, last: int, width: int) -> Iterator[Logged]:
        """What was logged at these steps; a name that several ranks log is the lowest one's."""
        plan = self.plan(first, last, width)
        spoken: dict[str, int] = {}
        for number, rank in self.ranks.items():
            alone = History({number: rank})
            full = list(plan.full)
            for begin, end in plan.gaps:
                reached = begin - 1
                for level, since, until in alone._levels("scalarbins", plan.level, begin, end):
                    newest = reached
                    for logged in rank.logged_bins(level, max(since, reached + 1), until):
                        newest = max(newest, int(logged.last.max()))
                        if spoken.setdefault(logged.name, number) == number:
                            yield logged
                    reached = newest
                if reached < end:
                    full.append((reached + 1, end))
            for begin, end in full:
                for logged in rank.logged(begin, end):
                    if spoken.setdefault(logged.name, number) == number:
                        yield logged

    def follow(self, behind: int) -> None:
        """Go on behind that step with `advance`."""
        for rank in self.ranks.values():
            rank.follow(behind)

    def advance(self) -> Iterator[Rows]:
        """What is new and every rank that lives has reached."""
        while True:
            limit = max(4, AT_ONCE // 100 // len(self.ranks))
            new = [rank.fresh(limit) for rank in self.ranks.values()]
            newest = [rank.newest for rank in self.ranks.values()]
            living = [rank.newest for rank in self.ranks.values() if rank.alive()]
            bound = max(min(living, default=max(newest)), max(newest) - WAITING)
            parts = [rows for rank in self.ranks.values() for rows in rank.until(bound)]
            if parts:
                yield merged(parts, self.expected)
            if not any(new):
                return


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to take which steps from: bins of a level for `gaps`, full rows for `full`. Both ends are meant."""

    level: int
    gaps: tuple[tuple[int, int], ...]
    full: tuple[tuple[int, int], ...]


def aligned(streams: Sequence[Iterator[Rows]], expected: int) -> Iterator[Rows]:
    """Several ranks' rows as one, in order; a rank that lacks some is waited for by none."""
    pending = [next(stream, None) for stream in streams]
    while any(rows is not None for rows in pending):
        bound = min(int(rows.first[-1]) for rows in pending if rows is not None)
        parts = []
        for i, rows in enumerate(pending):
            if rows is None:
                continue
            inside = rows.first <= bound
            if inside.any():
                parts.append(rows.take(inside))
            pending[i] = next(streams[i], None) if inside.all() else rows.take(~inside)
        yield merged(parts, expected)


def _intersection(parts: Sequence[Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """What lies in a span of each part."""
    if not parts:
        return []
    made = list(parts[0])
    for part in parts[1:]:
        made = [(max(a, c), min(b, d)) for a, b in made for c, d in part if a <= d and c <= b]
    return made


def _within(steps: Ints, begins: Ints, ends: Ints) -> Bools:
    """Which steps lie in one of the spans, which rise and do not overlap."""
    if not len(begins):
        return np.zeros(len(steps), bool)
    place = np.searchsorted(begins, steps, "right") - 1
    inside: Bools = (place >= 0) & (steps <= ends[np.maximum(place, 0)])
    return inside
