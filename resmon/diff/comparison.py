"""Two kinds of runs, A and B, compared: one row per quantity, one verdict per group of quantities.

Everything that decides is at equal steps: the steps that all runs have in full. Scores, gradients and blocks are compared by
their level at the end of those, over the last quarter; times and memory over all of them but each run's first step, in which sites
are found and kernels are chosen. Where runs end at different steps a score also has a row `final`, each run's own last values: to
be seen, and no part of a verdict.

Many comparisons find something by chance. The p-values of the few quantities that decide (scores, speed, memory, gradients) are
adjusted by Holm's procedure, group by group: there one false alarm is a wrong verdict. Those of the blocks, hundreds of quantities
that move together, are adjusted by Benjamini and Hochberg's: there the question is which blocks to look at, and a known share of
false ones does no harm. A value that is not finite has no part in any level: it is counted, and a run whose last value is not
finite has no level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from resmon.diff.divergence import Divergence, diverge, steps_to_look_at
from resmon.diff.effects import SIGNIFICANCE, Effect, benjamini_hochberg, effect, holm, noise
from resmon.diff.runs import Run, Series, read_blocks, read_run
from resmon.diff.structure import Structure, compare_structure
from resmon.errors import FlightError
from resmon.records import PHASES, Floats, Ints
from resmon.scores.directions import Direction, direction
from resmon.statistics import STATISTICS

Group = Literal["scores", "speed", "memory", "gradients", "blocks"]
GROUPS: tuple[Group, ...] = get_args(Group)
Statistic = Literal["mean", "median", "harmonic mean", "largest"]

# What is said of a row, the worst first. Of a group it is that of its worst row, but "mixed" where some are worse and some better.
Verdict = Literal[
    "b not finite",
    "mixed",
    "worse",
    "better",
    "changed",
    "a not finite",
    "both not finite",
    "no difference",
    "cannot tell",
    "equal",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
BAD: frozenset[Verdict] = frozenset({"b not finite", "mixed", "worse"})

# The part of the shared steps whose level is compared where the question is where a training has come to.
END = 4


class Quantity(NamedTuple):
    group: Group
    name: str
    statistic: Statistic
    better: Direction
    end: bool  # over the end of the shared steps; else over all but the first


# What resmon measures of a run. A step that waits for a checkpoint should not be the step time, so that is a median; what it costs
# in all is in the throughput, samples over seconds of all steps.
MEASURED = (
    Quantity("speed", "duration", "median", "lower", end=False),
    *(Quantity("speed", f"{phase}_seconds", "median", "lower", end=False) for phase in PHASES),
    Quantity("speed", "samples_per_second", "harmonic mean", "higher", end=False),
    Quantity("memory", "memory_peak", "largest", "lower", end=False),
    Quantity("memory", "device_memory_peak", "largest", "lower", end=False),
    Quantity("gradients", "gradient_norm", "median", "neither", end=True),
)


def _harmonic_mean(values: Floats) -> float:
    with np.errstate(divide="ignore"):
        return float(len(values) / (1 / values).sum())


LEVELS: Mapping[Statistic, Callable[[Floats], float]] = {
    "mean": lambda values: float(values.mean()),
    "median": lambda values: float(np.median(values)),
    "harmonic mean": _harmonic_mean,
    "largest": lambda values: float(values.max()),
}


@dataclass(frozen=True, slots=True)
class Level:
    """What one run says of a quantity."""

    value: float | None  # None where the run ended in values that are not finite
    values: int
    nonfinite: int  # of the steps compared
    noise: float | None  # standard error of the level within the run, where that is all there is and can be known


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of A and B."""

    group: Group
    name: str
    block: str | None
    at: Literal["shared", "final"]
    statistic: Statistic
    better: Direction
    a: tuple[Level, ...]
    b: tuple[Level, ...]
    steps: int  # compared
    first: int | None
    last: int | None
    effect: Effect | None = None
    p_adjusted: float | None = None
    verdict: Verdict = "cannot tell"

    @property
    def mean_a(self) -> float | None:
        return _mean(self.a)

    @property
    def mean_b(self) -> float | None:
        return _mean(self.b)

    @property
    def difference(self) -> float | None:
        if self.mean_a is None or self.mean_b is None:
            return None
        return self.effect.difference if self.effect else self.mean_b - self.mean_a

    @property
    def relative(self) -> float | None:
        """The difference as a part of A's level."""
        return self.difference / abs(self.mean_a) if self.difference is not None and self.mean_a else None

    @property
    def noise(self) -> float | None:
        """Standard error of the difference by the noise within the runs; said where one run of each is all there is."""
        if self.effect is not None or len(self.a) != 1 or len(self.b) != 1:
            return None
        of_a, of_b = self.a[0].noise, self.b[0].noise
        return None if of_a is None or of_b is None else math.hypot(of_a, of_b)

    def order(self) -> tuple[float, ...]:
        """Sorts rows worst first."""
        size = abs(self.effect.size) if self.effect and self.effect.size is not None else 0.0
        by_noise = abs(self.difference or 0.0) / self.noise if self.noise else abs(self.relative or 0.0)
        p = self.p_adjusted if self.p_adjusted is not None else 1.0
        return (self.at == "final", VERDICTS.index(self.verdict), p, -size, -by_noise)


def _mean(levels: Sequence[Level]) -> float | None:
    values = [level.value for level in levels if level.value is not None]
    return float(np.mean(values)) if len(values) == len(levels) else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of it."""

    a: tuple[Run, ...]
    b: tuple[Run, ...]
    steps: Ints  # shared by all runs
    rows: tuple[Row, ...]  # worst first
    verdicts: Mapping[Group, Verdict]
    only_a: tuple[str, ...]  # blocks
    only_b: tuple[str, ...]
    notes: tuple[str, ...]
    structure: Structure | None  # of the first run of each; None where blocks were not asked for
    divergence: Divergence | None  # None where no block can be compared

    def of(self, group: Group) -> list[Row]:
        return [row for row in self.rows if row.group == group]

    @property
    def worse(self) -> bool:
        """Whether B is worse in anything, beyond the spread between runs of one kind."""
        return any(verdict in BAD for verdict in self.verdicts.values())


@dataclass(slots=True)
class _Side:
    name: str
    runs: list[Run] = field(default_factory=list)
    # Runs that repeat another's training to the last bit tell of times and memory once more, and of nothing else.
    repeats: set[Path] = field(default_factory=set)

    def of(self, group: Group) -> list[Run]:
        return [run for run in self.runs if group in ("speed", "memory") or run.folder not in self.repeats]


def compare(
    a: Sequence[Path],
    b: Sequence[Path],
    *,
    lower: Collection[str] = (),
    higher: Collection[str] = (),
    groups: Collection[Group] = GROUPS,
    first: int | None = None,
    last: int | None = None,
) -> Comparison:
    """Compare the attempts in these folders, at steps from `first` to `last`, both included; then all of them are the end.

    Raises FlightError where nothing can be compared.
    """
    notes: list[str] = []
    sides = _Side("A"), _Side("B")
    for side, folders in zip(sides, (a, b), strict=True):
        _read(side, folders, notes)
    both = {run.folder for run in sides[0].runs} & {run.folder for run in sides[1].runs}
    if both:
        raise FlightError(f"{_names(both)} would be compared with itself: it is in A and in B. Name each run on one side only.")
    runs = [run for side in sides for run in side.runs]
    steps = reduce(np.intersect1d, [run.steps for run in runs])
    steps = steps[(steps >= (first if first is not None else -math.inf)) & (steps <= (last if last is not None else math.inf))]
    if not len(steps):
        had = "; ".join(f"{run.name} has {_span(run.steps)}" for run in runs)
        asked = (
            ""
            if first is None and last is None
            else f" from {'the first' if first is None else first} to {'the last' if last is None else last}"
        )
        raise FlightError(
            f"the runs have no step in common{asked}, so nothing can be compared at equal steps: {had}. Leave out the run that "
            "does not overlap, or name an attempt's folder to choose another attempt."
        )
    whole = first is not None or last is not None
    _note_runs(sides, steps, whole, notes)
    rows = [row for row in _run_rows(sides, steps, whole, lower, higher, notes) if row.group in groups]
    only: tuple[list[str], list[str]] = ([], [])
    structure, divergence = None, None
    if "blocks" in groups:
        structure = _structure(sides, notes)
        called = dict(structure.pairs)  # what A's blocks are called in B
        block_rows, only = _block_rows(sides, steps if whole else _end(steps), called, notes)
        rows += block_rows
        first_steps = steps_to_look_at(steps)
        of_a, of_b = _blocks(sides, first_steps, called)
        divergence = diverge(of_a, of_b, first_steps)
    _note_nonfinite(rows, notes)
    rows = [row for group in GROUPS for row in _judged([row for row in rows if row.group == group], group)]
    verdicts = {group: _verdict([row for row in rows if row.group == group and row.at == "shared"]) for group in GROUPS}
    return Comparison(
        a=tuple(sides[0].runs),
        b=tuple(sides[1].runs),
        steps=steps,
        rows=tuple(rows),
        verdicts={group: verdict for group, verdict in verdicts.items() if verdict is not None},
        only_a=tuple(only[0]),
        only_b=tuple(only[1]),
        notes=tuple(notes),
        structure=structure,
        divergence=divergence,
    )


def _read(side: _Side, folders: Sequence[Path], notes: list[str]) -> None:
    """The side's runs; one that cannot be read is left out as long as another is there."""
    failed: FlightError | None = None
    for folder in folders:
        try:
            run = read_run(folder.resolve())
        except FlightError as error:
            failed = error
            notes.append(f"left out of {side.name}: {error}")
            continue
        if not len(run.steps):
            failed = FlightError(f"{run.name} has no whole step yet ({folder}); try again when it has, or leave it out.")
            notes.append(f"left out of {side.name}: {failed}")
            continue
        if any(other.folder == run.folder for other in side.runs):
            notes.append(f"{run.name} was named twice in {side.name}; it counts once")
            continue
        twin = next((other for other in side.runs if run.same_training(other)), None)
        if twin is not None:
            side.repeats.add(run.folder)
            notes.append(
                f"{run.name} has the scores of {twin.name} to the last bit: one seed twice tells nothing of the spread between "
                "seeds, so it counts for times and memory only"
            )
        side.runs.append(run)
    if not side.runs:
        raise failed or FlightError(f"{side.name} names no run. Name one at least; `resmon ls` lists them.")


def _note_runs(sides: tuple[_Side, _Side], steps: Ints, whole: bool, notes: list[str]) -> None:
    runs = [run for side in sides for run in side.runs]
    for run in runs:
        if run.outcome == "running":
            notes.append(f"{run.name} is still running: compared as far as it has come")
        elif run.outcome != "finished":
            notes.append(f"{run.name} did not finish: {run.outcome}")
        if run.attempts > 1:
            notes.append(f"{run.name}: attempt {run.attempt} of {run.attempts}, {_span(run.steps)}; others by their folder")
        if run.gaps:
            notes.append(f"{run.name} lacks {run.gaps:,} of its steps in full (thinned or damaged); those were not compared")
        if run.damage:
            notes.append(f"{run.name}: {len(run.damage)} damaged places were skipped, the first {run.damage[0]}")
    by_end = sorted(runs, key=lambda run: int(run.steps[-1]))
    if by_end[0].steps[-1] < by_end[-1].steps[-1] and not whole:
        ends = ", ".join(f"{run.name} ends at step {run.steps[-1]:,}" for run in (by_end[0], by_end[-1]))
        notes.append(f"{ends}: compared up to {steps[-1]:,}, the last step that all have")
    hosts = [{run.host for run in side.runs} for side in sides]
    if hosts[0] != hosts[1]:
        notes.append(f"A ran on {', '.join(sorted(hosts[0]))}, B on {', '.join(sorted(hosts[1]))}: speed is of the machines too")
    if any(one.same_training(other) for one in sides[0].runs for other in sides[1].runs):
        notes.append("a run of B has the scores of a run of A to the last bit: the same training")


def _note_nonfinite(rows: Sequence[Row], notes: list[str]) -> None:
    blocks: set[str] = set()
    for row in rows:
        counts = [sum(level.nonfinite for level in side) for side in (row.a, row.b)]
        if not any(counts) or row.at == "final":
            continue
        if row.block is not None:
            blocks.add(row.block)
        else:
            notes.append(
                f"{row.name}: {counts[0]:,} values of A and {counts[1]:,} of B are NaN or infinite, at {row.steps:,} steps; they "
                "are in no mean"
            )
    if blocks:
        notes.append(f"{len(blocks):,} blocks have values that are NaN or infinite; they are in no median")


def _run_rows(
    sides: tuple[_Side, _Side], steps: Ints, whole: bool, lower: Collection[str], higher: Collection[str], notes: list[str]
) -> Iterator[Row]:
    runs = [run for side in sides for run in side.runs]
    names = sorted({name for run in runs for name in run.scores}, key=lambda name: (name != "loss", name))
    unknown = sorted({*lower, *higher} - {*names, *(quantity.name for quantity in MEASURED)})
    if unknown:
        there = ", ".join(names) or "nothing"
        raise FlightError(f"no run has a score called {', '.join(map(repr, unknown))}. They logged: {there}.")
    scores = [Quantity("scores", name, "mean", direction(name, lower, higher), end=True) for name in names]
    measured = [
        quantity._replace(better=direction(quantity.name, lower, higher)) if quantity.name in {*lower, *higher} else quantity
        for quantity in MEASURED
    ]
    # At a run's first step sites are found, kernels chosen and memory taken.
    firsts = np.array([run.steps[0] for run in runs])
    within = (steps[0], steps[-1]) if whole else (-math.inf, math.inf)
    for quantity in scores + measured:
        is_score = quantity.group == "scores"
        series = [
            [(run.scores if is_score else run.columns).get(quantity.name) for run in side.of(quantity.group)] for side in sides
        ]
        a, b = ([one for one in of_side if one is not None and len(one.step)] for of_side in series)
        if not a or not b:
            if is_score:
                notes.append(f"{quantity.name} was logged in {'A' if a else 'B'} only")
            continue
        shared = reduce(np.intersect1d, [one.step for one in a + b])
        # What is logged after the last step, as a validation score is, may stand at a step without a row.
        shared = shared[(shared >= within[0]) & (shared <= within[1])]
        compared = np.setdiff1d(shared, firsts) if not quantity.end else shared if whole else _end(shared)
        if len(compared):
            yield _row(quantity, None, a, b, compared)
        elif is_score:
            notes.append(f"{quantity.name} was never logged at a step that all runs share; only the final values can be shown")
        if is_score and not whole and len({int(one.step[-1]) for one in a + b}) > 1:
            yield _final_row(quantity, a, b, len(compared))


_Blocks = list[dict[str, dict[str, Series]]]


def _structure(sides: tuple[_Side, _Side], notes: list[str]) -> Structure:
    for side in sides:
        first = side.runs[0]
        others = [run for run in side.runs[1:] if compare_structure(first.sites, run.sites).differences]
        if others:
            names = ", ".join(run.name for run in others)
            notes.append(f"{side.name} is not of one structure: {names} differ from {first.name}, whose structure was compared")
    return compare_structure(sides[0].runs[0].sites, sides[1].runs[0].sites)


def _blocks(sides: tuple[_Side, _Side], steps: Ints, called: Mapping[str, str]) -> tuple[_Blocks, _Blocks]:
    """Of each run's blocks their series, by the names that they have in B."""
    of_a, of_b = ([read_blocks(run.folder, steps) for run in side.of("blocks")] for side in sides)
    return [{called.get(name, name): block for name, block in run.items()} for run in of_a], of_b


def _block_rows(
    sides: tuple[_Side, _Side], steps: Ints, called: Mapping[str, str], notes: list[str]
) -> tuple[list[Row], tuple[list[str], list[str]]]:
    """The rows of the blocks that A and B both have, and the names of those that one lacks."""
    blocks = _blocks(sides, steps, called)
    known = [list(dict.fromkeys(block for run in of_side for block in run)) for of_side in blocks]
    only = [name for name in known[0] if name not in known[1]], [name for name in known[1] if name not in known[0]]
    if not any(known):
        notes.append("no run has residual blocks at these steps")
    rows = []
    for block in known[0]:
        if block in only[0]:
            continue
        for statistic in STATISTICS:
            quantity = Quantity("blocks", statistic, "median", "neither", end=True)
            a, b = ([run[block][statistic] for run in of_side if statistic in run.get(block, {})] for of_side in blocks)
            if a and b:
                compared = reduce(np.intersect1d, [one.step for one in a + b])
                if len(compared):
                    rows.append(_row(quantity, block, a, b, compared))
    return rows, only


def _row(quantity: Quantity, block: str | None, a: list[Series], b: list[Series], steps: Ints) -> Row:
    return Row(
        group=quantity.group,
        name=quantity.name,
        block=block,
        at="shared",
        statistic=quantity.statistic,
        better=quantity.better,
        a=_levels([one.at(steps).values for one in a], quantity.statistic, len(b)),
        b=_levels([one.at(steps).values for one in b], quantity.statistic, len(a)),
        steps=len(steps),
        first=int(steps[0]),
        last=int(steps[-1]),
    )


def _final_row(quantity: Quantity, a: list[Series], b: list[Series], count: int) -> Row:
    """Each run's own last values, as many as were compared at equal steps, or the last quarter of its own."""
    ends = [[one.values[-(count or len(_end(one.step))) :] for one in side] for side in (a, b)]
    return Row(
        group=quantity.group,
        name=quantity.name,
        block=None,
        at="final",
        statistic=quantity.statistic,
        better=quantity.better,
        a=_levels(ends[0], quantity.statistic, len(b)),
        b=_levels(ends[1], quantity.statistic, len(a)),
        steps=0,
        first=None,
        last=None,
    )


def _levels(runs: Sequence[Floats], statistic: Statistic, others: int) -> tuple[Level, ...]:
    """Of each run's values. The noise within a run is asked for only where no other run tells of the spread."""
    return tuple(_level(values, statistic, noisy=len(runs) == others == 1) for values in runs)


def _level(values: Floats, statistic: Statistic, noisy: bool) -> Level:
    finite = values[np.isfinite(values)]
    level = LEVELS[statistic]
    ended = len(finite) > 0 and bool(np.isfinite(values[-1]))
    with np.errstate(over="ignore"):
        value = level(finite) if ended else math.nan
    return Level(
        value=value if math.isfinite(value) else None,  # the sum of values that are finite may not be
        values=len(values),
        nonfinite=len(values) - len(finite),
        noise=noise(finite, level) if noisy and ended and statistic != "largest" else None,
    )


def _end(steps: Ints) -> Ints:
    return steps[len(steps) - math.ceil(len(steps) / END) :]


def _judged(rows: list[Row], group: Group) -> list[Row]:
    """The rows with effects and verdicts, worst first."""
    rows = [replace(row, effect=_effect(row)) for row in rows]
    tested = [i for i, row in enumerate(rows) if row.effect is not None and row.at == "shared"]
    p = np.array([effect.p for i in tested if (effect := rows[i].effect) is not None])
    adjusted = (benjamini_hochberg if group == "blocks" else holm)(p)
    for i, value in zip(tested, adjusted.tolist(), strict=True):
        rows[i] = replace(rows[i], p_adjusted=value)
    return sorted((replace(row, verdict=_row_verdict(row)) for row in rows), key=Row.order)


def _effect(row: Row) -> Effect | None:
    a, b = ([level.value for level in side if level.value is not None] for side in (row.a, row.b))
    if len(a) < len(row.a) or len(b) < len(row.b):
        return None  # what is left of runs that blew up would be the healthy ones
    return effect(np.array(a), np.array(b))


def _row_verdict(row: Row) -> Verdict:
    broken_a, broken_b = (sum(level.value is None for level in side) / len(side) for side in (row.a, row.b))
    if broken_a or broken_b:
        return "b not finite" if broken_b > broken_a else "a not finite" if broken_a > broken_b else "both not finite"
    if row.difference == 0:
        return "equal" if len({level.value for level in row.a + row.b}) == 1 else "no difference"
    if row.p_adjusted is None:
        return "cannot tell"
    if row.p_adjusted >= SIGNIFICANCE:
        return "no difference"
    if row.better == "neither":
        return "changed"
    return "worse" if ((row.difference or 0.0) > 0) == (row.better == "lower") else "better"


def _verdict(rows: Sequence[Row]) -> Verdict | None:
    verdicts = {row.verdict for row in rows}
    if not verdicts:
        return None
    if {"worse", "better"} <= verdicts and "b not finite" not in verdicts:
        return "mixed"
    return min(verdicts, key=VERDICTS.index)


def _span(steps: Ints) -> str:
    return f"steps {steps[0]:,} to {steps[-1]:,}" if len(steps) else "no whole step"


def _names(folders: Collection[Path]) -> str:
    return ", ".join(sorted(folder.parent.name for folder in folders))
