"""The worst blocks of a run, chosen so that those that are shown by name seldom change.

Worst is, in this order: a block that an open finding names; one that was non-finite within the last minutes; then the distance of
its branch/skip ratio and its gradient norm, whichever is further, from the median of its peers, on a logarithmic scale and in units
of the peers' spread. Distances only rank blocks. Whether one is ill is for the detectors to say.

With room for K names, a named block stays named until it has been outside the worst 2K for `HOLD`, and then only makes place for
one that has been among the worst K for as long. So noise, which puts other blocks at the top at every step, changes nothing. Two do
not wait: a block that is worse by kind (a finding, non-finite; of those, the ones that run first), and one that is `FAR` times as
far out as any but K - 1 have been lately.

Time is that of the records, so that the same flight gives the same names, live or read again; a gap counts as a minute at most
and a clock that goes back as none, so that a clock that jumps does not end all holds at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from resmon.records import Bools, Floats, Ints
from resmon.statistics import Column

HOLD = 300.0  # seconds
FAR = 3.0
LONGEST_GAP = 60.0
# The least spread, in decades: peers that agree within 5 % count as differing by that, so that twins are not far apart.
LEAST_SPREAD = 0.02
SIGNS = ("branch_skip_ratio", "gradient_norm")
ZERO = 1e-30  # smaller ones cannot be told from 0, which must have a logarithm too

FARTHEST = -2 * np.log10(ZERO) / LEAST_SPREAD

_TO_SIGMA = 1.4826  # a median of absolute deviations to the standard deviation, of a normal distribution


class Worst:
    """Ranks the blocks of a run, and remembers who is named."""

    def __init__(self, peers: Ints) -> None:
        count = len(peers)
        self.named: Bools = np.zeros(count, bool)
        self._peers = peers
        self._time: float | None = None  # of the last record
        self._now = 0.0  # seconds of the records' time since the first, jumps left out
        self._distance: Floats = np.zeros(count)
        self._lately: Floats = np.zeros(count)  # the largest distance, halved every HOLD
        self._before: Floats = np.zeros(count)  # the same before this step
        self._nonfinite_steps: Ints = np.zeros(count, np.int64)
        self._nonfinite: Floats = np.full(count, -np.inf)  # when it was last
        self._near: Floats = np.full(count, -np.inf)  # when it was among the worst 2K last
        self._since: Floats = np.full(count, np.inf)  # since when it has been among the worst K; infinite while it is not

    def over(self, places: Ints, peers: Ints) -> Worst:
        """The same over other blocks: each one's place among these, -1 for a new one."""
        other = Worst(peers)
        other._time, other._now = self._time, self._now
        there = places >= 0
        for name, values in vars(other).items():
            if isinstance(values, np.ndarray) and name != "_peers":
                values[there] = getattr(self, name)[places[there]]
        return other

    def step(self, time: float, gauges: Mapping[str, Column], nonfinite_steps: Ints) -> None:
        """Take in a step."""
        passed = 0.0 if self._time is None else min(max(time - self._time, 0.0), LONGEST_GAP)
        self._time, self._now = time, self._now + passed
        self._nonfinite[nonfinite_steps > self._nonfinite_steps] = self._now
        self._nonfinite_steps = nonfinite_steps.copy()
        self._distance = np.fmax.reduce([_distances(gauges[name], self._peers) for name in SIGNS])
        self._before = self._lately * 0.5 ** (passed / HOLD)
        self._lately = np.maximum(self._distance, self._before)

    def choose(self, count: int, found: Bools) -> None:
        """Name `count` of the blocks; `found` are those that open findings name. Asked twice at a step, it says the same."""
        kind = np.where(found, 2, np.where(self._now - self._nonfinite < HOLD, 1, 0))
        order = np.lexsort((np.where(kind > 0, 0.0, -self._distance), -kind))  # those that run first come first among equals
        if not 0 < count < len(order):
            self.named[:] = count > 0
            return
        self._near[order[: 2 * count]] = self._now
        top = np.zeros(len(kind), bool)
        top[order[:count]] = True
        self._since = np.where(top, np.minimum(self._since, self._now), np.inf)

        named = np.flatnonzero(self.named)
        named = named[np.lexsort((self._lately[named], kind[named]))]  # the weakest first
        too_many = max(0, len(named) - count)
        self.named[named[:too_many]] = False
        named = named[too_many:]
        others = order[~self.named[order]]
        free = count - len(named)
        self.named[others[:free]] = True
        others = others[free:]

        far = FAR * max(1.0, np.partition(self._before, -count)[-count])
        for other, it in zip(others, named, strict=False):
            is_far = kind[other] == kind[it] == 0 and self._distance[other] > max(far, self._lately[it])
            if not (kind[other] > kind[it] or is_far):
                break  # those that follow are no worse, or meet stronger ones
            self.named[it], self.named[other] = False, True
        waited = ~self.named[others] & (kind[others] == 0) & (self._now - self._since[others] >= HOLD)
        leaving = self.named[named] & (kind[named] == 0) & (self._now - self._near[named] >= HOLD)
        for other, it in zip(others[waited], named[leaving], strict=False):
            self.named[it], self.named[other] = False, True


def _distances(column: Column, peers: Ints) -> Floats:
    """How far each value is from its peers' median, in units of their spread; 0 where it is absent, as far as can be where NaN."""
    values, present = column
    logs = np.where(present, np.log10(np.clip(values, ZERO, 1 / ZERO)), np.nan)
    away = np.abs(logs - _medians(logs, peers)[peers])
    spread = np.fmax(_TO_SIGMA * _medians(away, peers), LEAST_SPREAD)
    distances = np.where(np.isnan(away), 0.0, away) / spread[peers]
    return np.where(present & np.isnan(values), FARTHEST, distances)


def _medians(values: Floats, peers: Ints) -> Floats:
    """The (lower) median of each group of peers over what is not NaN; NaN where nothing is."""
    order = np.lexsort((values, peers))  # NaN comes last in each group
    sizes = np.bincount(peers)
    begins = np.cumsum(sizes) - sizes
    usable = np.bincount(peers, weights=~np.isnan(values)).astype(np.int64)
    medians: Floats = values[order][begins + np.maximum(usable - 1, 0) // 2]
    return medians
