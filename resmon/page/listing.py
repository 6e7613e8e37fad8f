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
from resmon.page.address import identity, of_attempt

FRESH = 2.0  # seconds for which a listing is true
COST = 20  # and so many times as long as it took: a twentieth of a processor at most
LIVE = 1.0  # seconds for which the summary of a run under way is true
KEPT = 4096  # summaries of runs that are over
ATTEMPTS = 50  # of one run that are told of, the newest


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that there is: its newest attempt or another that was asked for, and when a file of it came last."""

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
        """The run of that id, or of one of its attempts (ID@3); None where there is none any more."""
        found = self._found()
        entry = found.get(id_)
        if entry is not None:
            return entry if entry.attempt.is_dir() else None
        run, _, number = id_.rpartition("@")
        entry = found.get(run)
        if entry is None or not (number.isascii() and number.isdecimal() and len(number) < 9):
            return None
        return _entry(of_attempt(run, int(number)), layout.attempts(entry.folder).get(int(number)), entry.folder.parent)

    def attempts(self, entry: Entry) -> list[Entry]:
        """All attempts of a run, the newest first, each under an id of its own but for the newest, which has the run's."""
        run, numbered = identity(entry.folder), sorted(layout.attempts(entry.folder).items(), reverse=True)
        made = (
            _entry(run if i == 0 else of_attempt(run, number), attempt, entry.folder.parent)
            for i, (number, attempt) in enumerate(numbered[:ATTEMPTS])
        )
        return [each for each in made if each is not None]

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
        entry = _entry(identity(folder), attempts[max(attempts)], directory)
        if entry is not None:
            yield entry


def _entry(id_: str, attempt: Path | None, directory: Path) -> Entry | None:
    """None where there is no such attempt in the directory."""
    if attempt is None:
        return None
    folders = [attempt, *layout.ranks(attempt).values()]
    if not all(Path(os.path.realpath(folder)).is_relative_to(directory) for folder in folders):  # a link that leads out
        return None
    try:
        times = [folder.stat().st_mtime for folder in folders]
    except OSError:
        return None
    return Entry(id_, attempt, max(times))
