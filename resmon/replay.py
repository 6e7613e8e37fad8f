"""`resmon replay`: what the detectors say of a flight that is there, as the agent would say it, or with other settings.

The records of a flight take the same way as live: rank by rank to the rank's own bank of detectors, under the settings that the run
recorded, and what the ranks say is merged as the agent merges it. So the findings are the agent's, to the last number, unless steps
were thinned away since. A rank is read a piece at a time, so a flight of any length takes the same memory.
"""

from __future__ import annotations

import heapq
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, Literal

from resmon.agent.findings import Merging, key
from resmon.detectors import Bank, Detector
from resmon.detectors.bank import options
from resmon.errors import ConfigurationError, FlightError, FlightVersionError
from resmon.flight import findings as findings_file
from resmon.flight import layout
from resmon.flight.endings import Remains, conclude
from resmon.flight.reader import Follower
from resmon.records import Columns, Finding, StepRecord

AT_ONCE = 20_000  # numbers (sites times steps) that are read at once of one rank

Values = Mapping[str, Any]
Progress = Callable[[int, float], None]  # a rank, and how much of its flight has been read, 0 to 1


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was said of an attempt, by the bank of each of the settings that were asked for."""

    run: str
    attempt: int
    ranks: tuple[int, ...]
    steps: int  # that are there in full, of the rank that has lost most
    recorded: int  # that the run made
    under_way: bool
    events: tuple[tuple[Finding, ...], ...]  # of each of the settings
    seconds: float
    notes: tuple[str, ...]

    def findings(self, which: int = 0) -> tuple[Finding, ...]:
        """Each in its newest state, in the order in which they opened."""
        return newest(self.events[which])


def newest(events: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings in their newest state, in the order in which they opened."""
    found = {event.id: event for event in events}
    return tuple(sorted(found.values(), key=lambda finding: (finding.opened_step, finding.id)))


def replay(
    attempt: Path, changes: Sequence[Values], more: Sequence[type[Detector]] = (), progress: Progress = lambda _rank, _share: None
) -> Replayed:
    """Run the detectors over an attempt, once with each of `changes` to the settings that the run recorded.

    Raises FlightError where nothing can be read.
    """
    started = time.perf_counter()
    ranks: list[_Rank] = []
    notes: list[str] = []
    error: FlightError | None = None
    for number, folder in layout.ranks(attempt).items():
        try:
            ranks.append(_Rank(number, Follower(folder), changes, more))
        except FlightVersionError:
            raise
        except FlightError as failed:
            error = failed
            notes.append(str(failed))
    if not ranks:
        raise error or FlightError(f"{attempt} holds no rank's flight. `resmon ls` lists the runs.")
    merged = [Merging() for _ in changes]
    events: list[list[Finding]] = [[] for _ in changes]
    # In the order of the steps, of one step in that of the ranks: as the ranks of a run go, in lockstep.
    for _, number, which, event in heapq.merge(*(rank.events(progress) for rank in ranks), key=lambda each: each[:2]):
        told = merged[which].add(event, number)
        if told is not None:
            merged[which].told(told)
            events[which].append(told)
    notes += [note for rank in ranks for note in rank.notes()]
    first = ranks[0].follower.info
    thinnest = max(ranks, key=lambda rank: rank.recorded - rank.steps)
    return Replayed(
        run=first.run,
        attempt=first.attempt,
        ranks=tuple(rank.number for rank in ranks),
        steps=thinnest.steps,
        recorded=thinnest.recorded,
        under_way=any(rank.under_way for rank in ranks),
        events=tuple(map(tuple, events)),
        seconds=time.perf_counter() - started,
        notes=tuple(dict.fromkeys(notes)),
    )


class _Rank:
    def __init__(self, number: int, follower: Follower, changes: Sequence[Values], more: Sequence[type[Detector]]) -> None:
        self.number = number
        self.follower = follower
        self.steps = 0  # that are there
        self.recorded = 0  # that there were
        self.under_way = False
        self._failed: list[str] = []
        self._banks = [Bank(merge(follower.info.detectors, change), more, self._fails) for change in changes]

    def _fails(self, name: str, error: Exception) -> None:
        self._failed.append(f"the detector {name} failed and is off from there: {error!r:.200}")

    def notes(self) -> Iterator[str]:
        yield from self._failed
        yield from (f"the settings of detectors that the run recorded: {wrong}" for wrong in self._banks[0].wrong)
        if self.follower.skipped:
            yield f"rank {self.number}: about {self.follower.skipped:,} damaged rows were skipped"

    def events(self, progress: Progress) -> Iterator[tuple[float, int, int, Finding]]:
        """What each bank says: step, rank, which bank, event; the steps never go back."""
        last = self._last_step()
        at_once = max(16, min(1000, AT_ONCE // 100))
        columns, record, reached = Columns(), None, 0
        while items := self.follower.poll(at_once):
            for item in items:
                if isinstance(item, Columns):
                    columns = item
                    at_once = max(16, min(1000, AT_ONCE // (len(columns.sites) or 100)))
                    continue
                reached = max(reached, item.step)
                if isinstance(item, StepRecord):
                    record = item
                    self.steps += 1
                    for which, bank in enumerate(self._banks):
                        for event in bank.step(item, columns.sites):
                            yield reached, self.number, which, event
                else:
                    for which, bank in enumerate(self._banks):
                        for event in bank.scalars(item):
                            yield reached, self.number, which, event
            progress(self.number, min(1.0, reached / last) if last else 0.0)
        self.recorded = record.steps_total if record is not None else 0
        yield from self._end(record)
        self.follower.close()
        progress(self.number, 1.0)

    def _end(self, record: StepRecord | None) -> Iterator[tuple[float, int, int, Finding]]:
        info = self.follower.info
        self.under_way = self.follower.end is None and self.follower.alive()
        if self.under_way:
            return
        end, _ = conclude(Remains(self.follower.folder, info, self.follower.end, record, ()))
        for which, bank in enumerate(self._banks):
            for event in bank.end(info.start_step if record is None else record.step, end.time):
                yield inf, self.number, which, event

    def _last_step(self) -> int:
        """The newest on file."""
        ahead = Follower(self.follower.folder, newest=True)
        steps = [item.step for item in ahead.poll() if isinstance(item, StepRecord)]
        ahead.close()
        return max(steps, default=0)


def merge(settings: Values, change: Values) -> dict[str, Any]:
    """Settings of detectors under changes to them, option by option."""
    made = dict(settings)
    for name, value in change.items():
        before = made.get(name)
        made[name] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return made


_SETTING = re.compile(r"(?P<detector>[^\s.=\[\]]+)(\[(?P<pattern>.+)\])?\.(?P<option>[^\s.=\[\]]+)=(?P<value>.*)", re.DOTALL)


def settings_of(texts: Sequence[str], more: Sequence[type[Detector]] = ()) -> dict[str, Any]:
    """What DETECTOR.OPTION=VALUE and DETECTOR[PATTERN].OPTION=VALUE set. Raises ConfigurationError with all that is wrong."""
    made: dict[str, Any] = {}
    wrong: list[str] = []
    for text in texts:
        match = _SETTING.fullmatch(text)
        if match is None:
            wrong.append(f"--set {text}: must be DETECTOR.OPTION=VALUE or 'DETECTOR[PATTERN].OPTION=VALUE'")
            continue
        option = {match["option"]: match["value"].strip()}
        one = {match["detector"]: option if match["pattern"] is None else {"sites": {match["pattern"]: option}}}
        messages = [f"--set {text}: {each.message}" for each in options(one, more)[1]]
        wrong += messages
        if not messages:
            made = merge(made, one)
    if wrong:
        raise ConfigurationError("\n".join(["settings that cannot be used:", *(f"  {each}" for each in wrong), WHERE]))
    return made


WHERE = "docs/detectors.md has a table of all detectors and their options."


# -- beside what the agent wrote ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the events of a replay compare with those that the agent has written."""

    written: int
    missing: tuple[Finding, ...]  # that the agent wrote and the replay does not say
    more: tuple[Finding, ...]  # that the replay says and the agent did not write
    differing: tuple[Finding, ...]  # with other words or numbers, as the replay says them

    @property
    def is_same(self) -> bool:
        return not (self.missing or self.more or self.differing)


def against(attempt: Path, events: Sequence[Finding]) -> Agreement:
    """Compare events with those in the attempt's findings.jsonl. The order counts of each finding's events only."""
    written = findings_file.read(attempt)[0]
    theirs, ours = ({key(event): event for event in side} for side in (written, events))
    return Agreement(
        len(written),
        tuple(event for each, event in theirs.items() if each not in ours),
        tuple(event for each, event in ours.items() if each not in theirs),
        tuple(event for each, event in ours.items() if each in theirs and not _same(event, theirs[each])),
    )


def _same(ours: Finding, theirs: Finding) -> bool:
    # Which of several ranks came first is not known afterwards, and each tells its own numbers.
    if ours.evidence.get("rank") != theirs.evidence.get("rank"):
        return True
    return bool(json.loads(json.dumps(asdict(ours))) == asdict(theirs))


# -- with other settings --------------------------------------------------------------------------------------------------

How = Literal["new", "gone", "changed", "same"]


@dataclass(frozen=True, slots=True)
class Change:
    """A finding under two settings."""

    how: How
    before: Finding | None
    after: Finding | None
    what: str = ""  # of a changed one

    @property
    def finding(self) -> Finding:
        found = self.after or self.before
        assert found is not None  # noqa: S101, one of the two is there
        return found


def compare(before: Sequence[Finding], after: Sequence[Finding]) -> list[Change]:
    """Which findings settings make new, gone or another one; in the order in which they opened.

    A finding that opens earlier or later is the same one if it is of the same kind and model and the two overlap.
    """
    rest = {finding.id: finding for finding in after}
    pairs: dict[str, Finding] = {}
    for finding in before:
        if finding.id in rest:
            pairs[finding.id] = rest.pop(finding.id)
    for finding in before:
        if finding.id not in pairs:
            other = next((each for each in rest.values() if _overlap(finding, each)), None)
            if other is not None:
                pairs[finding.id] = rest.pop(other.id)
    changes = [_change(finding, pairs.get(finding.id)) for finding in before]
    changes += [Change("new", None, finding) for finding in rest.values()]
    return sorted(changes, key=lambda change: (change.finding.opened_step, change.finding.id))


def _overlap(one: Finding, other: Finding) -> bool:
    if (one.kind, one.model) != (other.kind, other.model):
        return False
    return one.opened_step <= _until(other) and other.opened_step <= _until(one)


def _until(finding: Finding) -> float:
    return finding.step if finding.state == "closed" else inf


def _change(before: Finding, after: Finding | None) -> Change:
    if after is None:
        return Change("gone", before, None)
    what = []
    if after.severity != before.severity:
        what.append(f"a {after.severity}, not a {before.severity}")
    if after.block != before.block:
        what.append(f"names {after.block}, not {before.block}")
    if after.opened_step != before.opened_step:
        what.append(f"opens at step {after.opened_step:,}, not {before.opened_step:,}")
    if (after.state, after.step) != (before.state, before.step):
        what.append(f"{_lasts(after)}, not {_lasts(before)}")
    if not what and replace(after, evidence={}) != replace(before, evidence={}):
        what.append("says it in other words")
    return Change("changed" if what else "same", before, after, "; ".join(what))


def _lasts(finding: Finding) -> str:
    return f"closes at step {finding.step:,}" if finding.state == "closed" else "is open"
