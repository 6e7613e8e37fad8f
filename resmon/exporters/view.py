"""What an exporter is given: one moment of everything that the agent follows, as plain values and arrays.

The agent makes a view, exporters render it; neither knows more of the other than this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from resmon.records import (
    Checkpoint,
    Finding,
    Floats,
    Incident,
    Ints,
    Outcome,
    ResidualSite,
    RunEnd,
    RunInfo,
    SpanRecord,
    StepRecord,
)
from resmon.scores.targets import Reached
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
    gauges: Mapping[str, Column]  # by the metric's name without its prefix resmon_block_; what is no metric is not exported
    nonfinite_steps: Ints  # cumulative [R]
    magnitude_buckets: Ints  # cumulative [R, MAGNITUDE_COLUMNS]
    magnitude_sum: Floats  # cumulative [R]


@dataclass(frozen=True, slots=True)
class ProcessView:
    """What the operating system says of a training process; None is what may not be looked at."""

    cpu_seconds: float | None  # cumulative, of all its threads
    threads: float | None
    open_fds: float | None
    read_bytes: float | None  # cumulative, from and to storage
    written_bytes: float | None


@dataclass(frozen=True, slots=True)
class GpuView:
    """What the driver says of a GPU of this machine; None is what it does not tell."""

    gpu: str
    utilization_ratio: float | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    temperature_celsius: float | None
    power_watts: float | None


@dataclass(frozen=True, slots=True, eq=False)
class RankView:
    """One rank's newest record; None before its first step."""

    rank: int
    record: StepRecord | None
    groups: tuple[str, ...] = ()  # the names of the record's parameter groups
    process: ProcessView | None = None  # None where it is gone or cannot be seen
    nonfinite_steps: int = 0  # cumulative


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
    gaps: Mapping[str, float] = field(default_factory=dict)  # validation minus training, newest of each score
    reached: Mapping[str, Reached] = field(default_factory=dict)  # by target; info.targets has all
    checkpoint: Checkpoint | None = None  # the newest
    incidents: tuple[Incident, ...] = ()  # of all its ranks, in the order of time
    is_stalled: bool = False  # a rank lives and does not go on
    started: float = 0.0  # Unix seconds
    ended: float | None = None  # None while it is under way
    unseen: frozenset[str] = frozenset()  # ids of findings that are over, perhaps, and that not every scraper has had yet


@dataclass(frozen=True, slots=True)
class Event:
    """What happened in a run, for those who are told at once."""

    run: str  # the label's value
    info: RunInfo  # of the rank
    what: Finding | Incident | RunEnd
    observed: float  # Unix seconds at which it was read
    span: SpanRecord | None = None  # in which the loop was


@dataclass(frozen=True, slots=True, eq=False)
class AgentView:
    """Everything, at one moment."""

    version: str
    runs: tuple[RunView, ...]
    runs_total: Mapping[Outcome, int]
    runs_exported: Mapping[Outcome, int]  # of these, those that may be shown to scrapers, who have to see the former count first
    runs_active: int
    skipped_rows: int
    errors: int
    collect_seconds: float  # of the scrape before this one
    gpus: tuple[GpuView, ...] = ()
    last_error: float | None = None  # Unix seconds
    otlp_dropped: Mapping[str, int] = field(default_factory=dict)  # by signal; empty where nothing is pushed
    held_seconds: float = 0.0  # that answers have waited, all together
