"""The findings of one attempt: in memory for the exporters, in findings.jsonl for everyone after."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict, replace
from math import inf
from pathlib import Path

from resmon.flight import findings
from resmon.records import Finding

LARGEST_LINE = 1 << 20

Key = tuple[str, str, int]  # id, state and step of an event


class Merging:
    """The events of a run's ranks as those of one.

    The ranks see much the same, each with its own detectors: an event that another rank brought is not told again, and a finding is
    closed when the last rank that had it closes it.
    """

    def __init__(self) -> None:
        self._told: set[Key] = set()
        self._newest: dict[str, Finding] = {}
        self._ranks: dict[str, set[int]] = {}  # in which a finding is open
        self._kinds: set[tuple[str, str, str, str]] = set()

    def add(self, event: Finding, rank: int) -> Finding | None:
        """Take an event; what is to be told of it, if anything is."""
        ranks = self._ranks.setdefault(event.id, set())
        if event.state == "closed":
            ranks.discard(rank)
            if ranks:
                return None
            del self._ranks[event.id]
        else:
            ranks.add(rank)
        event = replace(event, evidence=event.evidence | {"rank": rank})
        if event.state != "opened" or event.id not in self._newest:
            self._keep(event)
        # A finding opens once, whichever rank saw it at which of its steps.
        if key(event) in self._told or (event.state == "opened" and (event.id, "opened", event.opened_step) in self._told):
            return None
        return event

    def told(self, event: Finding) -> None:
        """It has been told, and is not again."""
        self._told.add(key(event))

    def newest(self) -> tuple[tuple[Finding, bool], ...]:
        """Every finding in its newest state, and whether it is open."""
        return tuple((finding, finding.state != "closed") for finding in self._newest.values())

    @property
    def series(self) -> int:
        """How many series the findings make: those of one kind and block share theirs."""
        return len(self._kinds)

    def open_blocks(self, before: float = inf) -> set[tuple[str, str]]:
        """Model and name of the blocks that open findings name; of those that were opened before that step."""
        return {
            (finding.model, finding.block)
            for finding in self._newest.values()
            if finding.state != "closed" and finding.opened_step < before
        }

    def open_in(self, rank: int) -> list[str]:
        """Ids of the findings that are open in a rank."""
        return [id_ for id_, ranks in self._ranks.items() if rank in ranks]

    def _keep(self, event: Finding) -> None:
        self._newest[event.id] = event
        self._kinds.add((event.model, event.block, event.kind, event.severity))


class FindingLog(Merging):
    """Appends each event once, one line and one write each.

    An agent that was restarted goes on from where another was, or reads the flight again and its detectors say the same again; what
    stands in the file already is not written twice.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._scrapes: dict[str, int] = {}  # by id, of the findings that were opened before this agent's eyes; few enough to matter
        self._told = _events(path)
        self._whole = _ends_whole(path)

    def write(self, event: Finding, rank: int) -> Finding | None:
        """Take an event; what was new and written. Raises OSError where it cannot be written; in memory it stands then, too."""
        new = self.add(event, rank)
        if new is not None:
            if new.state == "opened":
                self._scrapes[new.id] = 0
            self._append(new)
            self.told(new)
        return new

    @property
    def unseen(self) -> frozenset[str]:
        """Ids of findings that are new, over or not, and that not enough scrapes have had."""
        return frozenset(self._scrapes)

    def scraped(self, enough: int) -> None:
        """Note that a scrape has had everything; so many are enough for a finding to have been seen."""
        self._scrapes = {id_: scrapes + 1 for id_, scrapes in self._scrapes.items() if scrapes + 1 < enough}

    def take_up(self, rank: int, open_: Collection[str], step: int) -> None:
        """Go on after a step at which these were open in a rank: what the file holds of before is not said again."""
        for event in findings.read(self._path.parent)[0]:
            if event.step <= step or event.id in open_:
                before = self._newest.get(event.id)
                if before is None or event.step >= before.step:
                    self._keep(event)
        for id_ in open_:
            self._ranks.setdefault(id_, set()).add(rank)

    def _append(self, event: Finding) -> None:
        line = json.dumps(asdict(event)).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # Where an agent was killed inside a line, what is left of it must not spoil the next.
            os.write(descriptor, line if self._whole else b"\n" + line)
            self._whole = True
        finally:
            os.close(descriptor)


def key(event: Finding) -> Key:
    """What tells an event from every other of its run."""
    return event.id, event.state, event.step


def _events(path: Path) -> set[Key]:
    """What stands in the file. Lines that are none are passed over."""
    found: set[Key] = set()
    try:
        with path.open("rb") as file:
            while line := file.readline(LARGEST_LINE):
                try:
                    event = json.loads(line)
                    found.add((str(event["id"]), str(event["state"]), int(event["step"])))
                except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
                    continue
    except OSError:
        pass  # none yet
    return found


def _ends_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:
        return True
