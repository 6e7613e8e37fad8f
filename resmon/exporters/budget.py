"""The series budget: however deep a model is, a run exports at most `max_series` series.

The rules, for who reads a dashboard:

- The run's own series (scores, ranks, parameter groups, findings) come first and are never dropped. What they leave is for blocks.
- Where all blocks fit, each has its series.
- Where they do not, blocks are folded by stage (stages.py), long stages into equal ranges: `block="h.0..h.15"` is all blocks from
  h.0 to h.15 in the order in which they run, and `block="layer2.0..layer2.0"` a stage of one. A quarter of the blocks' room is for
  stages; in the rest the worst blocks (worst.py) have series under their own names besides.
- A stage always holds all of its blocks, also those that are named beside it, so that nothing in it jumps when a block is named,
  and no counter goes back. A sum over `block` would count those twice: block=~".*[.][.].*" is the stages, which hold every block
  once, and block!~".*[.][.].*" the blocks that are named.
- Counters and histograms of a stage are sums over its blocks; root mean squares, ratios and the like come from the sums over its
  blocks; gradient norms are the largest of its blocks', as shared parameters make their sum meaningless; `_max` is the largest,
  depth the least.
- Where there is no room for a stage of each model, no block is exported, and the agent says so. The flight has them all, always.

Room is counted by what a run *can* export, every metric of the catalogue for each label value that it has, and by the most that it
has been. So what is folded does not change with the metrics that come and go, and once folded a run stays so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from resmon.catalogue import BLOCK, CATALOGUE, EXPORTED_MAGNITUDE_EXPONENTS, Metric
from resmon.exporters.names import distinct
from resmon.exporters.ranks import MergedStep, Sites
from resmon.exporters.stages import Piece, cut, peers
from resmon.exporters.view import BlockTable, Row, Stage
from resmon.exporters.worst import Worst
from resmon.records import DURATION_EDGES, INCIDENT_KINDS, PHASES, Ints
from resmon.statistics import Column

MAX_SERIES = 10_000

STAGES_SHARE = 4  # one part in so many of the blocks' room is for stages

Block = tuple[str, str]  # model, name
Fit = Literal["whole", "folded", "none"]

_HISTOGRAM = {
    "resmon_step_duration_seconds": len(DURATION_EDGES),
    "resmon_block_activation_magnitude": len(EXPORTED_MAGNITUDE_EXPONENTS),
}


def _series(metric: Metric) -> int:
    """Series of one label set: for a histogram its buckets, +Inf, sum and count."""
    return _HISTOGRAM[metric.name] + 3 if metric.kind == "histogram" else 1


BLOCK_SERIES = sum(_series(metric) for metric in CATALOGUE if metric.labels == BLOCK)


@lru_cache(maxsize=64)
def own_series(models: int, ranks: int, scores: int, groups: int, findings: int, targets: int = 0) -> int:
    """The most series that a run can have besides its blocks'."""
    values = {
        "run": 1,
        "model": models,
        "rank": ranks,
        "score": scores,
        "group": groups,
        "phase": len(PHASES) + 1,
        "target": targets,
        "kind": len(INCIDENT_KINDS),
        "outcome": 1,
    }
    total = 0
    for metric in CATALOGUE:
        if "run" not in metric.labels or metric.labels == BLOCK:
            continue
        if metric.name == "resmon_run_info":
            total += 1
        elif "finding" in metric.labels:
            total += findings
        else:
            total += _series(metric) * int(np.prod([values[label] for label in metric.labels]))
    return total


class Budget:
    """What one run may export; remembers how its blocks are folded."""

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self.max_series = max_series
        self.fit: Fit = "whole"
        self._own = 0
        self._models: Mapping[str, str] = {}
        self._sites: Sites = ()
        self._worst: Worst | None = None
        self._pieces: list[Piece] = []
        self._rows: tuple[Row, ...] = ()  # all sites and then the stages, no two under one label
        self._shown: tuple[Ints, tuple[Row, ...]] | None = None  # the blocks with series of their own, and what is exported

    @property
    def room(self) -> int:
        """How many blocks' series have room."""
        return max(0, self.max_series - self._own) // BLOCK_SERIES

    @property
    def needed(self) -> int:
        """The least max_series with which every block has its series."""
        return self._own + BLOCK_SERIES * len(self._sites)

    def claim(self, models: Mapping[str, str], *, ranks: int, scores: int, groups: int, findings: int, targets: int = 0) -> None:
        """Note what the run itself exports. The most that it has been stands."""
        self._models = models
        self._own = max(self._own, own_series(len(models), ranks, scores, groups, findings, targets))

    def step(self, merged: MergedStep, sites: Sites, found: AbstractSet[Block]) -> None:
        """Take in a step of a run with `sites`; `found` are the blocks that open findings name."""
        self._arrange(sites)
        if self._worst is not None:
            merged = merged.over(sites)
            self._worst.step(merged.time, merged.gauges, merged.nonfinite_steps)
            self._choose(self._worst, found)

    def fold(self, table: BlockTable, sites: Sites, merged: MergedStep | None, found: AbstractSet[Block]) -> BlockTable | None:
        """What of a table with a row for each of `sites` is exported; None where there is room for nothing."""
        self._arrange(sites)
        if self._worst is None:
            return table if self.fit == "whole" else None
        self._choose(self._worst, found)
        if self._shown is None:
            blocks = np.flatnonzero(self._worst.named)
            self._shown = blocks, (*(self._rows[i] for i in blocks), *self._rows[len(sites) :])
        blocks, rows = self._shown
        order = np.concatenate([np.array(piece, np.int64) for piece in self._pieces])
        begins = np.cumsum([0, *map(len, self._pieces[:-1])])

        def with_stages(of_blocks: np.ndarray[Any, Any], of_stages: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.concatenate((of_blocks[blocks], of_stages))

        gauges: dict[str, Column] = {}
        folded = merged.over(sites).sums.take(order).folded(begins).statistics() if merged else {}
        for name, (values, present) in table.gauges.items():
            if name in folded:
                stage = folded[name]
            else:
                farthest = np.fmin if name == "depth" else np.fmax
                extreme = farthest.reduceat(np.where(present, values, np.nan)[order], begins)
                stage = Column(extreme, np.logical_or.reduceat(present[order], begins))
            gauges[name] = Column(with_stages(values, stage.values), with_stages(present, stage.present))
        counters = (table.nonfinite_steps, table.magnitude_buckets, table.magnitude_sum)
        return BlockTable(rows, gauges, *(with_stages(each, np.add.reduceat(each[order], begins)) for each in counters))

    def folded(self) -> dict[str, int]:
        """By model, how many blocks have no series of their own."""
        if self.fit == "whole":
            return {}
        named = set() if self._shown is None or self.fit == "none" else set(self._shown[0].tolist())
        return Counter(site.model for i, site in enumerate(self._sites) if i not in named)

    def _arrange(self, sites: Sites) -> None:
        """Decide how these blocks fit; what has been decided stays as long as it fits."""
        if sites is not self._sites:
            if self._worst is not None:
                places = {_key(site): i for i, site in enumerate(self._sites)}
                self._worst = self._worst.over(np.array([places.get(_key(site), -1) for site in sites], np.int64), peers(sites))
            self._sites, self._pieces = sites, []
        if self._pieces and len(self._pieces) <= self.room:
            return
        self._shown = None
        if len(sites) <= self.room:
            self.fit, self._worst = "whole", None
        elif self.room < (models := len({site.model for site in sites})):
            self.fit, self._worst, self._pieces = "none", None, []
        else:
            self.fit = "folded"
            self._pieces = cut(sites, max(models, self.room // STAGES_SHARE))
            self._worst = self._worst or Worst(peers(sites))
            # A name says which blocks a stage holds, all from the first to the last. So blocks that appear in between make its
            # counters larger, never smaller.
            ends = [(sites[piece[0]], sites[piece[-1]], len(piece)) for piece in self._pieces]
            stages = [Stage(first.model, f"{first.name}..{last.name}", blocks) for first, last, blocks in ends]
            self._rows = distinct((*sites, *stages), self._models)

    def _choose(self, worst: Worst, found: AbstractSet[Block]) -> None:
        before = worst.named.copy()
        is_found = np.array([bool(found) and _key(site) in found for site in self._sites], bool)
        worst.choose(self.room - len(self._pieces), is_found)
        if not np.array_equal(before, worst.named):
            self._shown = None


def _key(site: Row) -> Block:
    return site.model, site.name
