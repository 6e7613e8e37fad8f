"""One attempt of one run, as the agent follows it: its ranks' flights, detectors over each, all merged for the exporters."""

from __future__ import annotations

import logging
import math
import re
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resmon.agent import bookmark, figures
from resmon.agent.bookmark import Bookmark, BookmarkError, heading
from resmon.agent.findings import FindingLog
from resmon.agent.memory import RankMemory
from resmon.agent.reaction import Reaction
from resmon.catalogue import MAXIMUM_WINDOW
from resmon.detectors import Bank, Detector, state
from resmon.errors import ResmonError
from resmon.exporters.budget import MAX_SERIES, Budget, Fit
from resmon.exporters.maxima import Maxima
from resmon.exporters.ranks import MergedStep, Ranks, Sites
from resmon.exporters.stages import depths
from resmon.exporters.view import BlockTable, RankView, RunView
from resmon.flight import endings, incidents, layout, stalls
from resmon.flight.endings import Ending, Remains, conclude
from resmon.flight.journal import Lines
from resmon.flight.reader import WAITING, Follower, read_stack, typed
from resmon.records import (
    OUTCOMES,
    Checkpoint,
    Columns,
    Finding,
    Incident,
    Outcome,
    RunEnd,
    RunInfo,
    ScalarRecord,
    SpanRecord,
    StepRecord,
)
from resmon.scores.gaps import Gaps
from resmon.scores.targets import Reached, first_reached
from resmon.statistics import STATISTICS, Column

log = logging.getLogger("resmon.agent")

MAXIMA = ("branch_skip_ratio", "gradient_norm", "output_gradient_norm")

# Numbers (sites times steps) that are read at once of one rank, so that an agent that catches up with a long flight stays small.
AT_ONCE = 5_000

_HEX = re.compile("[0-9a-f]{48}")  # the ids of a trace and of a span

# Seconds between two bookmarks of a rank, and times as long as one takes: half a percent of the agent's time.
SAVE_AFTER = 2.0
SAVE_COST = 200

Fault = Callable[[str, str], None]  # what it is about (of which it is said once), and what happened
Told = Callable[[RunInfo, Finding | Incident | RunEnd, SpanRecord | None], None]  # of which rank, and in which span the loop was


def untold(info: RunInfo, what: Finding | Incident | RunEnd, span: SpanRecord | None) -> None:
    """Where nobody wants to be told."""


class Rank:
    """One rank's flight and the detectors that watch it."""

    def __init__(
        self,
        follower: Follower,
        reaction: Reaction | None = None,
        own: Sequence[type[Detector]] = (),
        kept: Path | None = None,
    ) -> None:
        self.follower = follower
        self.reaction = reaction
        self._own = own
        self._bookmark = kept  # the file
        self._heading = heading(follower.info, [f"{kind.__module__}:{kind.__qualname__}" for kind in own])
        self.info: RunInfo = follower.info
        self.columns = Columns()
        self.newest: tuple[Columns, StepRecord] | None = None
        self.end: RunEnd | None = None
        self.readable = True
        self.off: list[tuple[str, Exception]] = []  # detectors that failed, of which nobody was told yet
        self.bank = self._new_bank()
        self.gaps = Gaps()
        self.last: int | None = None  # newest step that the bank was told of
        self.nonfinite = 0  # steps that were, until then
        self.resumed: Bookmark | None = None
        self.lost = ""  # why a bookmark that is there was not used
        self._marks: deque[tuple[float, tuple[int, int]]] = deque()  # second of a record, and where the reading was
        self._skipped_before = 0
        self._next_save = 0.0
        self._saved: int | None = None  # the step
        self.memory = RankMemory(self.info)
        self.checkpoint: Checkpoint | None = None  # the newest
        self.reached: list[Reached] = []
        self.incidents: dict[str, Incident] = {}  # by id, in their newest state
        self._heard = _moment(self.info.started)
        self._incidents = incidents.lines(follower.folder)
        self._checkpoints = Lines(follower.folder / layout.CHECKPOINTS, partial(typed, Checkpoint), "a checkpoint")
        self._targets = Lines(follower.folder / layout.REACHED, partial(typed, Reached), "a target that was met")
        self._span_lines = Lines(follower.folder / layout.SPANS, _span, "a span")
        self._spans: list[SpanRecord] = []  # by step
        self._resume()

    @property
    def skipped(self) -> int:
        """Damaged rows and lines that were skipped."""
        lines = (self._checkpoints, self._targets, self._incidents, self._span_lines)
        return self._skipped_before + self.follower.skipped + sum(len(each.skips) for each in lines)

    def _new_bank(self) -> Bank:
        return Bank(self.info.detectors, self._own, self._off)

    def _resume(self) -> None:
        """Go on from the bookmark of the agent before, if there is one."""
        if self._bookmark is None:
            return
        try:
            found = bookmark.read(self._bookmark, self._heading)
            if found is None:
                return
            bank, gaps = self._new_bank(), Gaps()
            bank.restore(found.bank)
            state.restore(gaps, found.gaps)
        except (BookmarkError, state.StateError) as error:
            self.lost = str(error)
            return
        # Without what the detectors have taken over, which as JSON has it is larger than they are.
        self.resumed, self.bank, self.gaps, self.last = replace(found, bank={}, gaps={}), bank, gaps, found.step
        self._skipped_before, self.nonfinite = found.skipped, found.nonfinite
        # What is shown of the last minute is read again; the detectors are told only of what they have not seen.
        self.follower.go_to(replace(found.position, steps=found.again))

    def read(self, limit: int) -> Sequence[object]:
        """The next items."""
        before = self.follower.position.steps
        items = self.follower.poll(limit)
        first = next((item for item in items if isinstance(item, StepRecord)), None)
        if first is not None:
            self._marks.append((first.time, before))
            newest = next(item.time for item in reversed(items) if isinstance(item, StepRecord))
            while len(self._marks) > 1 and self._marks[1][0] < newest - MAXIMUM_WINDOW:
                self._marks.popleft()
        return items

    def save(self, scores: Mapping[str, tuple[int, float]], losses: Sequence[tuple[float, float]], open_: Sequence[str]) -> None:
        """Write a bookmark, unless nothing is new. Raises OSError or BookmarkError; it is not tried again at once then."""
        if self._bookmark is None or self.last is None or self.last == self._saved or not self._marks:
            return
        started = time.monotonic()
        self._next_save = math.inf
        try:
            position = self.follower.position
            Bookmark(
                step=self.last,
                position=position,
                again=self._marks[0][1],
                skipped=self._skipped_before + self.follower.skipped,
                nonfinite=self.nonfinite,
                open=tuple(open_),
                scores=scores,
                losses=tuple(losses),
                gaps=state.save(self.gaps),
            ).write(self._bookmark, self._heading, self.bank.parts(bookmark.left))
            self._saved = self.last
        finally:
            now = time.monotonic()
            self._next_save = now + max(SAVE_AFTER, SAVE_COST * (now - started))

    def save_anew(self) -> None:
        """The bookmark is gone: the next one is written though nothing is new."""
        self._saved, self._next_save = None, 0.0

    @property
    def may_save(self) -> bool:
        """Whether it is time to."""
        return time.monotonic() >= self._next_save

    def _off(self, detector: str, error: Exception) -> None:
        self.off.append((detector, error))

    def killed_for_memory(self, remains: Remains) -> Ending | None:
        """A conclusion that only who has watched the kernel's counters can come to."""
        incident = self.memory.killed(self.newest)
        if incident is None:
            return None
        return RunEnd("out_of_memory", incident.time, remains.step, f"concluded by the agent: {incident.summary}"), incident

    def read_lines(self) -> list[Incident]:
        """Take in what stands beside the rows; the incidents that are new."""
        self.checkpoint = [self.checkpoint, *self._checkpoints.poll()][-1]
        self.reached += self._targets.poll()
        new = self._incidents.poll()
        self.incidents |= {incident.id: incident for incident in new}
        return new

    def span_at(self, step: int | None) -> SpanRecord | None:
        """The span that the loop was in at a step. It stands on file before what it is asked for does."""
        for span in self._span_lines.poll():
            while self._spans and self._spans[-1].step >= span.step:
                self._spans.pop()
            self._spans.append(span)
        place = 0 if step is None else bisect_right(self._spans, step, key=lambda span: span.step)
        found = self._spans[place - 1] if place else None
        return found if found is not None and found.trace_id else None

    def hear(self, time: float) -> None:
        """Note a sign of life, by the clock that the process wrote it with."""
        self._heard = max(self._heard, _moment(time))

    def stall(self) -> Incident | None:
        """The stall that begins now, if one does."""
        record = self.newest[1] if self.newest else None
        quiet = time.monotonic() - self._heard
        if quiet < stalls.patience(self.info, record) or self.follower.stopped is not None:
            return None
        found = stalls.stall(self.info, record, quiet, time.time(), read_stack(self.follower.folder))
        return None if found.id in self.incidents else found

    @property
    def is_stalled(self) -> bool:
        return self.end is None and stalls.open_stall(self.incidents.values()) is not None


def _span(line: Any) -> SpanRecord:
    span = typed(SpanRecord, line)
    if span.trace_id and not (_HEX.fullmatch(span.trace_id + span.span_id) and 0 <= span.flags < 256):
        raise ValueError("neither a trace's id and a span's nor none")
    return span


def _lives(rank: Rank) -> bool:
    return rank.end is None and rank.follower.end is None and rank.follower.alive()


def _moment(when: float) -> float:
    """A moment of the clock that can be set, as one of that which cannot: by how long ago it is."""
    return time.monotonic() - max(0.0, time.time() - when)


def key_of(folder: Path, info: RunInfo) -> str:
    """What tells an attempt from every other, also from one in a folder that was deleted and made again."""
    return f"{folder}\n{info.launch}\n{info.boot_id}"


class Attempt:
    """The ranks of one attempt that run on this machine.

    Gauges show one step, the newest that all living ranks have reached, so that no sum over ranks mixes two steps. Counters show
    each rank's newest record, so that they never go back.
    """

    def __init__(self, folder: Path, fault: Fault, max_series: int = MAX_SERIES, told: Told = untold) -> None:
        self.folder = folder
        self.ranks: dict[int, Rank] = {}
        self.caught_up = False
        self._fault = fault
        self._told = told
        self._findings = FindingLog(folder / layout.FINDINGS)
        self._gauge_ranks, self._counter_ranks = Ranks(), Ranks()
        self._waiting: dict[int, dict[int, tuple[Columns, StepRecord]]] = {}  # step -> rank -> record
        self._merged: MergedStep | None = None
        self._together: dict[int, tuple[Columns, StepRecord]] = {}  # rank -> record, of the step that is merged
        self._maxima = Maxima(MAXIMA, MAXIMUM_WINDOW)
        self._budget = Budget(max_series)
        self._said: Fit = "whole"
        self._scores: dict[str, tuple[int, int, float]] = {}  # name -> step, rank, value
        self._losses: deque[tuple[float, float]] = deque()  # second, largest loss in it

    @property
    def info(self) -> RunInfo:
        return self.ranks[min(self.ranks)].info

    @property
    def key(self) -> str:
        return key_of(self.folder, self.info)

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while a rank is under way."""
        ends = [rank.end.outcome for rank in self.ranks.values() if rank.end is not None]
        return min(ends, key=OUTCOMES.index) if len(ends) == len(self.ranks) else None

    @property
    def skipped(self) -> int:
        """Damaged rows and lines that were skipped."""
        return sum(rank.skipped for rank in self.ranks.values())

    def add(self, rank: Rank) -> None:
        number = rank.info.rank
        self.ranks[number] = rank
        if rank.lost:
            folder = rank.follower.folder
            self._fault(
                f"{folder} bookmark", f"{folder} is read from its first step again, as its bookmark is of no use: {rank.lost}"
            )
        if (before := rank.resumed) is not None:
            self._findings.take_up(number, before.open, before.step)
            for name, (step, value) in before.scores.items():
                self._score(number, name, step, value)
            losses = dict(self._losses)
            for second, loss in before.losses:
                losses[second] = float(np.fmax(loss, losses.get(second, np.nan)))
            self._losses = deque(sorted(losses.items()))
        if rank.bank.wrong:
            wrong = "; ".join(map(str, rank.bank.wrong))
            self._fault(f"{self.folder} detectors", f"{self.folder}: settings of detectors that cannot be used: {wrong}")

    def close(self) -> None:
        for rank in self.ranks.values():
            rank.follower.close()

    def scraped(self, enough: int) -> None:
        """Note that a scrape has had everything; so many are all."""
        if self.caught_up:
            self._findings.scraped(enough)

    def poll(self, deadline: float) -> bool:
        """Take in what the ranks have written since the last time; False where `deadline` (monotonic) came first."""
        while True:
            # Rank by rank in turns, so that the one that is read first does not run far ahead.
            any_new = False
            for number, rank in sorted(self.ranks.items()):
                if rank.end is None:
                    any_new |= self._poll_rank(number, rank)
            self._settle()
            if not any_new:
                self.caught_up = True
                return True
            if time.monotonic() > deadline:
                return False

    def _poll_rank(self, number: int, rank: Rank) -> bool:
        """Take in the next items of a rank; False where there were none."""
        so_far = rank.memory.kills()
        # Asked before reading: what a process wrote until it died is on file by then, its end mark too.
        ended = rank.follower.end is not None or not rank.follower.alive()
        if not ended:
            rank.memory.lived(so_far)
        items: Sequence[object] = ()
        for incident in rank.read_lines():
            self._told(rank.info, incident, rank.span_at(incident.step))
        if rank.readable:
            try:
                # How wide its rows are is known from the first one on.
                items = rank.read(4 if rank.newest is None else max(1, min(1000, AT_ONCE // (len(rank.columns.sites) or 100))))
            except Exception as error:  # noqa: BLE001 - one bad flight must not keep the agent from following the others
                rank.readable = False
                self._fault(str(rank.follower.folder), f"{rank.follower.folder} cannot be followed any further: {error}")
        for item in items:
            if isinstance(item, StepRecord):
                new = rank.last is None or item.step > rank.last  # else it was read before this agent came
                if new and rank.last is not None and item.step > rank.last + 1:
                    rank.gaps.interrupt()
                rank.newest = (rank.columns, item)
                rank.hear(item.time)
                stall = stalls.open_stall(rank.incidents.values())
                if stall is not None and (stall.step is None or item.step > stall.step):
                    self._write_down(rank, stalls.resumed(stall, item))
                rank.memory.step(item)
                self._waiting.setdefault(item.step, {})[number] = rank.newest
                if len(self.ranks) == 1:
                    self._settle()
                if new:
                    rank.last = item.step
                    rank.nonfinite += item.is_nonfinite
                    self._take_findings(number, rank, rank.bank.step(item, rank.columns.sites))
            elif isinstance(item, ScalarRecord):
                self._take_scalars(number, item)
                rank.hear(item.time)
                self._take_findings(number, rank, rank.bank.scalars(item))
            elif isinstance(item, Columns):
                rank.columns = item
        if rank.may_save:
            self._save(number, rank)
        if ended and not items:
            self._save(number, rank)
            self._conclude(number, rank)
        elif not items and rank.readable and (stall := rank.stall()) is not None:
            self._write_down(rank, stall)
        return bool(items)

    def save(self, anew: bool = False) -> None:
        """The next agent is to go on from here: this one leaves, or (`anew`) the bookmarks that there were are gone."""
        for number, rank in self.ranks.items():
            if anew:
                rank.save_anew()
            if anew or rank.end is None:
                self._save(number, rank)

    def _save(self, number: int, rank: Rank) -> None:
        scores = {name: (step, value) for name, (step, other, value) in self._scores.items() if other == number}
        try:
            rank.save(scores, tuple(self._losses), self._findings.open_in(number))
        except Exception as error:  # noqa: BLE001 - OSError, or what a detector of the user's own holds
            self._fault(f"{rank.follower.folder} save", f"{rank.follower.folder}: no bookmark can be written: {error}")

    def _take_findings(self, number: int, rank: Rank, events: Iterable[Finding]) -> None:
        for name, error in rank.off:
            folder = rank.follower.folder
            self._fault(f"{folder} {name}", f"{folder}: the detector {name} is off from here: {error!r}")
        rank.off.clear()
        for event in events:
            try:
                if (new := self._findings.write(event, number)) is not None:
                    self._told(rank.info, new, rank.span_at(new.step))
            except OSError as error:
                self._fault(f"{self.folder} findings", f"{self.folder / layout.FINDINGS} cannot be written: {error.strerror}")

    def _conclude(self, number: int, rank: Rank) -> None:
        """Everything that the rank's process wrote has been read, and it writes no more."""
        record = rank.newest[1] if rank.newest else None
        step = record.step if record else None
        folder = rank.follower.folder
        others = tuple(other for other, each in sorted(self.ranks.items()) if other != number and _lives(each))
        remains = Remains(folder, rank.info, rank.follower.end, record, tuple(rank.incidents.values()), others)
        end, incident = conclude(remains, (*endings.CONCLUSIONS, rank.killed_for_memory))
        if rank.follower.end is None and folder.is_dir():
            try:
                layout.write_json(folder / layout.END, asdict(end))
            except OSError as error:
                self._fault(str(folder / layout.END), f"{folder / layout.END} cannot be written: {error.strerror}")
        if incident is not None:
            self._write_down(rank, incident)
        for new in rank.read_lines():  # what was written down just now
            self._told(rank.info, new, rank.span_at(new.step))
        self._take_findings(number, rank, rank.bank.end(rank.info.start_step if step is None else step, end.time))
        rank.end = end
        self._told(rank.info, end, rank.span_at(end.step))
        log.info("run %r, attempt %d, rank %d: %s", rank.info.run, rank.info.attempt, number, end.outcome)

    def _write_down(self, rank: Rank, incident: Incident) -> None:
        """Of what the rank's process does not write down itself; and do what the user wants to be done about it."""
        folder = rank.follower.folder
        try:
            incident = incidents.append(folder, incident)
        except OSError as error:
            self._fault(f"{folder} incidents", f"{folder / layout.INCIDENTS} cannot be written: {error.strerror}")
        rank.incidents[incident.id] = incident
        log.info("run %r, attempt %d, rank %d: %s", rank.info.run, rank.info.attempt, rank.info.rank, incident.summary)
        if rank.reaction is not None:
            try:
                rank.reaction.to(incident, rank.info, folder)
            except (OSError, ResmonError) as error:
                self._fault(f"{folder} reaction", f"on_incident was not run for {folder}: {error}")

    def _take_scalars(self, number: int, record: ScalarRecord) -> None:
        """The newest step's value of each name; where several ranks log it, the lowest rank's."""
        for name, value in record.values.items():
            self._score(number, name, record.step, value)
            self.ranks[number].gaps.add(record.step, name, value)
        loss = record.values.get("loss")
        if loss is not None:  # seconds of the records' own time, for the reasons that exporters/maxima.py gives
            second = float(np.floor(record.time))
            while self._losses and self._losses[0][0] <= second - MAXIMUM_WINDOW:
                self._losses.popleft()
            while self._losses and self._losses[-1][0] >= second:  # later ones: the clock was set back
                loss = float(np.fmax(loss, self._losses.pop()[1]))
            self._losses.append((second, loss))

    def _score(self, number: int, name: str, at: int, value: float) -> None:
        step, rank, _ = self._scores.get(name, (-1, number, 0.0))
        if at > step or (at == step and number <= rank):
            self._scores[name] = (at, number, value)

    def _settle(self) -> None:
        """Merge, in order, every step that all living ranks have reached."""
        if not self._waiting:
            return
        living = [rank.newest for rank in self.ranks.values() if rank.end is None]
        reached = min((newest[1].step if newest else -1 for newest in living), default=max(self._waiting))
        ready = sorted(step for step in self._waiting if step <= reached)
        if len(self._waiting) - len(ready) > WAITING:
            ready = sorted(self._waiting)[:-WAITING]
        for step in ready:
            records = self._waiting.pop(step)
            newest = -1 if self._merged is None else self._merged.step
            if step == newest:  # a rank whose folder was found when the others had got here already
                records = self._together | records
            if step >= newest:
                self._together = records
                in_order = [record for _, record in sorted(records.items())]
                merged = self._merged = self._gauge_ranks.step(in_order, self.info.local_world_size or 1)
                self._maxima.push(merged.time, merged.sites, merged.gauges)
            if step > newest:
                self._claim()
                sites = self._counter_ranks.union([columns.sites for columns, _ in self._newest()])
                # A bookmark knows findings of steps that are read again; what is shown must not depend on that.
                self._budget.step(merged, sites, self._findings.open_blocks(before=step))

    def _newest(self) -> list[tuple[Columns, StepRecord]]:
        return [rank.newest for _, rank in sorted(self.ranks.items()) if rank.newest is not None]

    def _claim(self) -> None:
        info = self.info
        self._budget.claim(
            info.models,
            ranks=max(len(self.ranks), info.local_world_size or 1),
            scores=len(self._scores),
            groups=len({group for rank in self.ranks.values() for group in rank.columns.groups}),
            findings=self._findings.series,
            targets=len(info.targets),
        )

    def view(self, label: str) -> RunView:
        """This moment, under the given value of the label `run`."""
        ranks = sorted(self.ranks.items())
        newest = self._newest()
        table, sites = self._blocks(newest) if newest else (None, ())
        return RunView(
            run=label,
            info=self.info,
            outcome=self.outcome,
            ranks=tuple(
                RankView(
                    number,
                    rank.newest[1] if rank.newest else None,
                    rank.newest[0].groups if rank.newest else (),
                    figures.process(rank.follower.folder) if rank.end is None else None,
                    rank.nonfinite,
                )
                for number, rank in ranks
            ),
            blocks=table,
            watched=Counter(site.model for site in sites),
            folded=self._budget.folded(),
            max_series=self._budget.max_series,
            gradient_norm=self._merged.gradient_norm if self._merged else None,
            group_gradient_norms=self._merged.group_gradient_norms if self._merged else {},
            clip_factor=self._merged.clip_factor if self._merged else None,
            scores={name: value for name, (_, _, value) in self._scores.items()},
            loss_max=float(np.fmax.reduce([loss for _, loss in self._losses])) if self._losses else None,
            findings=self._findings.newest(),
            incidents=tuple(incidents.newest(each for _, rank in ranks for each in rank.incidents.values())),
            is_stalled=any(rank.is_stalled for _, rank in ranks),
            started=(started := min(rank.info.started for _, rank in ranks)),
            # Not before it began, though the clock was set back: what began after an end is another attempt.
            ended=None if self.outcome is None else max(started, *(rank.end.time for _, rank in ranks if rank.end is not None)),
            unseen=self._findings.unseen,
            # The lowest rank that logs both sides speaks for the run.
            gaps={score: gap.gap for _, rank in reversed(ranks) for score, gap in rank.gaps.newest.items()},
            reached=first_reached(reached for _, rank in ranks for reached in rank.reached),
            checkpoint=max(
                (rank.checkpoint for _, rank in ranks if rank.checkpoint is not None),
                key=lambda checkpoint: -1 if checkpoint.step is None else checkpoint.step,
                default=None,
            ),
        )

    def _blocks(self, newest: Sequence[tuple[Columns, StepRecord]]) -> tuple[BlockTable | None, Sites]:
        """What is exported of the blocks, and all that there are."""
        sites, nonfinite_steps, buckets, sums = self._counter_ranks.counters(newest)
        none = Column(np.full(len(sites), np.nan), np.zeros(len(sites), bool))
        merged = self._merged.over(sites) if self._merged is not None else None
        gauges = dict(merged.gauges) if merged is not None else dict.fromkeys(STATISTICS, none)
        gauges |= {f"{name}_max": column for name, column in self._maxima.columns(sites).items()} | {"depth": depths(sites)}
        self._claim()
        table = self._budget.fold(
            BlockTable(sites, gauges, nonfinite_steps, buckets, sums), sites, merged, self._findings.open_blocks()
        )
        self._say_what_is_folded(len(sites))
        return table, sites

    def _say_what_is_folded(self, blocks: int) -> None:
        """Once, and again only where it has become another matter."""
        if self._budget.fit == self._said:
            return
        self._said = self._budget.fit
        run = f"run {self.info.run!r}, attempt {self.info.attempt}"
        limit = f"{self._budget.max_series:,} series (max_series)"
        needed = (self._budget.needed // 1000 + 2) * 1000  # with something to spare for scores, groups and findings to come
        enough = f"With max_series = {needed} each of its blocks has its own; the flight has them all anyway"
        if self._said == "none":
            log.warning(
                "%s: no series of its %s blocks is exported, as its scores, ranks, groups and findings leave no room in %s. %s",
                run,
                f"{blocks:,}",
                limit,
                enough,
            )
        elif self._said == "folded":
            log.info(
                "%s: its %s blocks are exported by stage and the worst of them by name, within %s. %s",
                run,
                f"{blocks:,}",
                limit,
                enough,
            )
