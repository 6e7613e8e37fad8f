"""The ranks of one machine, merged into one number per block.

Everything comes from sums (DESIGN.md, sections 3 and 5): root mean squares from squared sums over elements, ratios from the two
sums and not from the ranks' ratios, gradient norms from the sum of the ranks' shares. A rank that has no value for a block takes no
part in that block's sum; where none has one, it is absent. Where a rank's record is missing, a sum of shares is short of the truth
and absent too, unless all ranks hold the same gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resmon.exporters.view import Column
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    MAGNITUDE_COLUMNS,
    RUN_VALUES,
    Bools,
    Floats,
    Ints,
    ResidualSite,
    StepRecord,
    clip_factor,
    coverage,
)

SKIP, BRANCH, OUTPUT, GRADIENT, OUTPUT_GRADIENT = map(
    BLOCK_VALUES.index, ("skip_square", "branch_square", "output_square", "gradient_square", "output_gradient_square")
)
ELEMENTS = BLOCK_COUNTS.index("elements")
RUN_GRADIENT, RUN_STEPPED = map(RUN_VALUES.index, ("gradient_square", "stepped_square"))

# The gauges that a step gives, by their metrics' names without resmon_block_.
GAUGES = ("skip_rms", "branch_rms", "output_rms", "branch_skip_ratio", "gradient_norm", "output_gradient_norm")

Sites = tuple[ResidualSite, ...]


@dataclass(frozen=True, slots=True, eq=False)
class MergedStep:
    """One step of one attempt, over the ranks that were there."""

    step: int
    time: float
    sites: Sites
    gauges: dict[str, Column]
    gradient_norm: float | None
    clip_factor: float | None  # None where no clipping was seen


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

    def step(self, records: Sequence[tuple[Sites, StepRecord]], expected: int = 1) -> MergedStep:
        """The records of one step, one per rank; `expected` ranks hold shares of its gradients, though not all may be watched."""
        sites = self.union([sites for sites, _ in records])
        values = np.zeros((len(records), len(BLOCK_VALUES), len(sites)))
        present = np.zeros(values.shape, bool)
        elements = np.zeros((len(records), len(sites)))
        for rank, (place, (_, record)) in enumerate(zip(self._places, records, strict=True)):
            where: Ints | slice = slice(None) if place is None else place
            values[rank][:, where] = np.where(record.blocks_present, record.blocks, 0.0)
            present[rank][:, where] = record.blocks_present
            elements[rank][where] = record.counts[ELEMENTS]
        squares: Floats = values.sum(axis=0)
        anywhere: Bools = np.logical_or.reduce(present)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            gauges = {}
            for name, value in (("skip_rms", SKIP), ("branch_rms", BRANCH), ("output_rms", OUTPUT)):
                counted = (elements * present[:, value]).sum(axis=0)
                gauges[name] = Column(np.sqrt(squares[value] / counted), anywhere[value] & (counted > 0))
            both = present[:, SKIP] & present[:, BRANCH]
            skip, branch = (np.where(both, values[:, value], 0.0).sum(axis=0) for value in (SKIP, BRANCH))
            gauges["branch_skip_ratio"] = Column(np.sqrt(branch / skip), both.any(axis=0) & (skip != 0))
            covered = coverage(len(records), expected, min(_replicas(record) for _, record in records))
            known = covered is not None
            gauges["gradient_norm"] = Column(np.sqrt(squares[GRADIENT] * (covered or 0.0)), anywhere[GRADIENT] & known)
            everybody = len(records) >= expected
            gauges["output_gradient_norm"] = Column(np.sqrt(squares[OUTPUT_GRADIENT]), anywhere[OUTPUT_GRADIENT] & everybody)
        gradient_square, stepped_square = (_total(records, value) for value in (RUN_GRADIENT, RUN_STEPPED))
        gradient_norm = None if gradient_square is None or covered is None else float(np.sqrt(gradient_square * covered))
        clip = None if gradient_square is None or stepped_square is None else clip_factor(gradient_square, stepped_square)
        newest = max(record.time for _, record in records)
        return MergedStep(records[0][1].step, newest, sites, gauges, gradient_norm, clip)

    def counters(self, records: Sequence[tuple[Sites, StepRecord]]) -> tuple[Sites, Ints, Ints, Floats]:
        """Sites, nonfinite_steps, magnitude_buckets and magnitude_sum over each rank's newest record, whatever its step is.

        Samples add up over ranks. Steps do not: a step that was non-finite on four ranks is one, so the largest count stands.
        """
        sites = self.union([sites for sites, _ in records])
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


def _total(records: Sequence[tuple[Sites, StepRecord]], value: int) -> float | None:
    """The sum of the ranks' shares of a run's value, None where no rank has one."""
    shares = [record.run[value] for _, record in records if record.run_present[value]]
    return float(np.sum(shares)) if shares else None


def _replicas(record: StepRecord) -> float:
    return record.run_value("replicas") or 1.0


def _keys(sites: Sites) -> list[tuple[str, str]]:
    return [(site.model, site.name) for site in sites]
