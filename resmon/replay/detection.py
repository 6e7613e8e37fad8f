"""`resmon replay`: what the detectors say of a flight that is there, as the agent would say it, or with other settings.

The records of a flight take the same way as live: rank by rank to the rank's own bank of detectors, under the settings that the run
recorded, and what the ranks say is merged as the agent merges it. So the findings are the agent's, to the last number, unless steps
were thinned away since. A rank is read a piece at a time, so a flight of any length takes the same memory.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from resmon.agent.findings import Merging
from resmon.detectors import Bank, Detector
from resmon.detectors.bank import options
from resmon.errors import ConfigurationError, FlightError, FlightVersionError
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
