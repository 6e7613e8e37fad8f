"""The immutable values that travel between rooms.

capture makes `StepRecord`, `ScalarRecord` and, where something breaks, `Incident`; flight writes and reads them; detectors turn
steps and scalars into `Finding`; the agent hands all to the exporters. This module also fixes what can hardly be changed later,
because files carry it: which numbers a record holds and in which order, the edges of the magnitude histogram, the vocabulary of
outcomes, the life cycle of a finding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SiteKind = Literal["identity", "projection", "marked"]

# The outcome of an attempt is the first of these that one of its ranks has. Those that tell a cause come first: when one rank runs
# out of memory the launcher kills the others, and "killed" would hide it.
Outcome = Literal[
    "out_of_memory",
    "nonfinite",
    "shape_mismatch",
    "killed",
    "failed",
    "stalled",
    "interrupted",
    "unknown",
    "finished",
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
INCIDENT_KINDS: tuple[Outcome, ...] = tuple(outcome for outcome in OUTCOMES if outcome not in ("unknown", "finished"))

# A gradient scaler that looks for its scale skips a step, halves the scale and tries again. From the largest scale in use (2^32,
# Megatron-LM's default; torch's is 2^16) down to 1 that is 32 skips; below 1 it would make gradients smaller than they are,
# and torch's GradScaler.update says that something is wrong there.
SEARCH = 32  # skipped steps in a row that are still a search
LEAST_SCALE = 1.0
CALM = 20  # finite steps after which non-finite ones are over

# The magnitude histogram of a site's output, |y|. Bucket i holds (2^(i-1), 2^i], as Prometheus' native histograms of schema 0.
# From float16's smallest normal numbers' neighbourhood to well beyond the largest activations reported in healthy models.
MAGNITUDE_LOW = -20  # exponent of the first bucket's upper edge; it also takes everything smaller but zero
MAGNITUDE_HIGH = 20  # exponent of the last finite bucket's upper edge
MAGNITUDE_EDGES: Floats = np.ldexp(1.0, np.arange(MAGNITUDE_LOW, MAGNITUDE_HIGH + 1))
# Columns: one per edge, then larger than the last edge, then exactly zero, then NaN or infinite.
MAGNITUDE_LARGER = len(MAGNITUDE_EDGES)
MAGNITUDE_ZERO = MAGNITUDE_LARGER + 1
MAGNITUDE_NONFINITE = MAGNITUDE_LARGER + 2
MAGNITUDE_COLUMNS = MAGNITUDE_LARGER + 3

# The histogram of step durations in seconds: upper edges 2^-10 (about 1 ms) to 2^9 (about 8.5 min), then everything longer.
DURATION_EDGES: Floats = np.ldexp(1.0, np.arange(-10, 10))
DURATION_COLUMNS = len(DURATION_EDGES) + 1

# Values of a step that may be absent. Squares are sums of squares, as this rank's share where the name says gradient.
# The gradients are those before clipping where clipping was seen; `stepped_square` is there then too and holds what clipping left
# of them. `loss_scale` is what a gradient scaler multiplied the loss with; the gradients here are without it.
# `unknown_gradients` counts parameters whose gradient's share this rank cannot know: unless it is 0 there is no gradient_square.
# `replicas` is the number of ranks that hold the same gradients, all of them; 1 where they hold parts, or where some do. It is
# absent where the rank cannot tell its gradients at all.
# The seconds are parts of the duration (PHASES); what they leave is everything else that the loop does. `samples` is what the
# models' first tensors have in their first dimension; the sums over inputs are those of sampled elements of a model's first tensor
# of floating-point numbers. Memory is in bytes, at most a quarter of a second old: of the process, and of
# the devices that its models are on, in use, at peak, and what could still be had.
PHASES = ("data", "forward", "backward", "optimizer")
RUN_VALUES = (
    "duration",
    *(f"{phase}_seconds" for phase in PHASES),
    "samples",
    "input_elements",
    "input_sum",
    "input_square",
    "learning_rate",
    "gradient_square",
    "stepped_square",
    "loss_scale",
    "monitor_seconds",
    "unknown_gradients",
    "replicas",
    "memory",
    "memory_peak",
    "memory_free",
    "device_memory",
    "device_memory_peak",
    "device_memory_free",
)
# Values of a step and parameter group of an optimizer.
GROUP_VALUES = ("learning_rate", "gradient_square")

# Values of a step and site, and what makes one of those of several ranks. `product` is the sum of skip times branch, element by
# element; `kept_square` is skip_square over the samples that kept their branch, where a random operation may drop it; `peak` is the
# largest |y|; `fill` is how much of its dtype's range the largest number took, where operands or output have 16 bits;
# `position_ratio` is the median of branch over skip at sampled positions; `dead` is the share of units that feed the branch's last
# layer and no more differ from zero; `activation_bytes` is what autograd keeps of the block in one forward pass, `checkpoint_bytes`
# how much of that a checkpoint of the block would not; `norm_gap` is how far batch norms' running statistics are from the batches,
# `norm_variance` the largest of their running variances, `norm_collapsed` the share of their channels with next to none. Of these
# seven, which are looked at in some steps only, the newest stands in every row.
Merge = Literal["sum", "largest", "smallest", "mean"]
BLOCK_MERGES: Mapping[str, Merge] = {
    "skip_square": "sum",
    "branch_square": "sum",
    "output_square": "sum",
    "gradient_square": "sum",
    "output_gradient_square": "sum",
    "product": "sum",
    "kept_square": "sum",
    "peak": "largest",
    "fill": "largest",
    "position_ratio": "mean",
    "dead": "smallest",
    "activation_bytes": "sum",
    "checkpoint_bytes": "sum",
    "norm_gap": "mean",
    "norm_variance": "largest",
    "norm_collapsed": "mean",
}
BLOCK_VALUES = tuple(BLOCK_MERGES)
# Counts of a step and site: elements of the add's output, non-finite elements of the output and of its gradient; samples, and those
# whose branch was kept, where a random operation may drop it.
BLOCK_COUNTS = ("elements", "nonfinite_forward", "nonfinite_backward", "samples", "kept")


def place(model: str, block: str) -> str:
    """A block by a name that no block of another model has."""
    return f"{model}:{block}" if model and block else block


@dataclass(frozen=True, slots=True)
class ResidualSite:
    """One residual addition y = skip + branch in a model.

    `name` is the value of the label `block`: the path of the module that holds the add. Where that module holds several, the
    branch's last direct child with parameters follows (`h.0.attn`, `h.0.mlp`); names that are still the same get `#2`, `#3`, and a
    module that runs several times in a forward pass gets `@2`, `@3`. `module` is the path itself ("" is the model). `branch` holds
    the paths of the modules with parameters on the way from the skip tensor to the add, `skip` those of the projection (none for an
    identity skip). `shape` is the output's shape in the traced forward pass. `parameters` names the parameters whose gradients make
    the site's gradient norm. `model` is the key of the watched model where several are watched together, "" in `discover`.
    `observed` says how the operands are taken: "hooks" (module inputs and outputs), "mode" (at the very call, inside the module),
    or the reason why they are not. `absent` says which values this rank cannot know and why, as "gradient_norm: the reason".

    `operations` are those on the branch in order of execution, modules by their class and functions by their name, each with the
    shape of the first parameter that it reads: `BatchNorm2d[16]`, `relu`, `Conv2d[32,16,3,3]`. `skip_operations` are those that the
    other operand has gone through, `following` those between the sum and the tensor at which the next block begins.
    """

    name: str
    module: str
    kind: SiteKind
    branch: tuple[str, ...]
    skip: tuple[str, ...]
    shape: tuple[int, ...]
    parameters: tuple[str, ...] = ()
    model: str = ""
    observed: str = "hooks"
    absent: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    skip_operations: tuple[str, ...] = ()
    following: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Its name among those of all models that are watched together."""
        return place(self.model, self.name)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the arrays of the records that follow are of: sites, and parameter groups by their names."""

    sites: tuple[ResidualSite, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class StepRecord:
    """One attempted optimizer step of one rank, S sites and G parameter groups.

    Arrays of values come with an array of the same shape that tells which are present: absence is not NaN.
    The counters are cumulative since the attempt began, so that any single row tells them.
    """

    step: int
    time: float  # Unix seconds at the step boundary
    complete: bool  # False for the row of a step that an exception or the end of the run cut short
    skipped: bool  # a gradient scaler kept an optimizer from stepping
    run: Floats  # [len(RUN_VALUES)]
    run_present: Bools  # [len(RUN_VALUES)]
    groups: Floats  # [len(GROUP_VALUES), G]
    groups_present: Bools  # [len(GROUP_VALUES), G]
    blocks: Floats  # [len(BLOCK_VALUES), S]
    blocks_present: Bools  # [len(BLOCK_VALUES), S]
    counts: Ints  # [len(BLOCK_COUNTS), S]; elements is 0 where the site did not run in this step
    steps_total: int  # cumulative: steps recorded
    skipped_total: int  # cumulative: those that a gradient scaler skipped
    clipped_total: int  # cumulative: those whose gradients clipping made smaller
    errors_total: int  # cumulative: faults inside the monitor that were kept from the training loop
    samples_total: int  # cumulative
    duration_total: float  # cumulative: seconds of all steps
    phase_totals: Floats  # cumulative [len(PHASES)]: seconds
    duration_buckets: Ints  # cumulative [DURATION_COLUMNS]
    nonfinite_steps: Ints  # cumulative [S]: steps with a non-finite element, forward or backward
    magnitude_buckets: Ints  # cumulative [S, MAGNITUDE_COLUMNS]: sampled |y|
    magnitude_sum: Floats  # cumulative [S]: sum of the sampled finite |y|

    @property
    def is_nonfinite(self) -> bool:
        """Whether anything watched was NaN or infinite; gradients of a step that a scaler skips are how it finds its scale."""
        _, forward, backward, *_ = self.counts
        if forward.any() or self.skipped:
            return bool(forward.any())
        norm = self.run_value("gradient_square")
        return bool(backward.any()) or (norm is not None and not math.isfinite(norm))

    def run_value(self, name: str) -> float | None:
        """The run-level value `name`, or None where it is absent."""
        i = RUN_VALUES.index(name)
        return float(self.run[i]) if self.run_present[i] else None


def clip_factor(gradient_square: float, stepped_square: float) -> float:
    """What clipping multiplied the gradients' norm with: 1 where it left them alone, NaN where they are not finite."""
    if gradient_square == stepped_square and math.isfinite(gradient_square):  # a norm of 0 too
        return 1.0
    ratio = stepped_square / gradient_square if 0 < gradient_square < math.inf else math.nan
    return math.sqrt(ratio) if ratio >= 0 else math.nan


def coverage(ranks: int, expected: int, replicas: float) -> float | None:
    """What the summed shares of `ranks` ranks are multiplied with to be those of all `expected`; None where that cannot be known.

    Where all hold the same gradients, one that is watched speaks for those that are not, that came late or that died.
    """
    if ranks >= expected:
        return 1.0
    return expected / ranks if ranks and replicas >= expected else None


def block_coverage(having: Ints, expected: int, replicas: Floats, covered: Floats) -> Floats:
    """The same of single blocks, of which `having` ranks have told a gradient; `covered` is the coverage of all ranks' steps.

    Where all hold the same gradients, those that have come to a block speak for those that have not: with some branches skipped at
    random, or more of them on one rank than on another, that need not be all.
    """
    return np.where((replicas >= expected) & (having > 0), expected / np.maximum(having, 1), covered)


@dataclass(frozen=True, slots=True)
class ScalarRecord:
    """What one call of `Monitor.log` said of one step."""

    step: int
    time: float
    values: dict[str, float]


Severity = Literal["page", "ticket"]
FindingState = Literal["opened", "updated", "closed"]


RUN_ENDED = "the run ended with it"  # why a finding is closed that was never over


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a run that a person should know.

    A finding is *opened* once, *updated* while it lasts (evidence or severity changed) and *closed* when it is over or the run
    ends. Every event is the whole finding in its new state, under the same `id`, so that the newest event of an id is the
    finding and an event that was lost costs nothing but its moment. `id` is made from kind, model, block and opening step, so
    that replaying the same flight gives the same findings.
    """

    id: str
    state: FindingState
    kind: str  # a name from detectors, the value of the label `finding`
    severity: Severity
    model: str
    block: str  # "" where the finding concerns the whole run
    opened_step: int
    opened_time: float
    step: int  # the step of this event
    time: float
    summary: str  # one sentence
    expected: str
    seen: str
    confidence: float  # 0 to 1
    runbook: str  # name of the runbook, runbooks/<name>.md
    evidence: dict[str, Any] = field(default_factory=dict)  # "first" is the sentence that it began with

    @property
    def place(self) -> str:
        """Its block's `ResidualSite.place`."""
        return place(self.model, self.block)

    @classmethod
    def opened(
        cls,
        kind: str,
        severity: Severity,
        step: int,
        time: float,
        first: str,
        more: str = "",
        *,
        expected: str,
        seen: str,
        confidence: float,
        runbook: str,
        evidence: Mapping[str, Any],
        model: str = "",
        block: str = "",
        subject: str = "",
    ) -> Finding:
        """A new one. `first` and `more` make its summary; `subject` tells it from others of its kind at the same step and place."""
        return cls(
            id=finding_id(f"{kind} {subject}".strip(), model, block, step),
            state="opened",
            kind=kind,
            severity=severity,
            model=model,
            block=block,
            opened_step=step,
            opened_time=time,
            step=step,
            time=time,
            summary=f"{first}{more}.",
            expected=expected,
            seen=seen,
            confidence=confidence,
            runbook=runbook,
            evidence={"first": first, **evidence},
        )

    @property
    def lasts(self) -> bool:
        """Whether it is open, or was when the run ended: nothing else has made it over."""
        return self.state != "closed" or self.summary.endswith(f"; closed because {RUN_ENDED}.")

    def closed(self, step: int, time: float, why: str, **evidence: Any) -> Finding:
        """It is over, because of `why`; `evidence` is what more is known by then."""
        evidence = self.evidence | evidence
        summary = f"{evidence['first']}; closed because {why}."
        return replace(self, state="closed", step=step, time=time, summary=summary, evidence=evidence)


def finding_id(kind: str, model: str, block: str, opened_step: int) -> str:
    """The id of a finding: short, safe in a file name or a URL, the same in every replay."""
    return f"{kind}-{opened_step}-{hashlib.sha256(json.dumps([kind, model, block]).encode()).hexdigest()[:12]}"


# How sure a replay is of an origin: the failed step came again bit for bit, with the same non-finite values, or not at all.
Confidence = Literal["bit-exact", "consistent", "not reproduced"]


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that broke in one rank: what, where, since when, and what to do next.

    An incident is written down with what is known at that moment and again, whole, under the same `id`, when more is: its newest
    event is the incident. A rank has at most one of a kind and step. What is not known is empty, or None.
    """

    id: str
    kind: Outcome  # what broke
    time: float
    step: int | None  # under way or, between two steps, the newest that is over
    summary: str  # one sentence: what failed, and where
    rank: int = 0
    model: str = ""  # key of the model
    block: str = ""  # the residual site
    module: str = ""  # path of the module in which it happened
    operation: str = ""  # as torch calls it
    line: str = ""  # of the user's code: "file:number: source"
    origin: str = ""  # of non-finite values: forward, backward, loss, parameters, data or optimizer
    confidence: Confidence | Literal[""] = ""
    since: int | None = None  # the first step at which it was coming, as far as can be told
    checkpoint: str = ""  # the last one from before that
    checkpoint_step: int | None = None
    advice: str = ""  # what to do next, one or two sentences
    runbook: str = ""  # runbooks/<name>.md
    capsule: str = ""  # file in the rank's folder with which the failure can be repeated elsewhere
    evidence: dict[str, Any] = field(default_factory=dict)  # values as JSON has them

    @property
    def place(self) -> str:
        """Its block's `ResidualSite.place`."""
        return place(self.model, self.block)


def incident_id(kind: Outcome, step: int | None) -> str:
    """The id of an incident, unique within its rank: short, safe in a file name or a URL."""
    return kind if step is None else f"{kind}-{step}"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Who wrote a rank's flight, where and from what; written once, before the first row."""

    run: str  # the label value: the name as the user gave it
    attempt: int
    rank: int
    world_size: int
    models: dict[str, str]  # key of the model -> its label value (its class name unless told otherwise)
    started: float  # Unix seconds
    start_step: int
    launch: str  # what the ranks of one launch share
    host: str
    boot_id: str
    pid: int
    resmon: str  # versions
    python: str
    torch: str
    command: tuple[str, ...]
    working_directory: str
    git_commit: str | None = None
    seed: int | None = None
    local_world_size: int | None = None  # how many of the ranks run on this machine, where the launcher says so
    targets: tuple[str, ...] = ()  # what the run is to reach, as resmon.scores.targets prints it
    stall_after: float = 300.0  # seconds without a step from which on it may be called stalled; 0 for never
    # The folder of the control group that its memory counts in, and what the kernel had killed for want of memory when the run
    # began (resmon.memory.kills): in that group, and on the machine.
    memory_group: str | None = None
    group_kills: int | None = None
    machine_kills: int | None = None
    detectors: dict[str, Any] = field(default_factory=dict)  # what was tuned of them (resmon.detectors.options)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that the loop has named; a line of its rank's checkpoints.jsonl."""

    step: int | None  # whose weights it holds: the newest that was over; None before the first was
    time: float
    path: str  # as it was given; a relative one is meant from RunInfo.working_directory


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """The span of OpenTelemetry's that the loop was in from a step on, until another is noted; a line of its rank's spans.jsonl."""

    step: int
    time: float
    trace_id: str  # 32 hexadecimal digits; "" where it was in none
    span_id: str  # 16 of them
    flags: int  # of the trace: 1 where it is sampled


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a rank's attempt ended; its absence, once the process is gone, means killed."""

    outcome: Outcome
    time: float
    step: int | None
    reason: str = ""  # the exception's type and message, or what the reader concluded from


Doing = Literal["data", "forward", "backward", "optimizer", "collective", "compile", "resmon", ""]


@dataclass(frozen=True, slots=True)
class StackDump:
    """Where a rank's training was, when no step had come for some time. What is not known is empty."""

    step: int | None  # the newest that was over
    seconds: float  # since then
    since: float  # likewise when it was first found in this very place
    doing: Doing
    line: str  # of the user's code: "file:number: source"
    model: str  # key of the model whose module was running
    module: str
    block: str
    calls: tuple[str, ...]  # "file:number in function", the innermost last


@dataclass(frozen=True, slots=True)
class Stopped:
    """A rank is recorded no more, because that could not be written; its training goes on."""

    time: float
    step: int | None  # the last that is recorded
    reason: str

    @property
    def summary(self) -> str:
        """A sentence that says so."""
        since = "before the first step" if self.step is None else f"after step {self.step:,}"
        return f"Recording stopped {since}: {self.reason}."
