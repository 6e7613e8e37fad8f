"""What the agent does with a run, here in the process that wants to know.

A process of its own for each of thousands of runs would only wait for the clock. `Following` is the agent's own room: it reads the
flight, feeds the detectors, writes findings and conclusions beside it; only the moment at which it looks is chosen here.
`Detecting` is the part of it that makes findings, for runs so long that the merging of exported series would take most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from resmon.agent.attempt import Attempt, Rank
from resmon.detectors import Bank
from resmon.flight.reader import Follower
from resmon.records import Columns, Finding, StepRecord


def rank_folders(run: Path) -> list[Path]:
    """Of a run's newest attempt."""
    return sorted(max(run.glob("attempt-*")).glob("rank-*"))


class Following:
    """Follows the newest attempt in a run's folder as the agent does."""

    def __init__(self, run: Path) -> None:
        folders = rank_folders(run)
        self.faults: list[str] = []  # of the agent's
        self._attempt = Attempt(folders[0].parent, lambda _, message: self.faults.append(message))
        for folder in folders:
            self._attempt.add(Rank(Follower(folder)))

    def look(self) -> None:
        """Take in all that is new; where the run is over, conclude how it ended."""
        self._attempt.poll(math.inf)

    def close(self) -> None:
        self.look()
        self._attempt.close()


def _raise(name: str, error: Exception) -> None:
    raise RuntimeError(f"the detector {name} failed") from error


class Detecting:
    """The detectors of the agent, told of every step and every logged value of one rank in the agent's order.

    The flight is there from the first step on, so nothing is looked at before that.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._follower: Follower | None = None
        self._bank = Bank(fault=_raise)
        self._columns = Columns()
        self._newest = (0, 0.0)
        self.steps = 0  # that the detectors were told of
        self.findings: dict[str, Finding] = {}  # by id, in their newest state
        self.paged: set[str] = set()  # ids of those that were a page at any time

    def look(self) -> None:
        """Take in all that is new."""
        if self._follower is None:
            (folder,) = rank_folders(self._run)
            self._follower = Follower(folder)
            self._bank = Bank(self._follower.info.detectors, fault=_raise)
        while items := self._follower.poll():
            for item in items:
                if isinstance(item, Columns):
                    self._columns = item
                    continue
                if isinstance(item, StepRecord):
                    self.steps += item.complete
                    self._newest = (item.step, item.time)
                    self._take(self._bank.step(item, self._columns.sites))
                else:
                    self._take(self._bank.scalars(item))

    def close(self) -> None:
        """The run is over."""
        self.look()
        self._take(self._bank.end(*self._newest))
        if self._follower is not None:
            self._follower.close()

    def _take(self, events: Iterable[Finding]) -> None:
        for finding in events:
            self.findings[finding.id] = finding
            if finding.severity == "page":
                self.paged.add(finding.id)
