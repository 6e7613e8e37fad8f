"""The writing end of a flight, inside the training process.

Each row goes to the kernel with one write as it comes, so it is on file whatever happens to the process after that. There is no
thread, no buffer and no fsync. Nothing here is safe to call from two threads at once. A forked child that inherits a writer writes
nothing: the rows and the lock are its parent's.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from resmon.errors import ConfigurationError
from resmon.flight import incidents, layout
from resmon.flight.bins import LEVELS, Bin, Bins, fill_counters
from resmon.flight.header import header
from resmon.flight.schema import FORMAT, TEXT, Row, RowFormat, nanoseconds, row_format
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    GROUP_VALUES,
    RUN_VALUES,
    Bools,
    Floats,
    Incident,
    ResidualSite,
    RunEnd,
    RunInfo,
    ScalarRecord,
    StepRecord,
    Stopped,
)

# These stay in full, whatever the budget: the first steps, and so many of the newest.
FIRST_STEPS = 1000
NEWEST_STEPS = 64
# Where the first steps fill the share of the full rows, the newest ones have this part of it nevertheless, and those around
# incidents another.
LEAST_SHARE = 4

# A segment is what is thinned at once and what a reader holds in memory: small against the budget, and never large.
LARGEST_SEGMENT = 8 << 20
# A segment's schema holds the sites; rows should outweigh it.
HEADERS = 4


class FlightWriter:
    """Appends one rank's records to its folder.

    `folder` is the rank's own from `layout.claim`. A folder that cannot be written raises ConfigurationError here; a disk that
    fills up later raises OSError from the call that met it, with every row before it readable.
    """

    def __init__(self, folder: Path, info: RunInfo, budget: int) -> None:
        self._folder = Path(folder)
        self._pid = os.getpid()
        self._ended = False
        self._last_step: int | None = None
        self._rows = 0
        # Five eighths of the budget are for full rows; the levels of bins have an eighth, a sixteenth, ... of it.
        self._full = Track(self._folder, "steps", "scalars", budget * 5 // 8, budget // 32)
        shares = [budget >> (3 + level) for level in range(LEVELS)]
        self._thinned = [Track(self._folder, f"bins-{i}", f"scalarbins-{i}", share, share // 8) for i, share in enumerate(shares)]
        self._scalar_format = row_format("scalars")
        self._scalar_row = self._scalar_format.row()
        self._scalarbin_format = row_format("scalarbins")
        self._scalarbin_row = self._scalarbin_format.row()
        self._covered = [-1] * LEVELS  # the last step that the bins on file of each level hold
        self._begin((), ())
        try:
            self._lock = layout.hold(self._folder / layout.LOCK)
            try:
                layout.write_json(self._folder / layout.INFO, {"format": FORMAT, **asdict(info)})
                for mark in (layout.END, layout.STOPPED):
                    layout.reserve(self._folder / mark)
            except OSError:
                layout.release(self._lock)
                raise
        except OSError as error:
            raise ConfigurationError(
                f"the flight cannot be written in {self._folder}: {error.strerror or error}. "
                "Choose a folder that you may write to and that has room, with directory= or RESMON_DIRECTORY."
            ) from error

    def sites(self, sites: Sequence[ResidualSite], groups: Sequence[str] = ()) -> None:
        """Rows from here on are of these sites and parameter groups."""
        if self._elsewhere() or (tuple(sites), tuple(groups)) == (self._format.sites, self._format.groups):
            return
        self._bins.close()
        self._begin(tuple(sites), tuple(groups))

    def step(self, record: StepRecord) -> None:
        """Append a step; steps come in rising order."""
        if self._elsewhere():
            return
        if self._last_step is not None and record.step <= self._last_step:
            raise ValueError(f"step {record.step} came after step {self._last_step}; the steps of a flight rise")
        shape = record.blocks.shape[1], record.groups.shape[1]
        if shape != self._shape:
            raise ValueError(f"a record of {shape} sites and groups in a segment of {self._shape}; call sites() first")
        if self._full.is_full(self._row.size) or self._rows == FIRST_STEPS:
            self._rotate()
        self._full.append(self._row.of(record), self._format, record.step, record.step)
        self._last_step = record.step
        self._rows += 1
        self._bins.step(record)

    def scalars(self, record: ScalarRecord) -> None:
        """Append what was logged of one step."""
        if self._elsewhere() or not record.values:
            return
        row = self._scalar_row
        row.fields["step"][0] = record.step
        row.fields["time"][0] = nanoseconds(record.time)
        rows = bytearray()
        for name, value in record.values.items():
            row.text("name", _short(name))
            row.fields["value"][0] = value
            rows += row.seal()
        # Values of a step may come before its row; in a segment that they begin, the row is the next one.
        following = record.step if self._last_step is None else self._last_step + 1
        self._full.append_scalars(rows, self._scalar_format, following)
        self._bins.scalars(record)

    def incident(self, incident: Incident) -> Incident | None:
        """Append an event of an incident and give it back whole. The newest steps stay in full, as far as the budget has room."""
        if self._elsewhere():
            return None
        whole = incidents.append(self._folder, incident)
        self._full.pin((self._last_step or 0) - NEWEST_STEPS)
        return whole

    def stopped(self, error: OSError) -> None:
        """Note, in room that was kept for it, that nothing more is recorded: the process lives, and does not hang."""
        if not self._elsewhere():
            mark = Stopped(time.time(), self._last_step, error.strerror or str(error))
            layout.write_reserved(self._folder / layout.STOPPED, asdict(mark))

    def end(self, end: RunEnd) -> None:
        """Write the open bins and the end mark, and give the lock back. Once; later calls do nothing."""
        if self._elsewhere():
            return
        self._ended = True
        try:
            try:
                self._bins.close()
            finally:  # a full disk still has room for the end mark
                layout.write_reserved(self._folder / layout.END, asdict(end))
        finally:
            self._close()
            layout.release(self._lock)

    def leave(self) -> None:
        """Write the open bins, as `end` does, and nothing more: who knows how it ended writes the end mark, under the lock."""
        if self._elsewhere():
            return
        self._ended = True
        try:
            self._bins.close()
        finally:
            self._close()

    def _close(self) -> None:
        for track in (self._full, *self._thinned):
            track.close()
        with suppress(OSError):
            layout.reserved(self._folder / layout.STOPPED).unlink(missing_ok=True)

    def _elsewhere(self) -> bool:
        return self._ended or os.getpid() != self._pid

    def _begin(self, sites: tuple[ResidualSite, ...], groups: tuple[str, ...]) -> None:
        self._format = row_format("steps", sites, groups)
        self._shape = (len(sites), len(groups))
        self._row = StepRow(self._format)
        self._bin_format = row_format("bins", sites, groups)
        self._bin_row = self._bin_format.row()
        for form in (self._format, self._bin_format, self._scalar_format, self._scalarbin_format):
            header(form)  # now, and not when a step's row begins a file: Arrow takes time and memory for the first
        self._bins = Bins(len(sites), len(groups), self._write_bin)
        self._rotate()
        for level in range(LEVELS):
            self._rotate_bins(level)

    def _rotate(self) -> None:
        """The next row begins a segment; what the budget no longer holds goes."""
        self._full.close(keep=self._rows <= FIRST_STEPS)
        self._full.thin(min(self._covered[0], (self._last_step or 0) - NEWEST_STEPS))

    def _rotate_bins(self, level: int) -> None:
        """Likewise for bins, of which the coarsest stay."""
        self._thinned[level].close()
        self._thinned[level].thin(self._covered[level + 1] if level + 1 < LEVELS else -1)

    def _write_bin(self, level: int, full: Bin, last: StepRecord) -> None:
        track = self._thinned[level]
        if track.is_full(len(self._bin_row.bytes)):
            self._rotate_bins(level)
        full.fill(self._bin_row, last)
        track.append(self._bin_row.seal(), self._bin_format, full.first_step, last.step)
        self._covered[level] = last.step
        rows = bytearray()
        for name, scalar in full.scalars.items():
            full.fill_scalar(self._scalarbin_row, last, _short(name), scalar)
            rows += self._scalarbin_row.seal()
        if rows:
            track.append_scalars(rows, self._scalarbin_format, full.first_step)


@dataclass(frozen=True, slots=True)
class Closed:
    """A finished segment: named by `first`, with steps up to `last`."""

    first: int
    last: int
    bytes: int


class Track:
    """The segments of one level of detail, oldest first; the newest is open. Each is a file of rows and one of logged scalars.

    `share` is how many bytes they may take together, `grain` how many one should.
    """

    def __init__(self, folder: Path, rows: str, scalars: str, share: int, grain: int) -> None:
        self._folder = folder
        self._rows, self._scalars = rows, scalars
        self._share = share
        self._grain = min(grain, LARGEST_SEGMENT)
        self._header = 0  # bytes of the rows' schema
        self._closed: deque[Closed] = deque()  # that may be thinned
        self._closed_bytes = 0
        self._kept_bytes = 0
        self._pinned_bytes = 0  # of these, around incidents
        self._pin = False  # the open segment, once it is closed
        self._descriptors: dict[str, int] = {}  # of the open segment
        self._bytes = 0
        self._first = -1  # what it is, or the newest was, named by
        self._last = -1

    def is_full(self, row: int) -> bool:
        """Whether a row of that many bytes belongs into the next segment."""
        return self._rows in self._descriptors and self._bytes + row > max(self._grain, HEADERS * self._header)

    def append(self, row: bytearray, form: RowFormat, first: int, last: int) -> None:
        """Append a row, whole or (OSError) not at all."""
        self._header = len(header(form))
        self._append(self._rows, row, form, first)
        self._last = last

    def append_scalars(self, rows: bytearray, form: RowFormat, first: int) -> None:
        """Append rows of scalars, all or (OSError) none."""
        self._append(self._scalars, rows, form, first)

    def _append(self, stem: str, rows: bytearray, form: RowFormat, first: int) -> None:
        descriptor = self._descriptors.get(stem)
        if descriptor is not None:
            _write(descriptor, rows)
            self._bytes += len(rows)
            return
        if not self._descriptors:
            self._first = max(first, self._first + 1)
        path = self._path(stem, self._first)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write(descriptor, header(form) + rows)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        self._descriptors[stem] = descriptor
        self._bytes += len(header(form)) + len(rows)

    def close(self, keep: bool = False) -> None:
        """Finish the open segment; `keep` says that it is never thinned."""
        if not self._descriptors:
            return
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        if keep or self._pin:
            self._kept_bytes += self._bytes
            self._pinned_bytes += 0 if keep else self._bytes
        else:
            self._closed.append(Closed(self._first, self._last, self._bytes))
            self._closed_bytes += self._bytes
        self._bytes = 0
        self._pin = False

    def pin(self, first: int) -> None:
        """Never thin the segments with steps from `first` on, as long as all such take no more than a part of the share."""
        while self._closed and self._closed[-1].last >= first and self._may_pin(self._closed[-1].bytes):
            pinned = self._closed.pop()
            self._closed_bytes -= pinned.bytes
            self._kept_bytes += pinned.bytes
            self._pinned_bytes += pinned.bytes
        self._pin = self._pin or self._may_pin(max(self._grain, self._bytes))

    def _may_pin(self, more: int) -> bool:
        return self._pinned_bytes + more <= self._share // LEAST_SHARE

    def thin(self, covered: int) -> None:
        """Delete the oldest segments until the next one fits the share, as far as coarser bins hold their steps (to `covered`)."""
        room = max(self._share - self._kept_bytes, self._share // LEAST_SHARE) - max(self._grain, HEADERS * self._header)
        while self._closed and self._closed[0].last <= covered and self._closed_bytes > room:
            gone = self._closed.popleft()
            self._closed_bytes -= gone.bytes
            for stem in (self._rows, self._scalars):
                self._path(stem, gone.first).unlink(missing_ok=True)

    def _path(self, stem: str, first: int) -> Path:
        return self._folder / f"{stem}-{first:012d}.arrow"


def _write(descriptor: int, data: bytes | bytearray) -> None:
    """Append `data` with one write; where the disk has no room for all of it, nothing of it stays."""
    written = 0
    try:
        written = os.write(descriptor, data)
        while written < len(data):
            written += os.write(descriptor, memoryview(data)[written:])
    except OSError:
        if written:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise


class _Nullable:
    """Nullable columns that lie one behind the other, of single values or of lists of one length."""

    def __init__(self, row: Row, names: Sequence[str]) -> None:
        self._values = row.together(names)
        self._bitmaps = self._nulls = None
        self._told = b""  # which values the row says are there
        if self._values.size:
            self._bitmaps = row.together([f"{name}?" for name in names])
            self._nulls = row.together([f"{name}#" for name in names])

    def fill(self, values: Floats, present: Bools) -> None:
        if self._bitmaps is None or self._nulls is None:
            return
        self._values[:] = values
        if (now := present.tobytes()) != self._told:  # they are nearly always the same as in the row before
            self._told = now
            there = present.reshape(len(present), -1)
            self._bitmaps[:] = np.packbits(there, axis=1, bitorder="little")
            np.subtract(there.shape[1], there.sum(axis=1), out=self._nulls)


class StepRow:
    """The row of a step, filled again for each."""

    def __init__(self, form: RowFormat) -> None:
        self._row = row = form.row()
        self.size = form.size
        self._step, self._time = row.fields["step"], row.fields["time"]
        self._complete, self._skipped = row.fields["complete"], row.fields["skipped"]
        self._run = _Nullable(row, RUN_VALUES)
        self._groups = _Nullable(row, [f"group_{name}" for name in GROUP_VALUES])
        self._blocks = _Nullable(row, [f"block_{name}" for name in BLOCK_VALUES])
        self._counts = row.together([f"block_{name}" for name in BLOCK_COUNTS])

    def of(self, record: StepRecord) -> bytearray:
        """The bytes of this record's row."""
        self._step[0] = record.step
        self._time[0] = nanoseconds(record.time)
        self._complete[0] = record.complete
        self._skipped[0] = record.skipped
        self._run.fill(record.run, record.run_present)
        self._groups.fill(record.groups, record.groups_present)
        self._blocks.fill(record.blocks, record.blocks_present)
        self._counts[:] = record.counts
        fill_counters(self._row, record)
        return self._row.seal()


def _short(name: str) -> bytes:
    """A logged name as the file holds it: cut where it is too long, with a hash, so that two names stay two."""
    data = name.encode("utf-8", "replace")
    if len(data) <= TEXT:
        return data
    return data[: TEXT - 13].decode("utf-8", "ignore").encode() + b"~" + hashlib.sha256(data).hexdigest()[:12].encode()
