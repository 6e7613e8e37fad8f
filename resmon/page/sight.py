"""A run that somebody looks at, and the few that somebody looked at lately.

A sight is read when it is first asked for and goes on from there with what is new; when nobody has asked for a while, or others
need the room, it is let go. Only one is read at a time, so that what reading takes for a moment is bounded too.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from resmon.errors import FlightError
from resmon.flight import findings, layout
from resmon.flight.endings import of_attempt
from resmon.flight.journal import Lines
from resmon.flight.reader import typed
from resmon.page.course import LEAST, Course, columns_for
from resmon.page.history import History, RankHistory
from resmon.records import Checkpoint, Finding, Incident, RunInfo

PERIOD = 1.0  # seconds between two looks for what is new
EVENTS = 2.0  # between two looks for what broke, which reads the newest rows anew
IDLE = 300.0  # seconds after which a sight that nobody asks for is let go
ROOM = 40 << 20  # bytes that all sights may take together
WINDOWS = 2  # ranges of steps that are kept of one run
NEVER = float("-inf")

_reading = Lock()


class Sight:
    """One attempt of a run, or what some of its ranks recorded. Safe to use from several threads."""

    def __init__(self, attempt: Path, only: frozenset[int] | None = None) -> None:
        self.attempt = attempt
        self._only = only
        self.gone = False
        self.findings: list[Finding] = []
        self.incidents: list[Incident] = []
        self.checkpoints: list[Checkpoint] = []
        self.course: Course | None = None  # None as long as there is no step
        self._history = History({})
        self._made: dict[int, tuple[int, ...]] = {}  # what tells each rank's folder from another of that name
        self._windows: OrderedDict[tuple[int, int], Course] = OrderedDict()
        self._logged = -1  # newest step of which something was logged
        self.read = self._looked = NEVER
        self.lock = Lock()  # over whoever draws it, as `refresh` changes what is drawn
        self.asked = time.monotonic()

    @property
    def size(self) -> int:
        return sum(course.size for course in (*self._windows.values(), *([self.course] if self.course else [])))

    @property
    def info(self) -> RunInfo | None:
        """The lowest rank's."""
        return next((rank.info for rank in self._history.ranks.values()), None)

    @property
    def ranks(self) -> int:
        return len(self._history.ranks)

    @property
    def skipped(self) -> int:
        """Rows that could not be read."""
        skips = {(skip.file, skip.offset): skip.rows for rank in self._history.ranks.values() for skip in rank.skipped}
        return sum(skips.values())

    @property
    def fresh_until(self) -> float:
        """When it is looked for what is new again, if somebody asks; by the monotonic clock."""
        return self.read + PERIOD

    @property
    def version(self) -> tuple[object, ...]:
        """Changes when anything does that is shown."""
        course = self.course
        states = tuple((event.id, event.state, event.step) for event in self.findings)
        broke = tuple((incident.rank, incident.id, incident.time, incident.summary) for incident in self.incidents)
        return (
            self.gone,
            self.skipped,
            self.ranks,
            None if course is None else (course.begin, course.newest, self._logged),
            hash((states, broke)),
            len(self.checkpoints),
        )

    def refresh(self) -> None:
        """Take in what is new, unless that was done a moment ago."""
        with self.lock:
            now = self.asked = time.monotonic()
            if now < self.fresh_until:
                return
            if not self.attempt.is_dir():
                self.gone = True
                return
            self.gone = False
            self._look(now)
            self._find_ranks()
            with _reading:
                if self.course is None:
                    self._begin()
                else:
                    self._go_on(self.course)
            self.read = time.monotonic()

    def window(self, first: int, last: int) -> Course | None:
        """The course of some steps. To be called with the lock held."""
        course = self.course
        if course is None or last < first:
            return None
        if course.width == 1 or (first <= course.begin and last >= course.newest):
            return course
        first = max(first, course.begin)
        known = self._windows.get((first, last))
        if known is None:
            with _reading:
                known = self._course(first, min(last, course.newest), last)
            self._windows[first, last] = known
        self._windows.move_to_end((first, last))
        while len(self._windows) > WINDOWS:
            self._windows.popitem(last=False)
        return known

    def let_go(self) -> int:
        """Forget the closer look that was asked for longest ago; how many bytes that frees."""
        if not self.lock.acquire(blocking=False):  # it is being drawn
            return 0
        try:
            return self._windows.popitem(last=False)[1].size if self._windows else 0
        finally:
            self.lock.release()

    def close(self) -> None:
        self._history.close()

    def _look(self, now: float) -> None:
        """Read what stands beside the rows."""
        if now - self._looked < EVENTS:
            return
        self._looked = now
        newest = {event.id: event for event in findings.read(self.attempt)[0]}
        self.findings = sorted(newest.values(), key=lambda event: (event.opened_step, event.id))
        try:
            self.incidents = of_attempt(self.attempt)
        except (FlightError, OSError):
            self.incidents = []  # a newer resmon's, say; what is read of its rows says so
        marks: list[Checkpoint] = []
        for folder in layout.ranks(self.attempt).values():
            marks += Lines(folder / layout.CHECKPOINTS, lambda values: typed(Checkpoint, values), "a checkpoint").poll()
        self.checkpoints = sorted((each for each in marks if each.step is not None), key=lambda each: (each.step or 0, each.time))

    def _find_ranks(self) -> None:
        folders = {rank: folder for rank, folder in layout.ranks(self.attempt).items() if self._only is None or rank in self._only}
        made = {number: _made(folder) for number, folder in folders.items()}
        if made == self._made:
            return
        again = any(made.get(number, mark) != mark for number, mark in self._made.items())  # it was removed and made anew
        self._made = made
        ranks: dict[int, RankHistory] = {}
        for number, folder in folders.items():
            try:
                ranks[number] = RankHistory(folder)
            except FlightError:  # it has just been made, or is damaged
                continue
        if again or ranks.keys() != self._history.ranks.keys():
            self._history.close()
            self._history = History(ranks)
            self.course, self._logged = None, -1
            self._windows.clear()

    def _begin(self) -> None:
        span = self._history.span()
        if span is None:
            return
        first, last = span
        self.course = self._course(first, last, None)
        self._history.follow(self.course.newest)

    def _course(self, first: int, last: int, until: int | None) -> Course:
        """The course from `first` on, with what there is up to `last`; one that ends has no more columns than it will need."""
        sites = next((len(rows.sites) for rows in self._history.between(last, last, 1)), 0)
        columns = columns_for(sites)
        if until is not None:
            columns = min(columns, -(-(until - first + 1) // LEAST) * LEAST)
        width = 1
        while ((last if until is None else until) - first) // width >= columns:
            width *= 2
        course = Course(first, width, columns, until)
        if until is not None:
            course.base = None
        for rows in self._history.between(first, last, width):
            course.add(rows)
        for logged in self._history.logged(first, last, width):
            course.log(logged)
            if until is None:
                self._logged = max(self._logged, int(logged.last.max()))
        return course

    def _go_on(self, course: Course) -> None:
        for rows in self._history.advance():
            rows = rows.take(rows.first > course.newest)
            if len(rows) and int(rows.first[0]) > course.newest + 1:
                self._fill(course, course.newest + 1, int(rows.first[0]) - 1)
                self._windows.clear()
            for each in (course, *self._windows.values()):
                each.add(rows.take(rows.first > each.newest))
        behind = self._logged
        for rank in self._history.ranks.values():
            for logged in rank.logged_since():
                new = logged.last > behind
                if new.any():
                    for each in (course, *self._windows.values()):
                        each.log(logged.take(new))
                    self._logged = max(self._logged, int(logged.last.max()))

    def _fill(self, course: Course, first: int, last: int) -> None:
        """Nobody looked for so long that full rows have come and gone: bins have them."""
        for rows in self._history.between(first, last, course.width):
            course.add(rows.take(rows.first <= last))
        for logged in self._history.logged(first, last, course.width):
            if (new := logged.last > self._logged).any():
                course.log(logged.take(new))


def _made(folder: Path) -> tuple[int, ...]:
    try:
        return folder.stat().st_ino, (folder / layout.INFO).stat().st_mtime_ns
    except OSError:
        return ()


class Sights:
    """The runs that somebody looks at."""

    def __init__(self) -> None:
        self._sights: OrderedDict[Path, Sight] = OrderedDict()
        self._lock = Lock()

    def of(self, attempt: Path) -> Sight:
        """The sight of an attempt, read up to now."""
        with self._lock:
            sight = self._sights.setdefault(attempt, Sight(attempt))
            self._sights.move_to_end(attempt)
            self._let_go(time.monotonic())
        sight.refresh()
        return sight

    def close(self) -> None:
        with self._lock:
            for sight in self._sights.values():
                sight.close()
            self._sights.clear()

    def _let_go(self, now: float) -> None:
        """Those that nobody asks for any more; then, until the others have room, closer looks and whole runs, the oldest first."""
        for attempt, sight in list(self._sights.items())[:-1]:
            if now - sight.asked > IDLE:
                self._sights.pop(attempt).close()
        room = ROOM - sum(sight.size for sight in self._sights.values())
        for sight in list(self._sights.values()):
            while room < 0 and (freed := sight.let_go()):
                room += freed
        for attempt, sight in list(self._sights.items())[:-1]:
            if room < 0:
                room += sight.size
                self._sights.pop(attempt).close()
