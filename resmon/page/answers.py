"""What the page asks for, as JSON: the runs there are, and one run (or two side by side) with its figures.

An answer stands under a tag that changes when anything in it does, so that a page which asks again is told "as before" in a few
bytes; and however many pages ask for the same, it is made once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import resmon
from resmon.flight import layout
from resmon.flight.summary import Summary
from resmon.handbook import pages as handbook
from resmon.page.address import identity
from resmon.page.figures import Look, Seen, differing, figures
from resmon.page.listing import Entry, Listing
from resmon.page.sight import NEVER, Sight, Sights
from resmon.plots.measures import BY_NAME, MEASURES
from resmon.records import Finding, Incident

PAGE, LARGEST_PAGE = 50, 500  # runs that one answer lists unless told otherwise, and at most
KEPT = 8 << 20  # bytes of answers that are kept for whoever asks next
LONGEST = 2_000  # characters of a text
EVENTS = 100  # findings and incidents that are told in words
LINES = 64
_FIGURE = ("key", "title", "caption", "plot", "height")


@dataclass(frozen=True, slots=True)
class Answer:
    """JSON and its tag."""

    tag: str
    body: bytes
    until: float = NEVER  # monotonic: before it, who asks for the same is told the same


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a run is asked for. What is not given is None, and chosen from what there is."""

    quantity: str | None = None
    first: int | None = None
    last: int | None = None
    newest: int | None = None  # so many of the newest steps, wherever they are
    at: int | None = None
    block: int | None = None
    beside: str | None = None  # id of another run
    narrow: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Wish:
        """From a request's query; what makes no sense is as if it were not there."""

        def whole(name: str) -> int | None:
            text = query.get(name, "")
            return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None

        quantity = query.get("quantity")
        first, last = whole("from"), whole("to")
        if first is not None and last is not None and last < first:
            first = last = None
        return cls(
            quantity if quantity in BY_NAME else None,
            first,
            last,
            whole("newest"),
            whole("at"),
            whole("block"),
            query.get("with") or None,
            query.get("narrow") == "1",
        )


class Answers:
    """Makes them and keeps the newest."""

    def __init__(self, listing: Listing, sights: Sights) -> None:
        self._listing = listing
        self._sights = sights
        self._kept: OrderedDict[tuple[Any, ...], tuple[Any, Answer]] = OrderedDict()
        self._lines: dict[Path, tuple[float, Summary | None]] = {}
        self._lock = Lock()

    def runs(self, match: str = "", limit: int = PAGE) -> Answer:
        """The runs whose name has that in it, so many at most."""
        entries = self._listing.entries()
        if match:
            entries = [entry for entry in entries if match.lower() in entry.folder.name.lower()]
        shown = []
        for entry in entries[: min(limit, LARGEST_PAGE)]:
            summary = self._listing.summary(entry)
            if summary is not None:
                shown.append(_line(entry, summary))
        return _answer({"version": resmon.__version__, "total": len(entries), "runs": shown})

    def run(self, id_: str, wish: Wish) -> Answer | None:
        """One run, with its figures; None where there is none of that id."""
        entry = self._listing.find(id_)
        if entry is None:
            return None
        other = self._listing.find(wish.beside) if wish.beside else None
        entries = [entry] if other is None or other.attempt == entry.attempt else [entry, other]
        sights = [self._sights.of(each.attempt) for each in entries]
        lines = [self._line(each, sight) for each, sight in zip(entries, sights, strict=True)]
        if sights[0].gone or lines[0] is None:
            return None
        attempts = [_attempt(each, found) for each in self._listing.attempts(entry) if (found := self._listing.summary(each))]
        version = tuple(sight.version for sight in sights), tuple(lines), attempts
        until = min(sight.fresh_until for sight in sights)
        with self._lock:
            known = self._kept.get((id_, wish))
            if known is not None and known[0] == version:
                self._kept.move_to_end((id_, wish))
                return replace(known[1], until=until)
        made = replace(_answer(_told(entries, sights, lines, wish) | {"attempts": attempts}), until=until)
        with self._lock:
            self._kept[id_, wish] = version, made
            room = sum(len(answer.body) for _, answer in self._kept.values())
            while room > KEPT and len(self._kept) > 1:
                room -= len(self._kept.popitem(last=False)[1][1].body)
        return made

    def _line(self, entry: Entry, sight: Sight) -> Summary | None:
        """The run in a line, as old as what is drawn of it, so that both change at once."""
        known = self._lines.get(entry.attempt)
        if known is None or known[0] != sight.read:
            known = self._lines[entry.attempt] = sight.read, self._listing.summary(entry)
            while len(self._lines) > LINES:
                self._lines.pop(next(iter(self._lines)), None)
        return known[1]


def _told(entries: list[Entry], sights: list[Sight], lines: list[Summary | None], wish: Wish) -> dict[str, Any]:
    with ExitStack() as stack:
        # In one order, so that two who compare the same runs the other way round do not wait for each other.
        for sight in sorted(set(sights), key=lambda sight: str(sight.attempt)):
            stack.enter_context(sight.lock)
        told = [
            _line(entry, summary) | _more(entry, sight)
            for entry, sight, summary in zip(entries, sights, lines, strict=True)
            if summary is not None
        ]
        if len({entry.folder for entry in entries}) < len(entries) or entries[0].id != identity(entries[0].folder):
            told = [one | {"title": f"{one['title']}, attempt {one['attempt']}"} for one in told]
        courses = [sight.course for sight in sights if sight.course is not None]
        made: dict[str, Any] = {"run": told[0], "other": told[1] if len(told) > 1 else None, "figures": [], "differing": ""}
        if not courses or sights[0].course is None:
            return made
        whole = min(course.begin for course in courses), max(course.newest for course in courses)
        stays = 0
        first, last = whole[0] if wish.first is None else wish.first, whole[1] if wish.last is None else wish.last
        if wish.newest:
            # From a step that stays for a while, so that the same columns go on.
            stays = max(1, wish.newest // 8)
            first, last = max(whole[0], (whole[1] - wish.newest + 1) // stays * stays), whole[1]
        last = min(last, 1 << (whole[1] + 64).bit_length())  # steps to come, but not too many; it is another number seldom
        if first > whole[1] or last < whole[0]:
            first, last = whole
        there = list(dict.fromkeys(measure for course in courses for measure in course.there())) or list(MEASURES[:1])
        there.sort(key=MEASURES.index)
        wished = BY_NAME.get(wish.quantity or "")
        measure = wished if wished in there else there[0]
        seen = []
        for one, sight in zip(told, sights, strict=False):
            course = sight.window(first, first + wish.newest + stays if wish.newest else last)
            if course is not None:
                seen.append(Seen(one["title"], sight, course))
        at = min((each.course.newest_known(first, last) for each in seen), default=last)
        if wish.at is not None:
            at = min(max(wish.at, first), last, whole[1])
        blocks = max((len(each.blocks) for each in seen), default=0)
        block = wish.block if wish.block is not None and wish.block < blocks else None
        longest = max((len(name) for each in seen for name in each.blocks), default=0)
        look = Look(measure, first, last, at, block, wish.narrow, longest)
        if seen and seen[0].sight is sights[0]:
            made["figures"] = [{name: getattr(figure, name) for name in _FIGURE} for figure in figures(seen, look)]
            made["differing"] = differing(seen)
        made |= {
            "whole": whole,
            "range": (first, last),
            "at": at,
            "block": block,
            "blocks": max((each.blocks for each in seen), key=len, default=[]),
            "quantity": measure.name,
            "quantities": [{"name": each.name, "label": each.label} for each in there],
        }
        return made


def _line(entry: Entry, summary: Summary) -> dict[str, Any]:
    """A run in a line."""
    return {
        "id": entry.id,
        "name": summary.name[:LONGEST],
        "title": summary.name[:LONGEST],
        "folder": str(entry.folder),
        "attempt": summary.attempt,
        "outcome": summary.outcome,
        "lives": summary.lives,
        "steps": summary.steps,
        "loss": _number(summary.loss),
        "blocks": summary.blocks,
        "model": summary.model[:LONGEST],
        "incident": summary.incident[:LONGEST],
        "stopped": summary.stopped[:LONGEST],
        "finding": summary.finding.summary[:LONGEST] if summary.finding else "",
        "severity": summary.finding.severity if summary.finding else "",
        "findings": summary.findings,
        "started": summary.started,
        "newest": summary.time,
    }


def _attempt(entry: Entry, summary: Summary) -> dict[str, Any]:
    """An attempt among a run's others."""
    return {"id": entry.id, "number": summary.attempt, "outcome": summary.outcome, "steps": summary.steps}


def _more(entry: Entry, sight: Sight) -> dict[str, Any]:
    """What is known of a run besides."""
    info = sight.info
    known = handbook.names()
    told: dict[str, Any] = {
        "skipped": sight.skipped,
        "ranks": sight.ranks,
        "findings": [_finding(each, known) for each in _weighed(sight.findings)],
        "incidents": [_incident(each, known, entry.attempt) for each in sight.incidents[-EVENTS:]],
        "facts": [],
    }
    if info is not None:
        facts = (
            ("model", ", ".join(info.models.values())),
            ("command", " ".join(info.command)),
            ("folder", info.working_directory),
            ("git commit", info.git_commit or ""),
            ("seed", "" if info.seed is None else str(info.seed)),
            ("ranks", f"{sight.ranks:,} of {info.world_size:,}" if info.world_size > 1 else ""),
            ("host", info.host),
            ("process", str(info.pid)),
            ("recorded in", str(entry.attempt)),
            ("versions", f"resmon {info.resmon}, torch {info.torch}, Python {info.python}"),
        )
        told["facts"] = [(name, value[:LONGEST]) for name, value in facts if value]
    return told


def _weighed(found: list[Finding]) -> list[Finding]:
    """What is open first, or was in the end; pages before tickets, the newest first."""
    return sorted(found, key=lambda each: (not each.lasts, each.severity != "page", -each.opened_step))[:EVENTS]


def _finding(finding: Finding, known: list[str]) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "lasts": finding.lasts,
        "block": finding.place[:LONGEST],
        "step": finding.opened_step,
        "time": finding.opened_time,
        "summary": finding.summary[:LONGEST],
        "expected": finding.expected[:LONGEST],
        "seen": finding.seen[:LONGEST],
        "runbook": finding.runbook if finding.runbook in known else "",
    }


def _incident(incident: Incident, known: list[str], attempt: Path) -> dict[str, Any]:
    capsule = ""
    if incident.capsule:
        capsule = f"resmon explain {layout.ranks(attempt).get(incident.rank, attempt) / incident.capsule}"
    return {
        "kind": incident.kind,
        "rank": incident.rank,
        "step": incident.step,
        "time": incident.time,
        "summary": incident.summary[:LONGEST],
        "block": incident.place[:LONGEST],
        "module": incident.module[:LONGEST],
        "line": incident.line[:LONGEST],
        "checkpoint": incident.checkpoint[:LONGEST],
        "advice": incident.advice[:LONGEST],
        "capsule": capsule[:LONGEST],
        "runbook": incident.runbook if incident.runbook in known else "",
    }


def _number(value: float | None) -> float | str | None:
    """What JSON has no number for is a word."""
    if value is None or abs(value) < float("inf"):
        return value
    return "NaN" if value != value else "infinite" if value > 0 else "−infinite"


def _answer(content: Any) -> Answer:
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return Answer(f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"', body)


def now() -> float:
    """The machine's clock, from which ages are told: a browser's may be another."""
    return time.time()
