"""A run as the terminal shows it, followed through its flight.

Nothing here needs the agent: whoever can read a run's folder can watch it, live or long after. Findings come from the file that the
agent writes. Where there is none, perhaps because no agent runs, detectors that run here say what they find in the newest steps;
`resmon replay` runs them over a whole flight.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from resmon.agent import runtime
from resmon.detectors import Bank
from resmon.errors import AgentError, FlightError, FlightVersionError
from resmon.exporters.ranks import Ranks
from resmon.flight import findings, incidents, layout, stalls
from resmon.flight.endings import Remains, conclude
from resmon.flight.reader import WAITING, Follower
from resmon.page.address import address
from resmon.records import OUTCOMES, Columns, Finding, Incident, RunEnd, StepRecord
from resmon.terminal.view import View, frame

PERIOD = 0.25  # seconds between two frames
DETECTED = 4096  # newest steps, over which detectors run here


class Tail:
    """Follows an attempt; every `poll` gives the view as it is now."""

    def __init__(self, attempt: Path, goal: float | None = None) -> None:
        self._folder = attempt
        self._view = View(attempt.parent.name, goal=goal)
        self._ranks: dict[int, _Rank] = {}
        self._merge = Ranks()
        self._waiting: dict[int, dict[int, tuple[Columns, StepRecord]]] = {}  # step -> rank -> its columns and record
        self._findings_read = 0
        self.error: FlightError | None = None  # why no rank can be read, as long as none can

    def poll(self) -> View:
        """Take in everything that is new."""
        self._find_ranks()
        for finding in self._findings_on_file():  # first, as it says whether the detectors are needed
            self._view = self._view.found(finding)
        new = True
        while new:
            new = False
            for number, rank in self._ranks.items():
                new |= self._poll(number, rank)
            self._settle()
        for finding in self._findings_on_file():
            self._view = self._view.found(finding)
        unread = tuple(skip for rank in self._ranks.values() for skip in (*rank.follower.skips, *rank.lines.skips))
        if len(unread) != len(self._view.unread):
            self._view = replace(self._view, unread=unread)
        ends = [rank.end for rank in self._ranks.values()]
        if ends and None not in ends:
            self._view = replace(self._view, end=min(filter(None, ends), key=lambda end: OUTCOMES.index(end.outcome)))
        return self._view

    def _find_ranks(self) -> None:
        for number, folder in layout.ranks(self._folder).items():
            if number in self._ranks:
                continue
            try:
                self._ranks[number] = _Rank(Follower(folder))
                self._ranks[number].detect_from = _newest_step(folder) - DETECTED
            except FlightVersionError:
                raise
            except FlightError as error:  # a rank that has just been made has no info yet
                self.error = error
        if self._ranks and self._view.info is None:
            info = self._ranks[min(self._ranks)].follower.info
            self._view = replace(self._view, run=info.run, info=info)

    def _poll(self, number: int, rank: _Rank) -> bool:
        """Whether there was anything new."""
        if rank.end is not None:
            return False
        alive = rank.follower.alive()  # asked first: what a process wrote until it died is on file by then
        items = rank.follower.poll()
        detects = not self._findings_read  # else the agent says what there is to say
        for item in items:
            events: Iterable[Finding] = ()
            if isinstance(item, Columns):
                rank.columns = item
            elif isinstance(item, StepRecord):
                rank.newest = item
                self._waiting.setdefault(item.step, {})[number] = (rank.columns, item)
                if detects and item.step >= rank.detect_from:
                    events = rank.bank.step(item, rank.columns.sites)
            else:
                if number == min(self._ranks):
                    self._view = self._view.logged(item)
                if detects and item.step >= rank.detect_from:
                    events = rank.bank.scalars(item)
            for event in events:
                self._view = self._view.found(event)
        for incident in rank.lines.poll(ended=not alive):
            self._take(rank, incident)
        if number == min(self._ranks):
            stopped = rank.follower.stopped
            patience = stalls.patience(rank.follower.info, rank.newest) if stopped is None else math.inf
            self._view = replace(self._view, patience=patience, stopped=stopped)
        if not items and not alive:
            rank.end, concluded = conclude(rank.remains())
            if concluded is not None:
                self._take(rank, concluded)
            if detects:
                for event in rank.bank.end(rank.newest.step if rank.newest else 0, rank.end.time):
                    self._view = self._view.found(event)
        return bool(items)

    def _take(self, rank: _Rank, incident: Incident) -> None:
        rank.incidents[incident.id] = incident
        self._view = self._view.broke(incident)

    def _settle(self) -> None:
        """Hand the view every step that all living ranks have reached, so that no sum over ranks mixes two steps."""
        reached = [rank.newest.step if rank.newest else -1 for rank in self._ranks.values() if rank.end is None]
        ready = sorted(step for step in self._waiting if not reached or step <= min(reached))
        if len(self._waiting) - len(ready) > WAITING:
            ready = sorted(self._waiting)[:-WAITING]
        for step in ready:
            records = [record for _, record in sorted(self._waiting.pop(step).items())]
            self._view = self._view.stepped(records, self._merge, newest=step == ready[-1])

    def _findings_on_file(self) -> list[Finding]:
        try:
            size = (self._folder / layout.FINDINGS).stat().st_size
        except OSError:
            return []
        if size == self._findings_read:
            return []
        self._findings_read = size
        return findings.read(self._folder)[0]


def _newest_step(rank_folder: Path) -> int:
    """On file; 0 where there is none."""
    follower = Follower(rank_folder, newest=True)
    steps = [item.step for item in follower.poll() if isinstance(item, StepRecord)]
    follower.close()
    return max(steps, default=0)


class _Rank:
    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.columns = Columns()
        self.newest: StepRecord | None = None
        self.end: RunEnd | None = None
        self.bank = Bank(follower.info.detectors)
        self.detect_from = 0  # the step from which on the bank is told
        self.incidents: dict[str, Incident] = {}
        self.lines = incidents.lines(follower.folder)

    def remains(self) -> Remains:
        """What is left of it, once its process is gone."""
        return Remains(self.follower.folder, self.follower.info, self.follower.end, self.newest, tuple(self.incidents.values()))


def show(console: Console, tail: Tail, *, once: bool = False) -> View:
    """Show a run until it ends, or one frame of it. Without a terminal that can draw over itself the frame is printed at the end.

    Raises FlightError where there is nothing that can be read.
    """
    view = tail.poll()
    if view.info is None and tail.error is not None and once:
        raise tail.error

    def drawn() -> RenderableType:
        return frame(view, min(console.width, 120), console.height - 1 if console.is_terminal and not once else None)

    if once or not draws(console):
        while view.end is None and not once:
            time.sleep(PERIOD)
            view = tail.poll()
        console.print(drawn())
        return view
    with Live(drawn(), console=console, auto_refresh=False) as live:
        while view.end is None:
            time.sleep(PERIOD)
            view = tail.poll()
            live.update(drawn(), refresh=True)
    return view


def draws(console: Console) -> bool:
    """Whether it can draw over what it has drawn: a pipe, and a terminal such as an editor's (TERM=dumb), cannot."""
    return console.is_terminal and not console.is_dumb_terminal


def page_of(attempt: Path) -> str | None:
    """Where a browser shows the run, if an agent serves here that knows its folder."""
    try:
        home = runtime.folder()
        now = runtime.serving(home)
        folder = Path(os.path.realpath(attempt)).parent
        if now is None or not now.url or now.leaving or folder.parent not in runtime.directories(home):
            return None
    except (AgentError, OSError):
        return None
    return address(now.url, folder)
