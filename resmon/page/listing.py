"""Which runs there are: those of the folders that training processes on this machine write to.

A run is asked for by an id, which is looked up among those that were found; no part of a request ever becomes a path.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from resmon.flight import layout
from resmon.flight.summary import Summary, summary
from resmon.page.address import identity

FRESH = 2.0  # seconds for which a listing is true
COST = 20  # and so many times as long as it took: a twentieth of a processor at most
LIVE = 1.0  # seconds for which the summary of a run under way is true
KEPT = 4096  # summaries of runs that are over


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that there is: its newest attempt, and when a file of it came last."""

    id: str
    attempt: Path
    changed: float

    @property
    def folder(self) -> Path:
        return self.attempt.parent


class Listing:
    """Finds runs; `directories` says in which folders, `followed` which attempts are under way."""

    def __init__(self, directories: Callable[[], Iterable[Path]], followed: Callable[[], Iterable[Path]]) -> None:
        self._directories = directories
        self._followed = followed
        self._entries: dict[str, Entry] = {}
        self._until = 0.0
        self._lock = Lock()
        self._summaries: dict[Path, tuple[float, float, Summary]] = {}  # by attempt: when it changed, when it was read

    def entries(self) -> list[Entry]:
        """All runs, those under way first, then the newest."""
        return list(self._found().values())

    def find(self, id_: str) -> Entry | None:
        """The run of that id; None where there is none any more."""
        entry = self._found().get(id_)
        return entry if entry is not None and entry.attempt.is_dir() else None

    def summary(self, entry: Entry) -> Summary | None:
        """The run in a line; None where it is gone."""
        now = time.monotonic()
        known = self._summaries.get(entry.attempt)
        if known is not None and (now - known[1] < LIVE or (not known[2].lives and known[0] == entry.changed)):
            return known[2]
        try:
            found = summary(entry.attempt)
        except OSError:
            self._summaries.pop(entry.attempt, None)
            return None
        self._summaries[entry.attempt] = (entry.changed, now, found)
        while len(self._summaries) > KEPT:
            self._summaries.pop(next(iter(self._summaries)), None)
        return found

    def _found(self) -> dict[str, Entry]:
        with self._lock:
            started = time.monotonic()
            if started > self._until:
                followed = {path.parent for path in self._followed()}
                found = [entry for directory in self._directories() for entry in _runs(directory)]
                found.sort(key=lambda entry: (entry.folder in followed, entry.changed), reverse=True)
                self._entries = {entry.id: entry for entry in found}
                now = time.monotonic()
                self._until = now + max(FRESH, COST * (now - started))
            return self._entries


def _runs(directory: Path) -> Iterable[Entry]:
    for folder in layout.runs(directory):
        attempts = layout.attempts(folder)
        if not attempts:  # it went in between
            continue
        newest = attempts[max(attempts)]
        if not Path(os.path.realpath(newest)).is_relative_to(directory):  # a link that leads out
            continue
        try:
            times = [newest.stat().st_mtime, *(path.stat().st_mtime for path in layout.ranks(newest).values())]
        except OSError:
            continue
        yield Entry(identity(folder), newest, max(times))
