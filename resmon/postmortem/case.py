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
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from resmon.detectors import DETECTORS
from resmon.diff.runs import Run, Series, blocks_of, run_of
from resmon.errors import FlightError
from resmon.flight import findings as findings_file
from resmon.flight import layout
from resmon.flight.endings import of_attempt
from resmon.flight.frames import MAGNITUDE_NAMES, Flight, load
from resmon.flight.journal import Lines
from resmon.flight.reader import Follower, typed
from resmon.records import Bools, Checkpoint, Columns, Finding, Floats, Incident, Ints, ResidualSite, RunEnd, StepRecord

DENSE = 384  # full steps up to the trouble that are looked at one by one
CELLS = 600_000  # rows of steps and blocks of which a run's past is sampled
POINTS = 1_200  # of a curve
COLUMNS, CLOSE = 180, 96  # of a heat map: of the whole run, and of the steps up to the trouble
LARGE = 400  # blocks from which on a heat map has half as many columns
FREE = "memory_free"

Progress = Callable[[str], None]


class Curve(NamedTuple):
    """A value over the run: of each stretch of steps its lowest, its mean and its highest."""

    step: Floats
    low: Floats
    mean: Floats
    high: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A block statistic over stretches of steps, [blocks, columns]: NaN where not known, infinite where it was not finite."""

    first: Ints
    last: Ints
    values: Floats

    @property
    def width(self) -> int:
        return len(self.first)


@dataclass(frozen=True, slots=True, eq=False)
class Magnitudes:
    """Shares of a block's sampled |y| per bucket, [MAGNITUDE_COLUMNS], before the trouble and at it."""

    block: str
    before: Floats
    after: Floats
    before_steps: tuple[int, int]
    after_steps: tuple[int, int]


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
    names = tuple(f"{site.model}:{site.name}" if site.model else site.name for site in sites)
    say("reading the blocks")
    window = _window(flight, run, names, trouble)
    whole, close = _grids(flight, run, names, window)
    say("reading the histograms")
    magnitudes = _magnitudes(flight, names, window, incidents, found)
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
        clock=_clock(flight),
        trouble=trouble,
        window=window,
        ratio=(whole["branch_skip_ratio"], close["branch_skip_ratio"]),
        gradient=(whole["gradient_norm"], close["gradient_norm"]),
        magnitudes=magnitudes,
        curves=_curves(flight, run),
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
            events += _detect(path)
        if events:
            notes.append("no agent wrote findings down; those here are what the detectors say of the steps that are left in full")
    newest = {event.id: event for event in events}
    return tuple(sorted(newest.values(), key=lambda finding: (finding.opened_step, finding.id))), notes


def _detect(rank: Path) -> list[Finding]:
    try:
        follower = Follower(rank)
    except FlightError:  # its info is damaged; what the rows say is in the frames
        return []
    detectors = [make() for make in DETECTORS]
    columns, events, last = Columns(), [], None
    while items := follower.poll():
        for item in items:
            if isinstance(item, Columns):
                columns = item
            elif isinstance(item, StepRecord):
                last = item
                events += [event for detector in detectors for event in detector.step(item, columns.sites)]
            else:
                events += [event for detector in detectors for event in detector.scalars(item)]
    follower.close()
    if last is not None:
        events += [event for detector in detectors for event in detector.end(last.step, last.time)]
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


# -- heat maps ------------------------------------------------------------------------------------------------------------


def _grids(flight: Flight, run: Run, names: tuple[str, ...], window: Window) -> tuple[dict[str, Grid], dict[str, Grid]]:
    statistics = ("branch_skip_ratio", "gradient_norm")
    shrink = 2 if len(names) > LARGE else 1
    close_steps = window.steps[-CLOSE // shrink :]
    nothing = np.full((len(window.steps), len(names)), np.nan)
    rows = {name: window.blocks.get(name, nothing)[-len(close_steps) :].T if len(close_steps) else nothing.T for name in statistics}
    close = {name: Grid(close_steps, close_steps, rows[name]) for name in statistics}
    # The whole run: a sample of what is there in full, and bins for what is not.
    bins, used = _block_bins(flight, run, names)
    sampled = run.steps[~_within(run.steps, used)]
    most = max(COLUMNS, CELLS // max(1, len(names)))
    if len(sampled) > most:
        sampled = sampled[np.unique(np.linspace(0, len(sampled) - 1, most).astype(np.int64))]
    series = blocks_of(flight, sampled) if len(sampled) and names else {}
    begin = min([*sampled[:1].tolist(), *used[:1, 0].tolist()], default=0)
    end = max([*sampled[-1:].tolist(), *used[-1:, 1].tolist()], default=-1)
    count = max(0, min(COLUMNS // shrink, end - begin + 1))
    edges = np.linspace(begin, end + 1, count + 1).astype(np.int64)
    whole = {}
    for statistic in statistics:
        values = np.full((len(names), count), np.nan)
        for i, name in enumerate(names):
            if count:
                values[i] = _column_means(edges, series.get(name, {}).get(statistic), bins.get((name, statistic)), statistic)
        whole[statistic] = Grid(edges[:-1], edges[1:] - 1, values)
    return whole, close


class _Bins(NamedTuple):
    first: Ints
    last: Ints
    sums: Floats
    counts: Floats
    nonfinite: Bools


def _column_means(edges: Ints, series: Series | None, bins: _Bins | None, statistic: str) -> Floats:
    """Per column the mean, of gradients the root of the mean square; infinite where anything in it was not finite."""
    squared = statistic == "gradient_norm"
    count = len(edges) - 1
    sums, counts, broken = np.zeros(count), np.zeros(count), np.zeros(count, bool)
    if series is not None and len(series.step):
        column = np.clip(np.searchsorted(edges, series.step, "right") - 1, 0, count - 1)
        finite = np.isfinite(series.values)
        values = series.values**2 if squared else series.values
        sums += np.bincount(column[finite], values[finite], count)
        counts += np.bincount(column[finite], minlength=count)
        broken |= np.bincount(column[~finite], minlength=count) > 0
    if bins is not None:
        # A bin may be wider than a column; then it stands in all of those that it reaches into.
        begin, end = (np.clip(np.searchsorted(edges, at, "right") - 1, 0, count - 1) for at in (bins.first, bins.last))
        bin_ = np.repeat(np.arange(len(begin)), end - begin + 1)
        column = begin[bin_] + np.arange(len(bin_)) - np.repeat(np.r_[0, np.cumsum(end - begin + 1)[:-1]], end - begin + 1)
        sums += np.bincount(column, bins.sums[bin_], count)
        counts += np.bincount(column, bins.counts[bin_], count)
        broken |= np.bincount(column[bins.nonfinite[bin_]], minlength=count) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / np.where(counts > 0, counts, np.nan)
        return np.where(broken, np.inf, np.sqrt(mean) if squared else mean)


def _within(steps: Ints, spans: Ints) -> Bools:
    """Which steps lie in one of the spans, [n, 2], which rise and do not overlap."""
    if not len(spans):
        return np.zeros(len(steps), np.bool_)
    place = np.searchsorted(spans[:, 0], steps, "right") - 1
    inside: Bools = (place >= 0) & (steps <= spans[np.maximum(place, 0), 1])
    return inside


def _thinned(first: Ints, last: Ints, steps: Ints, full: Ints) -> Bools:
    """Which bins are needed: not all of their steps are there in full."""
    there = np.searchsorted(full, last, "right") - np.searchsorted(full, first, "left")
    needed: Bools = there < steps
    return needed


def _column(frame: Any, name: str) -> Floats:
    array = pa.array(frame[name])
    return array.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _block_bins(flight: Flight, run: Run, names: tuple[str, ...]) -> tuple[dict[tuple[str, str], _Bins], Ints]:
    """What bins say of each block and statistic where full rows are gone, and the spans of these bins."""
    runs = flight.bins("run")
    first, last, steps = (_column(runs, name).astype(np.int64) for name in ("first_step", "last_step", "steps"))
    needed = _thinned(first, last, steps, run.steps)
    spans = np.unique(np.stack([first[needed], last[needed]], axis=1), axis=0) if needed.any() else np.empty((0, 2), np.int64)
    if not len(spans) or not names:
        return {}, spans
    frame = flight.bins("blocks")
    frame = frame[np.isin(_column(frame, "first_step").astype(np.int64), spans[:, 0])]
    several = len({site.model for site in flight.sites}) > 1
    labels = (frame["model"] + ":" + frame["block"]) if several else frame["block"]
    label = np.asarray(labels.to_numpy(dtype=object))
    first, last = (_column(frame, name).astype(np.int64) for name in ("first_step", "last_step"))
    nonfinite = (_column(frame, "nonfinite_forward_sum") + _column(frame, "nonfinite_backward_sum")) > 0
    whole = len(flight.info["ranks"]) >= (flight.info["world_size"] or 1)
    made: dict[tuple[str, str], _Bins] = {}
    columns = {"branch_skip_ratio": "branch_skip_ratio"} | ({"gradient_norm": "gradient_square"} if whole else {})
    ranks = max(1, len(set(frame["rank"].tolist())))
    for statistic, column in columns.items():
        total, number = _column(frame, f"{column}_sum"), _column(frame, f"{column}_count")
        if statistic == "gradient_norm":  # shares of ranks add up
            number = number / ranks
        for name in names:
            here = label == name
            if here.any():
                made[name, statistic] = _Bins(first[here], last[here], total[here], number[here], nonfinite[here])
    return made, spans


# -- histograms -----------------------------------------------------------------------------------------------------------

SHOWN = 4  # blocks whose histograms are drawn
BEFORE, AFTER = 64, 8  # steps of each


def _magnitudes(
    flight: Flight,
    names: tuple[str, ...],
    window: Window,
    incidents: tuple[Incident, ...],
    found: tuple[Finding, ...],
) -> tuple[Magnitudes, ...]:
    """Of the blocks that incidents and findings name, then of the first, the middle and the last."""
    steps = window.steps
    if len(steps) < 4 or not names:
        return ()
    named = [*(each.block for each in incidents), *(each.block for each in found)]
    wanted = list(dict.fromkeys([*(block for block in named if block in names), names[-1], names[0], names[len(names) // 2]]))[
        :SHOWN
    ]
    after = steps[-min(AFTER, len(steps) // 2) :]
    before = steps[: -len(after)][: len(steps) // 2][-BEFORE:]
    frame = flight.histograms(int(before[0]), int(after[-1]))
    several = len({site.model for site in flight.sites}) > 1
    label = np.asarray(((frame["model"] + ":" + frame["block"]) if several else frame["block"]).to_numpy(dtype=object))
    step = frame["step"].to_numpy(np.int64)
    made = []
    for name in sorted(wanted, key=names.index):
        shares = []
        for part in (before, after):
            rows = frame[(label == name) & (step >= part[0]) & (step <= part[-1])]
            counts = np.array([float(rows[column].sum()) if len(rows) else 0.0 for column in MAGNITUDE_NAMES])
            shares.append(counts / counts.sum() if counts.sum() else np.full(len(counts), np.nan))
        if np.isfinite(shares[1]).any() or np.isfinite(shares[0]).any():
            spans = [(int(part[0]), int(part[-1])) for part in (before, after)]
            made.append(Magnitudes(name, shares[0], shares[1], spans[0], spans[1]))
    return tuple(made)


# -- curves ---------------------------------------------------------------------------------------------------------------


def _curves(flight: Flight, run: Run) -> dict[str, Curve]:
    """Of every column and score of the run; of several ranks' bins the lowest rank's."""
    bins = flight.bins("run")
    logged = flight.bins("scalars")
    low_rank = min(flight.info["ranks"], default=0)
    bins, logged = (frame[frame["rank"] == low_rank] for frame in (bins, logged))
    first, last, steps = (_column(bins, name).astype(np.int64) for name in ("first_step", "last_step", "steps"))
    needed = _thinned(first, last, steps, run.steps)
    spans = np.stack([first[needed], last[needed]], axis=1)
    curves = {}
    for name, series in {**run.columns, **run.scores}.items():
        keep = ~_within(series.step, spans)
        step, value = series.step[keep].astype(float), np.where(np.isfinite(series.values), series.values, np.nan)[keep]
        parts = [(step, value, value, value)]
        source = {"gradient_norm": "gradient_square"}.get(name, name)
        if name in run.scores:
            rows = logged[(logged["name"] == name) & np.isin(logged["first_step"].to_numpy(np.int64), spans[:, 0])]
            parts.append(_bin_curve(rows, "value"))
        elif f"{source}_sum" in bins.columns:
            part = _bin_curve(bins[needed], source)
            several = len(flight.info["ranks"]) > 1 and source == "gradient_square"  # shares of one rank are not the norm
            parts.append(tuple(x[:0] if several else np.sqrt(x) if source != name and i else x for i, x in enumerate(part)))  # type: ignore[arg-type]
        step, low, mean, high = (np.concatenate([part[i] for part in parts]) for i in range(4))
        order = np.argsort(step, kind="stable")
        if len(order):
            curves[name] = _shortened(Curve(step[order], low[order], mean[order], high[order]))
    return curves


def _bin_curve(frame: Any, name: str) -> tuple[Floats, Floats, Floats, Floats]:
    middle = (_column(frame, "first_step") + _column(frame, "last_step")) / 2
    number = _column(frame, f"{name}_count")
    there = number > 0
    mean = _column(frame, f"{name}_sum")[there] / number[there]
    return middle[there], _column(frame, f"{name}_min")[there], mean, _column(frame, f"{name}_max")[there]


def _shortened(curve: Curve) -> Curve:
    """At most POINTS points, of stretches of equally many points."""
    if len(curve.step) <= POINTS:
        return curve
    begins = np.linspace(0, len(curve.step), POINTS + 1).astype(np.int64)[:-1]
    counts = np.diff(np.r_[begins, len(curve.step)])
    finite = np.isfinite(curve.mean)
    numbers = np.add.reduceat(finite.astype(float), begins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(finite, curve.mean, 0.0), begins) / np.where(numbers > 0, numbers, np.nan)
    step = np.add.reduceat(curve.step, begins) / counts
    return Curve(step, np.fmin.reduceat(curve.low, begins), mean, np.fmax.reduceat(curve.high, begins))


def _clock(flight: Flight) -> Series:
    frame = flight.steps()
    time = pa.array(frame["time"])
    there = time.is_valid().to_numpy(zero_copy_only=False)
    nanoseconds = time.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    step, value = frame["step"].to_numpy(np.int64)[there], nanoseconds[there] / 1e9
    bins = flight.bins("run")
    first, at = _column(bins, "last_step"), pa.array(bins["last_time"]).cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e9
    step, value = np.concatenate([step, first.astype(np.int64)]), np.concatenate([value, at])
    step, places = np.unique(step, return_index=True)
    keep = np.unique(np.linspace(0, max(0, len(step) - 1), 4 * POINTS).astype(np.int64)) if len(step) else np.empty(0, np.int64)
    return Series(step[keep], value[places][keep])


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
