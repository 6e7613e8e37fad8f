"""Where the streams of two kinds of runs part first: the step and the block.

Levels are logarithms to the base 2 of a block's root mean squares and gradient norm, so that a difference is a factor. Where a kind
has several runs the difference of the means is measured by the spread between runs of one kind, as in effects.py: Hedges' g, and
Student's t with the pooled spread of the steps around, at a level that Bonferroni's correction divides among all blocks and
statistics. With one run of each there is no such spread; then a difference counts from a factor of LEAST_FACTOR and CLEAR times
what the levels waver from step to step within the runs, and what is given is a factor and no effect size. Either way it has to last
for LASTING of the steps that are looked at. Within a step data flow forwards: of the blocks that part at the same step, the first
in order of execution is where it began, and what blocks put out comes before what gradients say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resmon.diff.effects import SIGNIFICANCE
from resmon.diff.runs import Series
from resmon.records import Floats, Ints

STATISTICS = ("branch_rms", "output_rms", "gradient_norm")  # in this order
DENSE, MOST = 64, 256  # steps that are looked at: so many first ones, so many in all
LASTING = 5
AROUND = 4  # steps on both sides whose spread is pooled
LEAST_FACTOR = 1.05
CLEAR = 4.0
FOLLOWERS = 8  # blocks that are listed behind the first

Blocks = Mapping[str, Mapping[str, Series]]


@dataclass(frozen=True, slots=True)
class Parting:
    """A block's statistic from which A and B lie apart for good."""

    step: int
    block: str
    statistic: str
    a: float  # geometric means at that step
    b: float
    size: float | None  # Hedges' g there; None with one run of each

    @property
    def factor(self) -> float:
        return self.b / self.a if self.a else math.inf


@dataclass(frozen=True, slots=True)
class Divergence:
    """The blocks in the order in which they part, each once, and up to where one run of each is equal to the last bit."""

    partings: tuple[Parting, ...]
    equal_until: int | None  # the last of the first steps at which all blocks of one run of each have the same values
    runs: tuple[int, int]
    steps: int  # looked at
    blocks: int

    @property
    def first(self) -> Parting | None:
        return self.partings[0] if self.partings else None


def steps_to_look_at(steps: Ints) -> Ints:
    """All of the first, then ever fewer."""
    if len(steps) <= MOST:
        return steps
    rest = np.geomspace(DENSE, len(steps) - 1, MOST - DENSE).astype(np.int64)
    chosen: Ints = steps[np.unique(np.r_[np.arange(DENSE), rest])]
    return chosen


def diverge(a: Sequence[Blocks], b: Sequence[Blocks], steps: Ints) -> Divergence | None:
    """Of the runs' blocks at these steps, blocks in order of execution and by B's names; None where nothing can be compared."""
    names = [name for name in b[0] if all(name in run for run in (*a, *b))] if a and b else []
    if not names or not len(steps):
        return None
    of_a, of_b = (np.stack([_levels(run, names, steps) for run in side]) for side in (a, b))  # [runs, steps, blocks, statistics]
    single = len(a) == len(b) == 1
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = of_b.mean(axis=0) - of_a.mean(axis=0)
        if single:
            scale = np.fmin(_wavering(of_a[0]), _wavering(of_b[0]))  # of what went wild nothing can be told from
            beyond = (np.abs(apart) >= math.log2(LEAST_FACTOR)) & (np.abs(apart) >= CLEAR * scale)
        else:
            scale = _spread(of_a, of_b)
            beyond = np.abs(apart) > _critical(len(a), len(b), len(names)) * scale
    partings: list[Parting] = []
    for at, block, statistic in _first(np.sign(apart) * beyond):
        levels = (of_a[:, at, block, statistic].mean(), of_b[:, at, block, statistic].mean())
        size = None if single else _hedges(apart[at, block, statistic], scale[at, block, statistic], len(a) + len(b) - 2)
        low, high = (float(2.0**level) for level in levels)
        partings.append(Parting(int(steps[at]), names[block], STATISTICS[statistic], low, high, size))
    return Divergence(
        tuple(partings[: 1 + FOLLOWERS]),
        _equal_until(of_a[0], of_b[0], steps) if single else None,
        (len(a), len(b)),
        len(steps),
        len(names),
    )


def _levels(run: Blocks, names: Sequence[str], steps: Ints) -> Floats:
    """Logarithms of [steps, blocks, statistics]; infinite where the number is 0 or not finite, NaN where there is none."""
    levels = np.full((len(steps), len(names), len(STATISTICS)), np.nan)
    for i, name in enumerate(names):
        for k, statistic in enumerate(STATISTICS):
            if (series := run[name].get(statistic)) is not None:
                there = np.isin(series.step, steps)
                with np.errstate(invalid="ignore", divide="ignore"):
                    logarithms = np.log2(series.values[there])
                levels[np.searchsorted(steps, series.step[there]), i, k] = np.nan_to_num(
                    logarithms, nan=np.inf, posinf=np.inf, neginf=-np.inf
                )
    return levels


def _wavering(levels: Floats) -> Floats:
    """How far a level moves from step to step, [blocks, statistics]: robust, as one jump is what is looked for."""
    if len(levels) < 3:
        return np.zeros(levels.shape[1:])
    with np.errstate(invalid="ignore"):
        moves = np.abs(np.diff(levels, axis=0))
    filled = np.where(np.isfinite(moves), moves, 0.0)
    return np.asarray(1.4826 * np.median(filled, axis=0) / math.sqrt(2))


def _spread(a: Floats, b: Floats) -> Floats:
    """The pooled standard deviation between runs of one kind, [steps, blocks, statistics], of the steps around each."""
    with np.errstate(invalid="ignore"):
        squares = sum(((side - side.mean(axis=0)) ** 2).sum(axis=0) for side in (a, b))
    variance = np.asarray(squares) / (len(a) + len(b) - 2)
    finite = np.isfinite(variance)
    window = 2 * AROUND + 1
    padded = np.pad(np.where(finite, variance, 0.0), ((AROUND, AROUND), (0, 0), (0, 0)))
    counts = np.pad(finite.astype(float), ((AROUND, AROUND), (0, 0), (0, 0)))
    sums, numbers = (np.lib.stride_tricks.sliding_window_view(x, window, axis=0).sum(axis=-1) for x in (padded, counts))
    return np.asarray(np.sqrt(sums / np.where(numbers > 0, numbers, np.nan)))


def _critical(a: int, b: int, blocks: int) -> float:
    """How many standard deviations between runs make a difference of means that chance alone does not."""
    from scipy.special import stdtrit

    level = SIGNIFICANCE / (blocks * len(STATISTICS))
    return float(stdtrit(a + b - 2, 1 - level / 2)) * math.sqrt(1 / a + 1 / b)


def _hedges(apart: float, spread: float, freedom: int) -> float | None:
    if not spread > 0 or freedom < 2:
        return None
    unbiased = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float(unbiased * apart / spread)


def _first(beyond: Floats) -> list[tuple[int, int, int]]:
    """Of each block that parts the first lasting step and the statistic, in the order in which they part.

    `beyond` is 1 where B lies above A, -1 where it lies below, else 0 or, where nothing is known, NaN.
    """
    windows = np.lib.stride_tricks.sliding_window_view(beyond, min(LASTING, len(beyond)), axis=0)
    held = (windows == 1).all(axis=-1) | (windows == -1).all(axis=-1)  # at the steps that begin so many
    found: list[tuple[int, int, int]] = []
    for block in range(beyond.shape[1]):
        begins = [(int(np.argmax(held[:, block, k])), k) for k in range(beyond.shape[2]) if held[:, block, k].any()]
        if begins:
            at, statistic = min(begins)
            found.append((at, block, statistic))
    last = len(STATISTICS) - 1  # the gradients flow backwards, and so behind what the blocks give
    return sorted(found, key=lambda part: (part[0], part[2] == last, -part[1] if part[2] == last else part[1]))


def _equal_until(a: Floats, b: Floats, steps: Ints) -> int | None:
    differs = np.flatnonzero(((a != b) & ~(np.isnan(a) & np.isnan(b))).any(axis=(1, 2)))
    count = int(differs[0]) if len(differs) else len(steps)
    return int(steps[count - 1]) if count else None
