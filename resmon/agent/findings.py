"""The findings of one attempt: in memory for the exporters, in findings.jsonl for everyone after."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from resmon.records import Finding

LARGEST_LINE = 1 << 20


class FindingLog:
    """Appends each event once, one line and one write each.

    An agent that was restarted reads the flight again and its detectors say the same again; what stands in the file already is
    not written twice. The ranks of a run see much the same, each with its own detectors: an event that another rank brought is
    not written again, and a finding is closed when the last rank that had it closes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = _events(path)
        self._whole = _ends_whole(path)
        self._newest: dict[str, Finding] = {}
        self._ranks: dict[str, set[int]] = {}  # in which a finding is open
        self._kinds: set[tuple[str, str, str, str]] = set()

    def add(self, event: Finding, rank: int) -> None:
        """Take an event. Raises OSError where it cannot be written; in memory it stands then, too."""
        ranks = self._ranks.setdefault(event.id, set())
        if event.state == "closed":
            ranks.discard(rank)
            if ranks:
                return
        else:
            ranks.add(rank)
        event = replace(event, evidence=event.evidence | {"rank": rank})
        if event.state != "opened" or event.id not in self._newest:
            self._newest[event.id] = event
            self._kinds.add((event.model, event.block, event.kind, event.severity))
        key = (event.id, event.state, event.step)
        # A finding opens once, whichever rank saw it at which of its steps.
        if key not in self._written and (event.state != "opened" or (event.id, "opened", event.opened_step) not in self._written):
            self._append(event)
            self._written.add(key)

    def newest(self) -> tuple[tuple[Finding, bool], ...]:
        """Every finding in its newest state, and whether it is open."""
        return tuple((finding, finding.state != "closed") for finding in self._newest.values())

    @property
    def series(self) -> int:
        """How many series the findings make: those of one kind and block share theirs."""
        return len(self._kinds)

    def open_blocks(self) -> set[tuple[str, str]]:
        """Model and name of the blocks that open findings name."""
        return {(finding.model, finding.block) for finding in self._newest.values() if finding.state != "closed"}

    def _append(self, event: Finding) -> None:
        line = json.dumps(asdict(event)).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # Where an agent was killed inside a line, what is left of it must not spoil the next.
            os.write(descriptor, line if self._whole else b"\n" + line)
            self._whole = True
        finally:
            os.close(descriptor)


def _events(path: Path) -> set[tuple[str, str, int]]:
    """What stands in the file: id, state and step of each event. Lines that are none are passed over."""
    found: set[tuple[str, str, int]] = set()
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
