"""What left its usual range before the trouble, and in which order: the first signs and what followed.

This is hindsight: a quantity departs at the earliest step from which on it stays, up to the trouble, beyond what the BASE
steps before that made usual: further from their median than CLEAR times their spread (the median absolute deviation, scaled to be
comparable with a standard deviation) and by a factor of LEAST at least. Levels are logarithms; a value that is not finite is above
all, one that is 0 below. So a slow drift, as every training has, departs from nothing; neither does a spike that went away.
With fewer than BASE steps before, as where a network leaves its initialisation, the factor is EARLY.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from resmon.postmortem.case import Window
from resmon.quantities import in_units
from resmon.records import Floats

BASE = 48  # steps that make what is usual
LEAST_BASE = 12
CLEAR = 6.0
LEAST, EARLY = 1.5, 8.0
WIDE = 128  # blocks; beyond as many the usual is worked out anew at every second step only, and so on
AT_LEAST = 2  # steps that it lasts, the trouble's own included; a departure at the very last step may be a spike like others

# What is looked at: of the run, its training, its memory and its pace, and of each block.
TRAINING = {"learning_rate": "learning rate", "loss": "loss", "gradient_norm": "gradient norm", "loss_scale": "loss scale"}
MEMORY = {
    "memory": "memory",
    "memory_free": "free memory",
    "device_memory": "device memory",
    "device_memory_free": "free device memory",
}
PACE = {"duration": "step time", "data_seconds": "wait for data"}
OF_RUN = {**TRAINING, **MEMORY, **PACE}
OF_BLOCKS = {
    "branch_skip_ratio": "branch/skip ratio",
    "gradient_norm": "gradient norm",
    "output_rms": "output RMS",
    "output_gradient_norm": "output gradient",
}


@dataclass(frozen=True, slots=True)
class Departure:
    """One quantity that left its usual range and did not come back."""

    step: int
    quantity: str  # as people call it
    statistic: str
    block: str  # "" where it is the run's own
    usual: float
    seen: float  # its median from there to the trouble
    settled: bool = False  # it has long stood still again

    @property
    def factor(self) -> float:
        return self.seen / self.usual if self.usual else math.inf

    @property
    def moved(self) -> str:
        return f"from {in_units(self.statistic, self.usual)} to {in_units(self.statistic, self.seen)}"

    @property
    def what(self) -> str:
        return f"{self.quantity} of {self.block}" if self.block else self.quantity


def leading_up(signs: Sequence[Departure], kinds: Collection[str], trouble: int | None) -> list[Departure]:
    """Those that can have led up to incidents of these kinds at that step.

    Memory and pace say nothing of numbers, nor pace of memory. What had settled at its new level, with nothing following for BASE
    steps, had become usual itself.
    """
    left_out: set[str] = set()
    if "stalled" not in kinds:
        left_out = {*PACE} if {"out_of_memory", "killed"} & set(kinds) else {*PACE, *MEMORY}
    kept = [sign for sign in signs if sign.block or sign.statistic not in left_out]
    if trouble is None:
        return kept
    chain: list[Departure] = []
    follows = trouble
    for sign in reversed(kept):
        if not sign.settled or follows - sign.step <= BASE:
            chain.append(sign)
            follows = sign.step
    return chain[::-1]


def departures(window: Window, blocks: tuple[str, ...]) -> list[Departure]:
    """All of them, in the order of their steps; of one step the run's own first, then blocks in depth order."""
    found: list[tuple[tuple[int, int, int], Departure]] = []
    for rank, (name, quantity) in enumerate(OF_RUN.items()):
        if name in window.run:
            for step, _, usual, seen, settled in _departed(window, window.run[name][:, None]):
                found.append(((step, -1, rank), Departure(step, quantity, name, "", usual, seen, settled)))
    for rank, (name, quantity) in enumerate(OF_BLOCKS.items()):
        if name in window.blocks:
            for step, i, usual, seen, settled in _departed(window, window.blocks[name]):
                found.append(((step, i, rank), Departure(step, quantity, name, blocks[i], usual, seen, settled)))
    return [departure for _, departure in sorted(found, key=lambda item: item[0])]


def _departed(window: Window, values: Floats) -> list[tuple[int, int, float, float, bool]]:
    """Step, column, what was usual, what was seen and whether it settled there, of each column of [steps, columns] that departs."""
    count = len(values)
    if count < LEAST_BASE + AT_LEAST:
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.log2(np.abs(values))
    tops, bottoms = levels.copy(), levels.copy()
    tops[np.isnan(tops)], bottoms[np.isnan(bottoms)] = -np.inf, np.inf
    highest = np.maximum.accumulate(tops[::-1])[::-1]  # from each step to the trouble
    lowest = np.minimum.accumulate(bottoms[::-1])[::-1]
    base, spread = _usual(levels)
    least = np.where(np.arange(count) < BASE, math.log2(EARLY), math.log2(LEAST))
    reach = np.maximum(CLEAR * spread, least[:, None])
    with np.errstate(invalid="ignore"):
        away = (lowest > base + reach) | (highest < base - reach)
    away &= np.isfinite(base) & ~np.isnan(levels)
    away[count - AT_LEAST + 1 :] = False
    found = []
    for i in np.flatnonzero(away.any(axis=0)):
        at = int(np.argmax(away[:, i]))
        rest = values[at:, i]
        rest = rest[~np.isnan(rest)]
        found.append((int(window.steps[at]), int(i), float(2.0 ** base[at, i]), float(np.median(rest)), _settled(levels[at:, i])))
    return found


def _settled(levels: Floats) -> bool:
    """Whether a level has been about the same for more than BASE steps."""
    levels = levels[np.isfinite(levels)]
    return len(levels) > BASE and abs(float(np.median(levels[-BASE // 4 :]) - np.median(levels[:BASE]))) < math.log2(LEAST)


def _median(values: Floats) -> Floats:
    """Of the finite values of each column, NaN where there are fewer than LEAST_BASE; numpy's own is a hundred times as slow."""
    ordered = np.sort(values, axis=0)  # what is NaN comes last
    there = np.isfinite(ordered).sum(axis=0)
    middle = np.maximum(there - 1, 0) // 2
    found: Floats = ordered[middle, np.arange(values.shape[1])]
    return np.where(there >= LEAST_BASE, found, np.nan)


def _usual(levels: Floats) -> tuple[Floats, Floats]:
    """Median and spread of the finite levels of the steps before each; NaN where these are too few."""
    count, width = levels.shape
    base, spread = np.full((count, width), np.nan), np.full((count, width), np.nan)
    finite = np.where(np.isfinite(levels), levels, np.nan)
    with np.errstate(invalid="ignore"):
        stride = 1 + width // WIDE
        for at in range(LEAST_BASE, count, stride):
            part = finite[max(0, at - BASE) : at]
            middle = _median(part)
            base[at : at + stride] = middle
            spread[at : at + stride] = 1.4826 * _median(np.abs(part - middle))
    return base, spread
