"""One attempt of one run, as the agent follows it: its ranks' flights, detectors over each, all of them merged for the exporters."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from resmon.catalogue import MAXIMUM_WINDOW
from resmon.agent.findings import FindingLog
from resmon.detectors import DETECTORS, Detector
from resmon.exporters.maxima import Maxima
from resmon.exporters.ranks import MergedStep, Ranks, Sites
from resmon.exporters.view import BlockTable, Column, RankView, RunView
from resmon.flight import layout
from resmon.flight.reader import Follower
from resmon.records import Finding, Outcome, RunEnd, RunInfo, ScalarRecord, StepRecord

log = logging.getLogger("resmon.agent")

# The outcome of an attempt is the worst of its ranks', first the ones that tell a cause: when one rank runs out of memory, the launcher
# kills the others, and they would hide it.
WORST_FIRST: tuple[Outcome, ...] = (
    "out_of_memory",
    "nonfinite",
    "shape_mismatch",
    "killed",
    "failed",
    "stalled",
    "interrupted",
    "unknown",
    "finished",
)

KILLED = (
    "the process was gone, its lock free, and it had left no end mark: killed by a signal it cannot catch (SIGKILL, also from the "
    "kernel when memory ran out), crashed, or the machine's end of it"
)

MAXIMA = ("branch_skip_ratio", "gradient_norm", "output_gradient_norm")

# Steps that wait for a slower rank. The ranks of one attempt run in lockstep, so more than a few say that one is not read any more.
WAITING = 256

Fault = Callable[[str, str], None]  # what it is about (said once), and what happened


class Rank:
    """One rank's flight and the detectors that watch it."""

    def __init__(self, follower: Follower, registration: Path) -> None:
        self.follower = follower
        self.registration = registration
        self.info: RunInfo = follower.info
        self.sites: Sites = ()
        self.record: StepRecord | None = None
        self.record_sites: Sites = ()
        self.end: RunEnd | None = None
        self.detectors: list[Detector] = [make() for make in DETECTORS]


class Attempt:
    """The ranks of one attempt that run on this machine.

    Gauges show one step, the newest that all living ranks have reached, so that a sum over ranks never mixes two steps; counters show
    each rank's newest record, so that they never go back.
    """

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.folder = folder
        self.run_folder = folder.parent
        self.number = layout.attempt_number(folder) or 0
        self.ranks: dict[int, Rank] = {}
        self._fault = fault
        self._findings = FindingLog(folder / layout.FINDINGS)
        self._gauge_ranks, self._counter_ranks = Ranks(), Ranks()
        self._waiting: dict[int, dict[int, tuple[Sites, StepRecord]]] = {}  # step -> rank -> record
        self._merged: MergedStep | None = None
        self._maxima = Maxima(MAXIMA, MAXIMUM_WINDOW)
        self._scores: dict[str, tuple[int, int, float]] = {}  # name -> step, rank, value
        self._losses: deque[tuple[float, float]] = deque()  # second, largest loss in it

    @property
    def key(self) -> str:
        """What tells this attempt from every other, also from one in a folder that was deleted and made again."""
        info = self.info
        return f"{self.folder}\n{info.launch}\n{info.boot_id}"

    @property
    def info(self) -> RunInfo:
        return self.ranks[min(self.ranks)].info

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while a rank is under way."""
        ends = [rank.end.outcome for rank in self.ranks.values() if rank.end is not None]
        return min(ends, key=WORST_FIRST.index) if len(ends) == len(self.ranks) else None

    @property
    def skipped(self) -> int:
        """Damaged rows that were skipped."""
        return sum(rank.follower.skipped for rank in self.ranks.values())

    def add(self, rank: Rank) -> None:
        self.ranks[rank.info.rank] = rank

    def poll(self) -> None:
        """Take in what the ranks have written since the last time."""
        for number, rank in sorted(self.ranks.items()):
            if rank.end is None:
                try:
                    self._poll_rank(number, rank)
                except Exception as error:  # one bad flight must not keep the agent from following the others
                    self._fault(str(rank.registration), f"{self.folder}, rank {number}: cannot be followed: {error!r}")
        self._settle()

    def _poll_rank(self, number: int, rank: Rank) -> None:
        # Asked before reading: what a process wrote until it died is on file by then, its end mark too.
        alive = rank.follower.alive()
        for item in rank.follower.poll():
            if isinstance(item, StepRecord):
                rank.record, rank.record_sites = item, rank.sites
                self._waiting.setdefault(item.step, {})[number] = (rank.sites, item)
                for detector in list(rank.detectors):
                    self._detect(number, rank, detector, lambda d=detector, r=item: d.step(r, rank.sites))
                if len(self.ranks) == 1:
                    self._settle()
            elif isinstance(item, ScalarRecord):
                self._take_scalars(number, item)
                for detector in list(rank.detectors):
                    self._detect(number, rank, detector, lambda d=detector, r=item: d.scalars(r))
            else:
                rank.sites = item
        end = rank.follower.end
        if end is None and not alive:
            end = RunEnd("killed", time.time(), None if rank.record is None else rank.record.step, KILLED)
            self._write_end(rank, end)
        if end is not None:
            step = rank.record.step if rank.record is not None else rank.info.start_step
            for detector in list(rank.detectors):
                self._detect(number, rank, detector, lambda d=detector: d.end(step, end.time))
            rank.end = end

    def _detect(self, number: int, rank: Rank, detector: Detector, ask: Callable[[], Iterable[Finding]]) -> None:
        try:
            events = list(ask())
        except Exception as error:  # it would go wrong at every further step
            rank.detectors.remove(detector)
            name = type(detector).__name__
            self._fault(f"{self.folder} {number} {name}", f"{self.folder}, rank {number}: detector {name} is off: {error!r}")
            return
        for event in events:
            try:
                self._findings.add(event, number)
            except OSError as error:
                self._fault(f"{self.folder} findings", f"{self.folder / layout.FINDINGS} cannot be written: {error}")

    def _write_end(self, rank: Rank, end: RunEnd) -> None:
        path = rank.follower.folder / layout.END
        try:
            if not path.exists():
                layout.write_json(path, asdict(end))
        except OSError as error:
            self._fault(str(path), f"{path} cannot be written: {error}")

    def _take_scalars(self, number: int, record: ScalarRecord) -> None:
        """The newest step's value of each name; where several ranks log it, the lowest rank's."""
        for name, value in record.values.items():
            step, rank, _ = self._scores.get(name, (-1, number, 0.0))
            if record.step > step or (record.step == step and number <= rank):
                self._scores[name] = (record.step, number, value)
        loss = record.values.get("loss")
        if loss is not None:
            second = float(int(record.time))
            while self._losses and self._losses[-1][0] > second:
                self._losses.pop()
            while self._losses and self._losses[0][0] <= second - MAXIMUM_WINDOW:
                self._losses.popleft()
            if self._losses and self._losses[-1][0] == second:
                loss = _largest(loss, self._losses.pop()[1])
            self._losses.append((second, loss))

    def _settle(self) -> None:
        """Merge every step that all living ranks have reached, in order."""
        if not self._waiting:
            return
        living = [rank for rank in self.ranks.values() if rank.end is None]
        reached = [-1 if rank.record is None else rank.record.step for rank in living]
        reached = reached or [max(self._waiting)]
        ready = sorted(step for step in self._waiting if step <= min(reached))
        if len(self._waiting) - len(ready) > WAITING:
            ready = sorted(self._waiting)[:-WAITING]
        for step in ready:
            records = self._waiting.pop(step)
            if self._merged is None or step > self._merged.step:
                merged = self._gauge_ranks.step([record for _, record in sorted(records.items())])
                self._maxima.push(merged.time, merged.sites, merged.gauges)
                self._merged = merged

    def view(self, label: str) -> RunView:
        """This moment, under the given value of the label `run`."""
        ranks = sorted(self.ranks.items())
        newest = [(rank.record_sites, rank.record) for _, rank in ranks if rank.record is not None]
        blocks = None
        if newest:
            sites, nonfinite_steps, buckets, sums = self._counter_ranks.counters(newest)
            blocks = BlockTable(sites, self._gauges(sites), nonfinite_steps, buckets, sums)
        losses = [loss for _, loss in self._losses]
        loss_max = losses[0] if losses else None
        for loss in losses[1:]:
            loss_max = _largest(loss, loss_max)
        return RunView(
            run=label,
            info=self.info,
            outcome=self.outcome,
            ranks=tuple(RankView(number, rank.record) for number, rank in ranks),
            blocks=blocks,
            gradient_norm=self._merged.gradient_norm if self._merged else None,
            scores={name: value for name, (_, _, value) in self._scores.items()},
            loss_max=loss_max,
            findings=self._findings.newest(),
        )

    def _gauges(self, sites: Sites) -> dict[str, Column]:
        merged = self._merged
        gauges = {} if merged is None else {name: _spread(column, merged.sites, sites) for name, column in merged.gauges.items()}
        ...
