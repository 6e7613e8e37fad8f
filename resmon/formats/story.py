"""An attempt as one stream of steps: merged over the ranks, with what was logged at them, in order, live or long after.

A step is told once all ranks that live have gone past it, for until then something may still be logged at it. A rank that lags too
far behind is not waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resmon.errors import FlightError, FlightVersionError
from resmon.exporters.ranks import MergedStep, Ranks
from resmon.flight import layout
from resmon.flight.reader import WAITING, Follower
from resmon.records import PHASES, Columns, Floats, Ints, RunInfo, ScalarRecord, StepRecord

# What the ranks of one step have alike or that is shown of the first; and what is the largest of them.
FIRST = ("learning_rate", "loss_scale")
LARGEST = (
    *("duration", *(f"{phase}_seconds" for phase in PHASES), "monitor_seconds"),
    *("memory", "memory_peak", "device_memory", "device_memory_peak"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """One step, over the ranks that are there."""

    step: int
    time: float  # Unix seconds
    run: Mapping[str, float]  # what the run has at this step; what it has not is not in it
    groups: Mapping[str, Mapping[str, float]]  # of each parameter group
    merged: MergedStep  # its blocks
    magnitudes: Ints  # cumulative [S, MAGNITUDE_COLUMNS], of merged.sites
    magnitude_sum: Floats  # cumulative [S]

    @property
    def names(self) -> list[str]:
        """Of the blocks; those of several models bear the model's."""
        return [f"{site.model}/{site.name}" if site.model else site.name for site in self.merged.sites]

    def values(self) -> dict[str, float]:
        """The run's and its groups', by name: `loss`, `learning_rate/decay`."""
        return {**self.run, **{f"{what}/{group}": value for group, of in self.groups.items() for what, value in of.items()}}

    def blocks(self) -> dict[str, float]:
        """The blocks', by name: `branch_skip_ratio/h.0.mlp`. What is absent is not in it."""
        return {f"{statistic}/{block}": value for statistic, block, value in self._blocks()}

    def _blocks(self) -> Iterator[tuple[str, str, float]]:
        names = self.names
        for statistic, (values, present) in self.merged.gauges.items():
            for name, value, there in zip(names, values.tolist(), present.tolist(), strict=True):
                if there:
                    yield statistic, name, value


@dataclass(slots=True)
class _Rank:
    follower: Follower
    columns: Columns = field(default_factory=Columns)
    newest: int = -1
    over: bool = False


class Story:
    """Follows an attempt. Raises FlightError where no rank of it can be read."""

    def __init__(self, attempt: Path) -> None:
        self._folder = attempt
        self._ranks: dict[int, _Rank] = {}
        self._merge = Ranks()
        self._waiting: dict[int, dict[int, tuple[Columns, StepRecord]]] = {}
        self._logged: dict[int, dict[str, float]] = {}
        self._told = -1  # the newest step
        error = self._find()
        if not self._ranks:
            raise error or FlightError(f"{attempt} has no rank. If the run is just starting, try again.")

    @property
    def info(self) -> RunInfo:
        """The first rank's."""
        return self._ranks[min(self._ranks)].follower.info

    @property
    def over(self) -> bool:
        """Whether nothing is written any more, and all was told."""
        return all(rank.over for rank in self._ranks.values()) and not self._waiting

    @property
    def skipped(self) -> int:
        """Damaged rows that were skipped so far."""
        return sum(rank.follower.skipped for rank in self._ranks.values())

    def poll(self) -> list[Moment]:
        """Some of the steps that can be told now and were not; empty where there is none."""
        self._find()
        for number, rank in self._ranks.items():
            if rank.over:
                continue
            alive = rank.follower.alive()  # asked first: what a process wrote until it died is on file by then
            items = rank.follower.poll(WAITING)
            for item in items:
                self._take(number, rank, item)
            rank.over = not items and not alive
        return [self._moment(step) for step in self._ready()]

    def _find(self) -> FlightError | None:
        error = None
        for number, folder in layout.ranks(self._folder).items():
            if number not in self._ranks:
                try:
                    self._ranks[number] = _Rank(Follower(folder))
                except FlightVersionError:
                    raise
                except FlightError as failed:  # one that has just been made has no info yet
                    error = failed
        return error

    def _take(self, number: int, rank: _Rank, item: Columns | StepRecord | ScalarRecord) -> None:
        if isinstance(item, Columns):
            rank.columns = item
        elif isinstance(item, StepRecord):
            rank.newest = item.step
            if item.step <= self._told:  # too late: it was told without
                return
            self._waiting.setdefault(item.step, {})[number] = (rank.columns, item)
        else:  # of ranks that log the same the first one counts
            before = self._logged.setdefault(item.step, {})
            self._logged[item.step] = before | item.values if number == min(self._ranks) else {**item.values, **before}

    def _ready(self) -> list[int]:
        reached = min((rank.newest for rank in self._ranks.values() if not rank.over), default=None)
        steps = sorted(self._waiting)
        ready = steps if reached is None else [step for step in steps if step < reached]
        return ready if len(steps) - len(ready) <= WAITING else steps[:-WAITING]

    def _moment(self, step: int) -> Moment:
        self._told = step
        records = [record for _, record in sorted(self._waiting.pop(step).items())]
        merged = self._merge.step(records, self.info.world_size)
        _, _, magnitudes, sums = self._merge.counters(records)
        run = dict(self._logged.pop(step, {}))
        for late in [other for other in self._logged if other < step]:  # of steps that are not there, or were told already
            del self._logged[late]
        for name in [*FIRST, *LARGEST]:
            values = [value for _, record in records if (value := record.run_value(name)) is not None]
            if values:
                run.setdefault(name, values[0] if name in FIRST else max(values))
        own = {"gradient_norm": merged.gradient_norm, "clip_factor": merged.clip_factor}
        run |= {name: value for name, value in own.items() if value is not None}
        groups = {name: {"gradient_norm": norm} for name, norm in merged.group_gradient_norms.items()}
        columns, first = records[0]
        for name, rate, there in zip(columns.groups, first.groups[0].tolist(), first.groups_present[0].tolist(), strict=True):
            if there:
                groups.setdefault(name, {})["learning_rate"] = rate
        return Moment(step, merged.time, run, groups, merged, magnitudes, sums)
