"""What an exporter is given: one moment of everything that the agent follows, as plain values and arrays.

The agent makes a view, exporters render it; neither knows more of the other than this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resmon.records import Finding, Floats, Ints, Outcome, ResidualSite, RunInfo, StepRecord
from resmon.statistics import Column


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive blocks of a model that share their series, under a name that no block has."""

    model: str
    name: str
    blocks: int


Row = ResidualSite | Stage


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """The blocks of one run, merged over the ranks of this machine; by stage where their series would be too many."""

    rows: tuple[Row, ...]
    gauges: Mapping[str, Column]  # by the metric's name without its prefix resmon_block_
    nonfinite_steps: Ints  # cumulative [R]
    magnitude_buckets: Ints  # cumulative [R, MAGNITUDE_COLUMNS]
    magnitude_sum: Floats  # cumulative [R]


@dataclass(frozen=True, slots=True, eq=False)
class RankView:
    """One rank's newest record; None before its first step."""

    rank: int
    record: StepRecord | None
    groups: tuple[str, ...] = ()  # the names of the record's parameter groups


@dataclass(frozen=True, slots=True, eq=False)
class RunView:
    """One attempt of one run. `run` is the label's value, which the agent keeps unique among the runs that it exports."""

    run: str
    info: RunInfo
    outcome: Outcome | None  # None while it is under way
    ranks: tuple[RankView, ...]
    blocks: BlockTable | None  # None before the first step, and where max_series has no room for any block
    watched: Mapping[str, int]  # key of a model -> its blocks
    folded: Mapping[str, int]  # key of a model -> those of them that have no series of their own
    max_series: int  # what the run may export
    gradient_norm: float | None
    group_gradient_norms: Mapping[str, float]  # by parameter group
    clip_factor: float | None
    scores: Mapping[str, float]  # as logged, newest of each name
    loss_max: float | None
    findings: tuple[tuple[Finding, bool], ...]  # with whether it is open


@dataclass(frozen=True, slots=True, eq=False)
class AgentView:
    """Everything, at one moment."""

    version: str
    runs: tuple[RunView, ...]
    runs_total: Mapping[Outcome, int]
    runs_active: int
    skipped_rows: int
    errors: int
    collect_seconds: float  # of the scrape before this one
