"""What a post-mortem rests on, read from a flight of any length in bounded memory.

What is there in full is read in full only where it decides: the steps up to the trouble, DENSE of them. Of the rest of the run a
sample of the full rows stands for the past, and bins where full rows were thinned away; a bin counts as long as not all of its
steps are there in full. Findings come from the agent's file; where no agent ran, the detectors say here what they would have said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from resmon.detectors import Bank
from resmon.diff.runs import Run, Series, blocks_of, run_of
from resmon.errors import FlightError
from resmon.flight import findings as findings_file
from resmon.flight import layout
from resmon.flight.endings import of_attempt
from resmon.flight.frames import Flight, load
from resmon.flight.journal import Lines
from resmon.flight.reader import Follower, typed
from resmon.plots.curves import Curve
from resmon.postmortem.curves import clock, curves
from resmon.postmortem.grids import CELLS, Grid, grids
from resmon.postmortem.magnitudes import Magnitudes, magnitudes
from resmon.postmortem.thinned import Thinned
from resmon.records import Checkpoint, Columns, Finding, Floats, Incident, Ints, ResidualSite, RunEnd, StepRecord, place

DENSE = 384  # full steps up to the trouble that are looked at one by one

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The steps up to the trouble, one by one. A value that was not finite is infinite here, one that is not there NaN."""

    steps: Ints
    run: Mapping[str, Floats]
    blocks: Mapping[str, Floats]  # of each statistic [steps, blocks]

    def of_block(self, statistic: str, block: int) -> Floats:
        return self.blocks[statistic][:, block]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One attempt of a run, as the report sees it."""

    run: Run
    info: Mapping[str, Any]
    outcome: str
    ends: Mapping[int, RunEnd]
    incidents: tuple[Incident, ...]
    findings: tuple[Finding, ...]
    checkpoints: tuple[Checkpoint, ...]
    blocks: tuple[str, ...]  # in depth order
    sites: tuple[ResidualSite, ...]
    clock: Series  # Unix seconds of steps
    trouble: int | None  # the step at which it broke; None where nothing did, or before there was one
    window: Window
    ratio: tuple[Grid, Grid]  # of the whole run, and of the steps up to the trouble
    gradient: tuple[Grid, Grid]
    magnitudes: tuple[Magnitudes, ...]
    curves: Mapping[str, Curve]
    gaps: Mapping[str, tuple[Ints, Floats, Floats]]  # score: steps, training and validation
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def healthy(self) -> bool:
        broken = any(each.kind != "interrupted" for each in self.incidents)
        return self.trouble is None and not broken and self.outcome in ("finished", "running", "interrupted")

    @property
    def last_step(self) -> int | None:
        return int(self.run.steps[-1]) if len(self.run.steps) else None

    @property
    def broken(self) -> Incident | None:
        """The incident that came first, an interrupt by hand last."""
        return min(self.incidents, key=lambda each: (each.kind == "interrupted", each.time), default=None)

    def time_of(self, step: int) -> float | None:
        """When a step was over, by the clock of the training machine."""
        if not len(self.clock.step):
            return None
        return float(np.interp(step, self.clock.step, self.clock.values))


def read(folder: Path, say: Progress = lambda _: None) -> Case:
    """The case of an attempt. Raises FlightError where nothing can be read, FlightVersionError where a newer resmon wrote it."""
    say("reading the flight")
    flight = load(folder)
    run = run_of(flight)
    info = flight.info
    ranks = {rank: path for rank, path in layout.ranks(flight.folder).items() if rank in info["ranks"]}
    incidents = tuple(each for each in of_attempt(flight.folder) if each.rank in ranks)
    notes = [f"{len(run.damage):,} damaged places were skipped, the first: {run.damage[0]}"] if run.damage else []
    found, note = _findings(flight.folder, ranks, say)
    notes += note
    if not len(run.steps):
        notes.append("not a single whole step was recorded")
    if len(info["ranks"]) < (info["world_size"] or 1):
        notes.append(f"{len(info['ranks'])} of {info['world_size']} ranks are here; what is summed over ranks lacks the others")
    trouble = _trouble(run, flight.outcome, incidents, found)
    sites = run.sites
    names = tuple(site.place for site in sites)
    say("reading the blocks")
    window = _window(flight, run, names, trouble)
    frame = flight.steps()
    recorded = frame["step"].to_numpy(np.int64)[frame["ranks"].to_numpy(np.int64) > 0]
    thinned = Thinned(flight, recorded)
    whole, close = grids(flight, run, thinned, names, window.steps, window.blocks)
    say("reading the histograms")
    labels = flight.info["models"] if any(site.model for site in sites) else {}
    told: list[Incident | Finding] = [*incidents, *found]
    named = [place(labels.get(each.model, ""), each.block) for each in told]
    before_and_after = magnitudes(flight, names, window.steps, named)
    say("reading the run's curves")
    return Case(
        run=run,
        info=info,
        outcome=flight.outcome,
        ends=flight.ends,
        incidents=incidents,
        findings=found,
        checkpoints=_checkpoints(ranks),
        blocks=names,
        sites=sites,
        clock=clock(frame["step"].to_numpy(np.int64), pa.array(frame["time"]), thinned),
        trouble=trouble,
        window=window,
        ratio=(whole["branch_skip_ratio"], close["branch_skip_ratio"]),
        gradient=(whole["gradient_norm"], close["gradient_norm"]),
        magnitudes=before_and_after,
        curves=curves(flight, run, thinned),
        gaps=_gaps(flight),
        notes=tuple(notes),
    )


def _trouble(run: Run, outcome: str, incidents: tuple[Incident, ...], found: tuple[Finding, ...]) -> int | None:
    """Of what broke the first; of what was coming to that the first only if it had been there for a long time."""
    pages = [finding for finding in found if finding.severity == "page"]
    broken = [each.step for each in incidents if each.kind != "interrupted" and each.step is not None]
    broken += [finding.opened_step for finding in pages if finding.kind.startswith("nonfinite")]
    coming = [finding.opened_step for finding in pages if not broken or finding.opened_step < min(broken) - DENSE // 2]
    if broken or coming:
        return min(broken + coming)
    return int(run.steps[-1]) if len(run.steps) and outcome not in ("finished", "running", "interrupted") else None


def _findings(folder: Path, ranks: Mapping[int, Path], say: Progress) -> tuple[tuple[Finding, ...], list[str]]:
    events, _ = findings_file.read(folder)
    notes = []
    if not events:
        say("asking the detectors")
        for path in ranks.values():
            events += _detect(path, say)
        if events:
            notes.append("no agent wrote findings down; those here are what the detectors say of the steps that are left in full")
    newest = {event.id: event for event in events}
    return tuple(sorted(newest.values(), key=lambda finding: (finding.opened_step, finding.id))), notes


def _detect(rank: Path, say: Progress) -> list[Finding]:
    try:
        follower = Follower(rank)
    except FlightError:  # its info is damaged; what the rows say is in the frames
        return []
    bank = Bank(follower.info.detectors)
    columns, events, last = Columns(), [], None
    while items := follower.poll():
        for item in items:
            if isinstance(item, Columns):
                columns = item
            elif isinstance(item, StepRecord):
                last = item
                events += bank.step(item, columns.sites)
            else:
                events += bank.scalars(item)
        if last is not None:
            say(f"asking the detectors, up to step {last.step:,}")
    follower.close()
    if last is not None:
        events += bank.end(last.step, last.time)
    return events


def _checkpoints(ranks: Mapping[int, Path]) -> tuple[Checkpoint, ...]:
    found: list[Checkpoint] = []
    for path in ranks.values():
        found += Lines(path / layout.CHECKPOINTS, partial(typed, Checkpoint), "a checkpoint").poll(ended=True)
    return tuple(sorted(dict.fromkeys(found), key=lambda each: (-1 if each.step is None else each.step, each.time)))


# -- the steps up to the trouble ------------------------------------------------------------------------------------------


def _window(flight: Flight, run: Run, names: tuple[str, ...], trouble: int | None) -> Window:
    steps = run.steps if trouble is None else run.steps[run.steps <= trouble]
    dense = steps[-min(DENSE, max(64, CELLS // max(1, len(names)))) :]
    values = {name: _on(series, dense) for name, series in {**run.columns, **run.scores}.items()}
    read_ = blocks_of(flight, dense) if len(dense) and names else {}
    statistics = dict.fromkeys(statistic for block in read_.values() for statistic in block)
    blocks = {
        statistic: np.stack([_on(read_.get(name, {}).get(statistic), dense) for name in names], axis=1) for statistic in statistics
    }
    return Window(dense, values, blocks)


def _on(series: Series | None, steps: Ints) -> Floats:
    """A series at these steps: NaN where it is not there, infinite where it is no finite number."""
    values = np.full(len(steps), np.nan)
    if series is not None:
        there = series.at(steps)
        values[np.searchsorted(steps, there.step)] = np.where(np.isfinite(there.values), there.values, np.inf)
    return values


def _gaps(flight: Flight) -> dict[str, tuple[Ints, Floats, Floats]]:
    frame = flight.gaps()
    return {
        str(score): (
            rows["step"].to_numpy(np.int64),
            rows["training"].to_numpy(np.float64),
            rows["validation"].to_numpy(np.float64),
        )
        for score, rows in frame.groupby("score", sort=True)
    }
