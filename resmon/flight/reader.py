"""The reading end of a flight, live or long after: rows in order, each once, whatever state the files are in.

A row is taken only if its checksum holds; what does not hold is skipped, counted and described, and reading goes on at the next
whole row behind it. A segment whose schema is damaged is read under another segment's, which the checksum proves to be the right
one. No length, offset or type from a file is trusted, and files are read, not mapped: a file that shrinks costs rows, no crash.
"""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from resmon.errors import FlightError, FlightVersionError
from resmon.flight import layout, preamble
from resmon.flight.schema import (
    FORMAT,
    Kind,
    Records,
    RowFormat,
    groups_from_json,
    present,
    row_format,
    seconds,
    sites_from_json,
    texts,
)
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    GROUP_VALUES,
    MAGNITUDE_COLUMNS,
    OUTCOMES,
    RUN_VALUES,
    Bools,
    Checkpoint,
    Columns,
    Floats,
    Ints,
    ResidualSite,
    RunEnd,
    RunInfo,
    ScalarRecord,
    SpanRecord,
    StackDump,
    StepRecord,
    Stopped,
)
from resmon.scores.targets import Reached

CHUNK = 4 << 20  # bytes that are read at once
LARGEST_SCHEMA = 64 << 20
NEIGHBOURS = 8  # segments whose schema is tried in place of a damaged one
HELD_BACK = 1000  # logged values that wait for the row of their step
# Steps of one rank that wait for a slower one. The ranks of one attempt run in lockstep, so many waiting say that one is not read
# any more: the others are shown without it.
WAITING = 256
# A folder's time of change is as coarse as the kernel's clock tick: one this fresh may hide another change.
FRESH = 0.1


@dataclass(frozen=True, slots=True)
class Skip:
    """A part of a file that could not be read. `rows` is an estimate: what was damaged cannot be counted."""

    file: Path
    offset: int
    bytes: int
    rows: int
    reason: str

    def __str__(self) -> str:
        where = f", {self.bytes:,} bytes from byte {self.offset:,} on" if self.bytes else ""
        return f"{self.file.name}{where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower has read: segment and offset of steps and of scalars, and what it has read and not given yet."""

    steps: tuple[int, int]
    scalars: tuple[int, int]
    held: tuple[ScalarRecord, ...]
    last_step: int | None


class Segments:
    """The rows of one kind in a rank's folder, in order, each once."""

    def __init__(self, folder: Path, stem: str, kind: Kind) -> None:
        self._folder = folder
        self._kind = kind
        self._name = re.compile(rf"{re.escape(stem)}-(\d{{12,18}})\.arrow", re.ASCII)
        self._names: dict[int, Path] = {}
        self._listed = 0  # the folder's time of change when it was listed
        self._current: _Segment | None = None
        self._after = -1  # segments up to here have been read or passed over
        self._begin = (-1, 0)  # a segment, and where in it to begin
        self._rising = {"steps": "step", "bins": "first_step"}.get(kind)
        self._last = -1  # the newest row's step
        self.skips: list[Skip] = []

    def read(self, limit: int, ended: bool = False) -> tuple[RowFormat, Records] | None:
        """The next rows, at most `limit`; None where there is nothing new.

        A row at the very end that is not all there is waited for, unless `ended` says that nobody writes any more.
        """
        while True:
            following = next((first for first in self._list() if first > self._after), None)
            # Asked for before the read: once there is a next segment, nothing is added to this one.
            if self._current is not None:
                rows = self._current.read(limit, ended or following is not None)
                if rows is not None:
                    rows = self._once(*rows)
                    if len(rows[1]):
                        return rows
                    continue
            if following is None:
                return None
            self.close()
            self._after = following
            path = self._names[following]
            try:
                self._current = _Segment(path, self._kind, self, self._begin[1] if following == self._begin[0] else 0)
            except OSError as error:
                self._cannot_open(path, error)

    def pass_over(self, segments_left: int) -> None:
        """Go on with the newest segments only."""
        names = list(self._list())
        if names:
            self.close()
            self._after = names[-min(segments_left, len(names))] - 1

    @property
    def position(self) -> tuple[int, int]:
        """The segment that is read, and how far."""
        return self._after, 0 if self._current is None else self._current.offset

    @property
    def begin(self) -> int:
        """Where the rows of the segment that is read begin in it."""
        return 0 if self._current is None else self._current.begin

    def go_to(self, position: tuple[int, int]) -> None:
        """Go on there; where that segment was thinned away, with the next one."""
        self.close()
        self._after, self._begin = max(-1, position[0] - 1), position

    def newest(self) -> None:
        """Go on with the newest row on file."""
        for left in range(1, len(self._list()) + 1):
            self.pass_over(left)
            self._after = next(first for first in self._names if first > self._after)
            path = self._names[self._after]
            try:
                self._current = _Segment(path, self._kind, self)
                if self._current.seek_last():
                    return
            except OSError as error:
                self._cannot_open(path, error)

    def close(self) -> None:
        """Let the open segment go."""
        if self._current is not None:
            self._current.close()
            self._current = None

    def _cannot_open(self, path: Path, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else it was thinned meanwhile
            self.skips.append(Skip(path, 0, 0, 0, f"cannot be opened: {error.strerror}"))

    def neighbours(self, path: Path) -> Iterator[RowFormat]:
        """The formats of the segments next to `path`, nearest first."""
        if self._kind in ("scalars", "scalarbins"):  # has no sites, so there is but one format
            yield row_format(self._kind)
            return
        paths = list(self._names.values())
        here = paths.index(path) if path in paths else 0
        for other in sorted(paths, key=lambda other: abs(paths.index(other) - here))[1 : 1 + NEIGHBOURS]:
            try:
                descriptor = _open(other)
            except OSError:
                continue
            try:
                schema = _Schema.of(descriptor)
            except OSError:
                continue
            finally:
                os.close(descriptor)
            if schema is not None and schema.sites is not None:
                yield row_format(self._kind, schema.sites, schema.groups)

    def _once(self, form: RowFormat, records: Records) -> tuple[RowFormat, Records]:
        """The rows without those that were read before: a copied block or file has valid rows, too."""
        if self._rising is None:
            return form, records
        steps = records[self._rising]
        newest = np.maximum.accumulate(np.r_[self._last, steps])
        new = steps > newest[:-1]
        self._last = int(newest[-1])
        if not new.all():
            path = self._names.get(self._after, self._folder)
            self.skips.append(Skip(path, 0, 0, int(np.count_nonzero(~new)), "repeated steps"))
            records = records[new]
        return form, records

    def _list(self) -> dict[int, Path]:
        """The segments on file; the folder is listed only when it changed."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            changed = -1
        if changed != self._listed:
            try:
                names = [path.name for path in self._folder.iterdir()]
            except OSError:
                names = []
            matches = (self._name.fullmatch(name) for name in names)
            found = {int(match[1]): self._folder / match[0] for match in matches if match}
            self._names = dict(sorted(found.items()))
            self._listed = changed if time.time() - changed / 1e9 > FRESH else 0
        return self._names


class _Segment:
    """One file and how far it has been read."""

    def __init__(self, path: Path, kind: Kind, among: Segments, begin: int = 0) -> None:
        self._path = path
        self._kind = kind
        self._among = among
        self._least = begin
        self._descriptor = _open(path)
        self._offset = 0
        self.begin = 0  # where its rows begin
        self._format: RowFormat | None = None
        self._given_up = -1  # the size at which no format fitted

    def close(self) -> None:
        os.close(self._descriptor)

    @property
    def offset(self) -> int:
        """How far it has been read."""
        return max(self._offset, self._least)

    def read(self, limit: int, final: bool) -> tuple[RowFormat, Records] | None:
        """The next rows. `final` says that the file grows no more, so that a row that is cut is damage."""
        try:
            while (size := os.fstat(self._descriptor).st_size) > self._offset:
                form = self._format or self._recognise(size, final)
                if form is None or size <= self._offset:  # it was read up to there before
                    return None
                wanted = min(size - self._offset, max(form.size, min(limit * form.size, CHUNK)))
                data = os.pread(self._descriptor, wanted, self._offset)
                starts, damage, consumed = walk(data, form)
                for begin, end in damage:
                    self._skip(self._offset + begin, end - begin, "damaged")
                if not consumed:  # less than a row is left
                    if final:
                        self._skip(self._offset, size - self._offset, "cut off")
                        self._offset = size
                    return None
                self._offset += consumed
                if starts:
                    return form, _gather(data, starts, form)
        except OSError as error:
            self._skip(self._offset, 0, f"cannot be read: {error.strerror}")
            self._offset = 1 << 62  # and is not tried again
        return None

    def seek_last(self) -> bool:
        """Go to the last whole row; False where there is none."""
        size = os.fstat(self._descriptor).st_size
        form = self._recognise(size, False) if size else None
        if form is None:
            return False
        begin = self._offset
        last = begin + ((size - begin) // form.size - 1) * form.size
        if last >= begin and form.is_whole(memoryview(os.pread(self._descriptor, form.size, last)), 0):
            self._offset = last
            return True
        begin = max(begin, size - max(CHUNK, 2 * form.size))
        starts, _, _ = walk(os.pread(self._descriptor, size - begin, begin), form)
        if starts:
            self._offset = begin + starts[-1]
        return bool(starts)

    def _recognise(self, size: int, final: bool) -> RowFormat | None:
        """Find out what the rows look like and go to the first; None where that cannot be told (yet)."""
        if size == self._given_up and not final:
            return None
        schema = _Schema.of(self._descriptor)
        if schema is not None and schema.sites is not None:
            own = row_format(self._kind, schema.sites, schema.groups)
            first = os.pread(self._descriptor, own.size, schema.end)
            if own.is_whole(memoryview(first), 0):
                return self._begin(own, schema.end, schema.end)
            if len(first) < own.size and not final and schema.version <= FORMAT:
                return None
        data = os.pread(self._descriptor, min(size, CHUNK), 0)
        for form, expected in self._candidates(schema):
            starts, _, _ = walk(data, form, at_most=1)
            if starts:
                return self._begin(form, expected, starts[0])
        self._given_up = size
        if schema is not None and schema.version > FORMAT:  # and not by damage, or a row would have fitted
            raise newer(self._path, schema.version)
        if final:
            whole_schema = schema is not None and schema.sites is not None
            begin = schema.end if schema is not None and whole_schema else 0
            if size > begin:
                self._skip(begin, size - begin, "cut off or damaged" if whole_schema else "not a segment, or its schema is damaged")
            self._offset = size
        return None

    def _candidates(self, schema: _Schema | None) -> Iterator[tuple[RowFormat, int]]:
        """Formats that may fit, and where their rows should begin."""
        if schema is not None and schema.sites is not None:
            yield row_format(self._kind, schema.sites, schema.groups), schema.end
        for form in self._among.neighbours(self._path):
            yield form, 0

    def _begin(self, form: RowFormat, expected: int, first: int) -> RowFormat:
        self._format, self.begin = form, first
        self._offset = max(first, self._least)
        if first > expected:
            self._skip(expected, first - expected, "damaged" if expected else "damaged schema, read under another segment's")
        return form

    def _skip(self, offset: int, length: int, reason: str) -> None:
        skips = self._among.skips
        if skips and skips[-1].file == self._path and skips[-1].offset + skips[-1].bytes == offset:
            before = skips.pop()
            offset, length, reason = before.offset, before.bytes + length, before.reason
        size = self._format.size if self._format else length
        skips.append(Skip(self._path, offset, length, max(1, round(length / size)) if length else 0, reason))


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe of that name must not hang us


def walk(data: bytes, form: RowFormat, at_most: int | None = None) -> tuple[list[int], list[tuple[int, int]], int]:
    """Where whole rows begin in `data`, which parts are damaged, and how much is done with; the rest may be a row's beginning."""
    starts: list[int] = []
    damage: list[tuple[int, int]] = []
    position, size, view = 0, form.size, memoryview(data)
    while position + size <= len(data) and (at_most is None or len(starts) < at_most):
        if form.is_whole(view, position):
            starts.append(position)
            position += size
            continue
        following = data.find(form.prefix, position + 1)
        if following < 0:
            # A row may begin in the last few bytes.
            following = max(position + 1, len(data) - len(form.prefix) + 1)
        if damage and damage[-1][1] == position:
            damage[-1] = (damage[-1][0], following)
        else:
            damage.append((position, following))
        position = following
    return starts, damage, position


def _gather(data: bytes, starts: list[int], form: RowFormat) -> Records:
    if starts[-1] - starts[0] != (len(starts) - 1) * form.size:
        data = b"".join(data[start : start + form.size] for start in starts)
        starts = [0, *starts[1:]]
    return np.frombuffer(data, form.dtype, len(starts), starts[0])


@dataclass(frozen=True, slots=True)
class _Schema:
    """What a segment's first message says; `sites` is None where it cannot be understood."""

    version: int
    sites: tuple[ResidualSite, ...] | None
    groups: tuple[str, ...]
    end: int

    @classmethod
    def of(cls, descriptor: int) -> _Schema | None:
        """The schema of an open segment; None where it is damaged."""
        begin = os.pread(descriptor, 8, 0)
        if len(begin) < 8:
            return None
        marker, length = struct.unpack("<II", begin)
        if marker != 0xFFFFFFFF or length % 8 or not 0 < length <= LARGEST_SCHEMA:
            return None
        message = os.pread(descriptor, length, 8)
        if len(message) < length:
            return None
        try:
            metadata = preamble.metadata(message)
            version = int(metadata[b"resmon.format"])
        except (ValueError, KeyError):
            return None
        try:
            return cls(
                version, sites_from_json(metadata[b"resmon.sites"]), groups_from_json(metadata[b"resmon.groups"]), 8 + length
            )
        except (ValueError, KeyError, RecursionError):
            return cls(version, None, (), 8 + length)


def newer(path: Path, version: int) -> FlightVersionError:
    """The error for a file of a later format."""
    return FlightVersionError(
        f"{path} has flight format {version}; this resmon reads up to {FORMAT}. "
        "Read it with the resmon that wrote it or a later one: pip install --upgrade resmon."
    )


def arrays_of(records: Records) -> tuple[Floats, Bools, Floats, Bools, Floats, Bools, Ints]:
    """Of rows of kind "steps", in the order of StepRecord: values and which are there of run, groups and blocks, and the counts."""

    def stacked(names: Iterable[str]) -> tuple[Floats, Bools]:
        names = list(names)
        return np.stack([records[name] for name in names], axis=1), np.stack([present(records, name) for name in names], axis=1)

    return (
        *stacked(RUN_VALUES),
        *stacked(f"group_{name}" for name in GROUP_VALUES),
        *stacked(f"block_{name}" for name in BLOCK_VALUES),
        np.stack([records[f"block_{name}"] for name in BLOCK_COUNTS], axis=1),
    )


def step_records(form: RowFormat, records: Records) -> list[StepRecord]:
    """Rows of kind "steps" as records, which hold nothing of `records`: whoever keeps one for a while would keep whole rows."""
    run, run_present, groups, groups_present, blocks, blocks_present, counts = arrays_of(records)
    buckets = records["magnitude_buckets"].reshape(len(records), len(form.sites), MAGNITUDE_COLUMNS)
    numbers = ("step", "steps_total", "skipped_total", "clipped_total", "errors_total", "samples_total", "duration_total")
    lists = ("phase_totals", "duration_buckets", "nonfinite_steps", "magnitude_sum")
    columns: dict[str, Iterable[Any]] = {
        **{name: records[name].tolist() for name in numbers},
        **{name: records[name].astype(bool).tolist() for name in ("complete", "skipped")},
        "time": map(seconds, records["time"].tolist()),
        "run": run,
        "run_present": run_present,
        "groups": groups,
        "groups_present": groups_present,
        "blocks": blocks,
        "blocks_present": blocks_present,
        "counts": counts,
        **{name: np.array(records[name], order="C") for name in lists},
        "magnitude_buckets": (each.copy() for each in buckets),  # most of a row: of each a copy alone
    }
    return [StepRecord(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def add_scalar_records(made: list[ScalarRecord], records: Records) -> None:
    """Append rows of kind "scalars" as records: rows of one step and moment were logged together."""
    rows = zip(records["step"].tolist(), records["time"].tolist(), texts(records, "name"), records["value"].tolist(), strict=True)
    for step, nanoseconds, name, value in rows:
        time = seconds(nanoseconds)
        if not made or (made[-1].step, made[-1].time) != (step, time) or name in made[-1].values:
            made.append(ScalarRecord(step, time, {}))
        made[-1].values[name] = value


Item = Columns | StepRecord | ScalarRecord


class Follower:
    """Follows one rank's flight: every `poll` gives what is new.

    With `newest` it begins at the newest row, which is enough for whoever was away: counters are cumulative in every row. Raises
    FlightError where the folder has no readable info.json (yet), FlightVersionError where a newer resmon wrote it.
    """

    def __init__(self, rank_folder: Path, newest: bool = False) -> None:
        self.folder = Path(rank_folder)
        self.info: RunInfo = read_info(self.folder)
        self.columns = Columns()
        self._end: RunEnd | None = None
        self._steps = Segments(self.folder, "steps", "steps")
        self._scalars = Segments(self.folder, "scalars", "scalars")
        self._held_back: list[ScalarRecord] = []
        self._last_step: int | None = None
        if newest:
            self._steps.newest()
            self._newest_scalars()

    @property
    def end(self) -> RunEnd | None:
        """The end mark, once it is there."""
        if self._end is None:
            self._end = read_end(self.folder)
        return self._end

    @property
    def stopped(self) -> Stopped | None:
        """The mark that nothing more is recorded, though the process may live."""
        return read_stopped(self.folder)

    @property
    def skips(self) -> list[Skip]:
        """What could not be read so far."""
        return [*self._steps.skips, *self._scalars.skips]

    @property
    def skipped(self) -> int:
        """How many damaged rows were skipped so far, as far as that can be told."""
        return sum(skip.rows for skip in self.skips)

    def alive(self) -> bool:
        """Whether the process that records this flight lives, as far as its lock can be seen from this machine."""
        return layout.is_held(self.folder / layout.LOCK)

    def poll(self, limit: int = 1000) -> list[Item]:
        """New steps, at most `limit` and few megabytes of them, and what was logged at them, in step order; sites and groups come
        before their first step."""
        new: list[Item] = []
        steps = size = 0
        while steps < limit and size < CHUNK and (rows := self._steps.read(limit - steps)) is not None:
            form, records = rows
            if (form.sites, form.groups) != (self.columns.sites, self.columns.groups):
                self.columns = Columns(form.sites, form.groups)
                new.append(self.columns)
            new.extend(step_records(form, records))
            steps += len(records)
            size += records.nbytes
            self._last_step = int(records["step"][-1])
        # Read after the steps: what was logged at a step was written before the next step's row.
        held = self._held_back
        while (not held or held[-1].step <= (self._last_step or 0)) and (rows := self._scalars.read(CHUNK)) is not None:
            add_scalar_records(held, rows[1])
        if not held:
            return new
        items: list[Item] = []
        held.sort(key=lambda record: record.step)
        taken = 0
        for item in new:
            if isinstance(item, StepRecord):
                while taken < len(held) and held[taken].step < item.step:
                    items.append(held[taken])
                    taken += 1
            items.append(item)
        over = not steps and (self.end is not None or not self.alive())
        while taken < len(held) and (
            over or len(held) - taken > HELD_BACK or (self._last_step is not None and held[taken].step <= self._last_step)
        ):
            items.append(held[taken])
            taken += 1
        del held[:taken]
        return items

    @property
    def position(self) -> Position:
        """Behind what the last `poll` gave."""
        return Position(self._steps.position, self._scalars.position, tuple(self._held_back), self._last_step)

    def go_to(self, position: Position) -> None:
        """Go on there, before the first `poll`. A position that is none costs rows, no more."""
        self._steps.go_to(position.steps)
        self._scalars.go_to(position.scalars)
        self._held_back, self._last_step = list(position.held), position.last_step

    def close(self) -> None:
        """Let the files go. Not to be polled after that."""
        self._steps.close()
        self._scalars.close()

    def _newest_scalars(self) -> None:
        """Hold back the newest value of each name of the newest two segments."""
        self._scalars.pass_over(2)
        newest: dict[str, ScalarRecord] = {}
        while (rows := self._scalars.read(CHUNK)) is not None:
            # Of thousands of rows only the last of each name becomes a record: a page asks for this again and again.
            _, records = rows
            field = np.ascontiguousarray(records["name"])
            keys = zip(field.view(f"V{field.shape[1]}").ravel().tolist(), records["name@"][:, 1].tolist(), strict=True)
            last = records[list({key: i for i, key in enumerate(keys)}.values())]
            numbers = zip(texts(last, "name"), last["step"].tolist(), last["time"].tolist(), last["value"].tolist(), strict=True)
            newest |= {name: ScalarRecord(step, seconds(time), {name: value}) for name, step, time, value in numbers}
        self._held_back += sorted(newest.values(), key=lambda record: record.step)


def read_info(rank_folder: Path) -> RunInfo:
    """The rank's RunInfo. Raises FlightError where it is missing or damaged."""
    path = rank_folder / layout.INFO
    values = _json_object(path)
    if values is None and not os.access(path, os.R_OK) and os.path.lexists(path):
        raise FlightError(f"{path} may not be read by this user, and without it nothing is known of the flight. Ask its owner.")
    if values is None:
        raise FlightError(
            f"{path} is missing or damaged, so it is not known who wrote this flight. "
            "Name a folder that a run was recorded in; `resmon ls` lists them."
        )
    version = values.pop("format", None)
    if not isinstance(version, int):
        raise FlightError(f"{path} names no flight format; it is damaged or not resmon's.")
    if version > FORMAT:
        raise newer(path, version)
    try:
        return typed(RunInfo, values)
    except ValueError as error:
        raise FlightError(f"{path} is damaged: {error}. Its rows may still be readable: load the attempt's folder.") from error


def read_end(rank_folder: Path) -> RunEnd | None:
    """The rank's end mark; None where there is none that can be read."""
    values = _json_object(rank_folder / layout.END)
    try:
        end = typed(RunEnd, values or {})
    except ValueError:
        return None
    return end if end.outcome in OUTCOMES else None


def read_stopped(rank_folder: Path) -> Stopped | None:
    """The rank's mark that it is recorded no more; None where there is none that can be read."""
    try:
        return typed(Stopped, _json_object(rank_folder / layout.STOPPED) or {})
    except ValueError:
        return None


def read_stack(rank_folder: Path) -> StackDump | None:
    """Where the rank's training was when it was last looked for; None where that was never needed, or cannot be read."""
    try:
        return typed(StackDump, _json_object(rank_folder / layout.STACK) or {})
    except ValueError:
        return None


def _json_object(path: Path) -> dict[str, Any] | None:
    try:
        with os.fdopen(_open(path), "rb") as file:
            values = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


Typed = TypeVar("Typed", RunInfo, RunEnd, StackDump, Stopped, Checkpoint, Reached, SpanRecord)

# The types that their fields may have, by annotation.
_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "Outcome": (str,),
    "Doing": (str,),
    "tuple[str, ...]": (list,),
    "dict[str, str]": (dict,),
    "dict[str, Any]": (dict,),
}


def typed(kind: type[Typed], values: Mapping[str, Any]) -> Typed:
    """A dataclass from JSON; ValueError where a field is missing or of another type. Unknown keys are a later version's."""
    made: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{field.name} is missing")
            continue
        value: Any = values[field.name]
        if not isinstance(value, _TYPES[str(field.type)]) or isinstance(value, bool):
            raise ValueError(f"{field.name} is {value!r:.80}")
        if isinstance(value, (int, float)) and not abs(value) < 1 << 64:  # NaN too
            raise ValueError(f"{field.name} is {value!r:.80}")
        inner = value if isinstance(value, list) else [*value, *value.values()] if field.type == "dict[str, str]" else []
        if not all(isinstance(item, str) for item in inner):
            raise ValueError(f"{field.name} is {value!r:.80}")
        made[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)
