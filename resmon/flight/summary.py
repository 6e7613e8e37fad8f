"""Runs in a line each: what `resmon ls` and the agent's page list. Only the newest rows are read."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from resmon.errors import FlightError
from resmon.flight import findings, incidents, layout, stalls
from resmon.flight.endings import Remains, conclude
from resmon.flight.reader import Follower, read_stopped
from resmon.records import OUTCOMES, Finding, Incident, Outcome, ScalarRecord, StepRecord


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in a line: its newest attempt, its size with all attempts."""

    name: str
    attempt: int
    outcome: Outcome | str  # "running" or "stalled" while it lives, "unreadable" where nothing tells
    steps: int
    loss: float | None
    blocks: int
    size: int
    time: float  # of the newest step
    incident: str = ""  # what broke: the one that tells the outcome, else the newest
    model: str = ""
    started: float | None = None
    finding: Finding | None = None  # of those that are open, or were when it ended: the first of the severest
    findings: int = 0  # how many these are
    stopped: str = ""  # that it is recorded no more, and why
    unread: str = ""  # why none of its steps can be read
    folder: str = ""  # what its folder is called

    @property
    def title(self) -> str:
        """Its name, by which commands find it; and its folder's where that was copied or renamed, by which they do then."""
        own = layout.safe_name(self.name or "run")
        return self.name if self.folder in (own, "") else f"{self.name} (in {self.folder})"

    @property
    def lives(self) -> bool:
        """Whether a process records it."""
        return self.outcome in ("running", "stalled")


def summaries(directory: Path) -> list[Summary]:
    """The runs of a folder, newest last; a damaged run is a line too, one that is removed meanwhile is none."""
    found = []
    for folder in layout.runs(directory):
        with suppress(OSError, ValueError):  # no attempt is left, either
            found.append(replace(summary(max(layout.attempts(folder).items())[1]), size=layout.size(folder)))
    return sorted(found, key=lambda each: each.time)


def summary(attempt: Path) -> Summary:
    """One attempt, without its size. Raises OSError where it is gone."""
    number, name = layout.attempt_number(attempt) or 1, attempt.parent.name
    steps, loss, blocks, when, model = 0, None, 0, attempt.stat().st_mtime, ""
    started: float | None = None
    outcomes: list[Outcome | None] = []
    broke: list[Incident] = []
    quiet, unread = False, ""
    for folder in reversed(layout.ranks(attempt).values()):
        try:
            follower = Follower(folder, newest=True)
        except FlightError:
            continue
        info, newest = follower.info, None
        alive = follower.alive()
        while items := follower.poll():
            for item in items:
                if isinstance(item, StepRecord):
                    newest = item
                elif isinstance(item, ScalarRecord):
                    loss = item.values.get("loss", loss)
        follower.close()
        if newest is None and follower.skips:
            unread = str(follower.skips[0])
        known = {incident.id: incident for incident in incidents.read(folder, ended=not alive)[0]}
        name, model, started = info.run, ", ".join(info.models.values()), info.started
        when = newest.time if newest else info.started
        steps = max(steps, newest.steps_total if newest else 0)
        blocks = max(blocks, len(follower.columns.sites))
        if alive:
            outcomes.append(None)
            quiet |= time.time() - when > stalls.patience(info, newest) and follower.stopped is None
        else:
            end, concluded = conclude(Remains(folder, info, follower.end, newest, tuple(known.values())))
            outcomes.append(end.outcome)
            broke += [concluded] if concluded is not None else []
        broke += known.values()
    outcome: Outcome | str = "unreadable"
    if outcomes:
        over = [ended for ended in outcomes if ended is not None]
        outcome = min(over, key=OUTCOMES.index) if len(over) == len(outcomes) else "stalled" if quiet else "running"
    telling = max(incidents.newest(broke), key=lambda incident: (incident.kind == outcome, incident.time), default=None)
    stopped = next((mark for folder in layout.ranks(attempt).values() if (mark := read_stopped(folder)) is not None), None)
    no_more = stopped.summary if stopped else ""
    broken = telling.summary if telling else no_more
    lasting = _lasting(attempt)
    return Summary(
        name,
        number,
        outcome,
        steps,
        loss,
        blocks,
        0,
        when,
        broken,
        model,
        started,
        min(lasting, key=lambda finding: (finding.severity != "page", finding.opened_step), default=None),
        len(lasting),
        no_more,
        unread if not steps else "",
        attempt.parent.name,
    )


def _lasting(attempt: Path) -> list[Finding]:
    newest = {event.id: event for event in findings.read(attempt)[0]}
    return [finding for finding in newest.values() if finding.lasts]
