"""The ranks of one machine, merged into one number per block.

Everything comes from sums: root mean squares from squared sums over elements, ratios from the two
sums and not from the ranks' ratios, gradient norms from the sum of the ranks' shares. A rank that has no value for a block takes no
part in that block's sum; where none has one, it is absent. Where a rank's record is missing, a sum of shares is short of the truth
and absent too, unless all ranks hold the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    GROUP_VALUES,
    MAGNITUDE_COLUMNS,
    RUN_VALUES,
    Bools,
    Columns,
    Floats,
    Ints,
    ResidualSite,
    StepRecord,
    block_coverage,
    clip_factor,
    coverage,
)
from resmon.statistics import Column, merge, statistics

GRADIENT, OUTPUT_GRADIENT = map(BLOCK_VALUES.index, ("gradient_square", "output_gradient_square"))
DEAD = BLOCK_VALUES.index("dead")
ELEMENTS = BLOCK_COUNTS.index("elements")
RUN_GRADIENT, RUN_STEPPED = map(RUN_VALUES.index, ("gradient_square", "stepped_square"))
GROUP_GRADIENT = GROUP_VALUES.index("gradient_square")

Sites = tuple[ResidualSite, ...]
Table = TypeVar("Table", Floats, Bools, Ints)


@dataclass(frozen=True, slots=True, eq=False)
class BlockSums:
    """What the statistics of S blocks are made of, so that blocks can be merged further."""

    values: Floats  # [len(BLOCK_VALUES), S]
    present: Bools  # [len(BLOCK_VALUES), S]
    elements: Ints  # [len(BLOCK_VALUES), S]: those that each value is of
    counts: Ints  # [len(BLOCK_COUNTS), S]

    def statistics(self) -> dict[str, Column]:
        return statistics(self.values, self.present, self.elements, self.counts)

    def take(self, places: Ints) -> BlockSums:
        """Those of the blocks at some places, in that order; -1 is a block of which nothing is there."""
        return BlockSums(
            _take(self.values, places), _take(self.present, places), _take(self.elements, places), _take(self.counts, places)
        )

    def folded(self, begins: Ints) -> BlockSums:
        """One from each run of consecutive blocks, the runs beginning at `begins`.

        Sums and counts add up, with two exceptions. Gradients' squares do not, as blocks may share parameters: the largest stands
        for all. And where ranks see the same units, so that the least share of dead ones is true, blocks have units of their own:
        theirs is the mean.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            values, present = merge(self.values.T, self.present.T, begins)
            there = np.where(self.present, self.values, 0.0)
            for square in (GRADIENT, OUTPUT_GRADIENT):
                values[:, square] = np.maximum.reduceat(there[square], begins)  # NaN where one is NaN: flagged, not averaged
            values[:, DEAD] = np.add.reduceat(there[DEAD], begins)
            values[:, DEAD] /= np.maximum(np.add.reduceat(self.present[DEAD], begins, dtype=np.int64), 1)
        elements, counts = (np.add.reduceat(table, begins, axis=1) for table in (self.elements, self.counts))
        return BlockSums(values.T, present.T, elements, counts)


@dataclass(frozen=True, slots=True, eq=False)
class MergedStep:
    """One step of one attempt, over the ranks that were there."""

    step: int
    time: float
    sites: Sites
    sums: BlockSums
    gauges: dict[str, Column]  # the blocks' statistics, by name
    nonfinite_steps: Ints  # cumulative [S]
    gradient_norm: float | None
    group_gradient_norms: dict[str, float]  # by parameter group
    clip_factor: float | None  # None where no clipping was seen

    def over(self, sites: Sites) -> MergedStep:
        """The same over other sites: for a moment, when a block appears, those of the newest record are more."""
        if sites is self.sites:
            return self
        places = {(site.model, site.name): i for i, site in enumerate(self.sites)}
        found = np.array([places.get((site.model, site.name), -1) for site in sites], np.int64)
        sums = self.sums.take(found)
        return replace(
            self, sites=sites, sums=sums, gauges=sums.statistics(), nonfinite_steps=_take(self.nonfinite_steps[None], found)[0]
        )


class Ranks:
    """Merges records; remembers how the ranks' sites lie in their union, which seldom changes."""

    def __init__(self) -> None:
        self._parts: tuple[Sites, ...] = ()
        self._sites: Sites = ()
        self._places: tuple[Ints | None, ...] = ()  # of each rank's sites in the union; None where they are the union

    def union(self, parts: Sequence[Sites]) -> Sites:
        """All sites of some ranks, in order of first appearance (ranks of a pipeline hold different blocks)."""
        if len(parts) != len(self._parts) or any(new is not old for new, old in zip(parts, self._parts, strict=True)):
            self._arrange(tuple(parts))
        return self._sites

    def step(self, records: Sequence[tuple[Columns, StepRecord]], expected: int = 1) -> MergedStep:
        """The records of one step, one per rank; `expected` ranks hold shares of its gradients, though not all may be watched."""
        sites = self.union([columns.sites for columns, _ in records])
        values = np.zeros((len(records), len(BLOCK_VALUES), len(sites)))
        present = np.zeros(values.shape, bool)
        counts = np.zeros((len(records), len(BLOCK_COUNTS), len(sites)), np.int64)
        nonfinite = np.zeros(len(sites), np.int64)
        for rank, (place, (_, record)) in enumerate(zip(self._places, records, strict=True)):
            where: Ints | slice = slice(None) if place is None else place
            values[rank][:, where] = record.blocks
            present[rank][:, where] = record.blocks_present
            counts[rank][:, where] = record.counts
            nonfinite[where] = np.maximum(nonfinite[where], record.nonfinite_steps)
        elements = (counts[:, ELEMENTS, None] * present).sum(axis=0)
        expected = max(expected, len(records))  # of a launcher that does not say how many are here, those that came
        having = present[:, GRADIENT].sum(axis=0)
        (values,), (present,) = merge(values, present, np.zeros(1, np.int64))
        told = [replicas for _, record in records if (replicas := record.run_value("replicas")) is not None]
        replicas = min(told, default=1.0)
        covered = coverage(len(told), expected, replicas)
        factors = block_coverage(having, expected, np.array(replicas), np.array(np.nan if covered is None else covered))
        values[GRADIENT] *= np.nan_to_num(factors)
        present[GRADIENT] &= np.isfinite(factors)
        present[OUTPUT_GRADIENT] &= len(told) >= expected
        gradient_square, stepped_square = (_total(records, value) for value in (RUN_GRADIENT, RUN_STEPPED))
        gradient_norm = None if gradient_square is None or covered is None else float(np.sqrt(gradient_square * covered))
        clip = None if gradient_square is None or stepped_square is None else clip_factor(gradient_square, stepped_square)
        sums = BlockSums(values, present, elements, counts.sum(axis=0))
        return MergedStep(
            step=records[0][1].step,
            time=max(record.time for _, record in records),
            sites=sites,
            sums=sums,
            gauges=sums.statistics(),
            nonfinite_steps=nonfinite,
            gradient_norm=gradient_norm,
            group_gradient_norms={} if covered is None else _group_norms(records, covered),
            clip_factor=clip,
        )

    def counters(self, records: Sequence[tuple[Columns, StepRecord]]) -> tuple[Sites, Ints, Ints, Floats]:
        """Sites, nonfinite_steps, magnitude_buckets and magnitude_sum over each rank's newest record, whatever its step is.

        Samples add up over ranks. Steps do not: a step that was non-finite on four ranks is one, so the largest count stands.
        """
        sites = self.union([columns.sites for columns, _ in records])
        nonfinite = np.zeros(len(sites), np.int64)
        buckets = np.zeros((len(sites), MAGNITUDE_COLUMNS), np.int64)
        sums = np.zeros(len(sites))
        for place, (_, record) in zip(self._places, records, strict=True):
            where: Ints | slice = slice(None) if place is None else place
            nonfinite[where] = np.maximum(nonfinite[where], record.nonfinite_steps)
            buckets[where] += record.magnitude_buckets
            sums[where] += record.magnitude_sum
        return sites, nonfinite, buckets, sums

    def _arrange(self, parts: tuple[Sites, ...]) -> None:
        order: dict[tuple[str, str], int] = {}
        sites: list[ResidualSite] = []
        places: list[Ints] = []
        for part in parts:
            for site in part:
                if order.setdefault((site.model, site.name), len(sites)) == len(sites):
                    sites.append(site)
            places.append(np.array([order[site.model, site.name] for site in part], np.int64))
        self._parts = parts
        same = next((part for part in parts if len(part) == len(sites)), None)
        self._sites = same if same is not None and _keys(same) == list(order) else tuple(sites)
        everything = np.arange(len(sites))
        self._places = tuple(None if np.array_equal(place, everything) else place for place in places)


def _group_norms(records: Sequence[tuple[Columns, StepRecord]], covered: float) -> dict[str, float]:
    """The norms of the parameter groups' gradients; groups of one name are one."""
    squares: dict[str, float] = {}
    for columns, record in records:
        there = record.groups_present[GROUP_GRADIENT]
        for name, square, is_there in zip(columns.groups, record.groups[GROUP_GRADIENT].tolist(), there.tolist(), strict=True):
            if is_there:
                squares[name] = squares.get(name, 0.0) + square
    return {name: math.sqrt(square * covered) for name, square in squares.items()}


def _total(records: Sequence[tuple[Columns, StepRecord]], value: int) -> float | None:
    """The sum of the ranks' shares of a run's value, None where no rank has one."""
    shares = [record.run[value] for _, record in records if record.run_present[value]]
    return float(np.sum(shares)) if shares else None


def _take(table: Table, places: Ints) -> Table:
    """Columns of a table; -1 is one of zeros."""
    taken: Table = np.concatenate((table, np.zeros_like(table, shape=(len(table), 1))), axis=1)[:, places]
    return taken


def _keys(sites: Sites) -> list[tuple[str, str]]:
    return [(site.model, site.name) for site in sites]
