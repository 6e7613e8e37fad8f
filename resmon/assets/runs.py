"""Alerts that no detector makes: how runs end, telemetry that is lost, steps that become slow, memory that runs short.

A run that ended has its series for 15 seconds at least, so what asks how it ended looks back over ten minutes, and is silent where
an attempt began after that end: the run was taken up again, and whatever the new attempt comes to is another alert. Ends and
beginnings are told by the clock of the machine on which the run was; a run that is taken up on another machine is silent if that
one's clock is not behind by more than the pause.

`interrupted` is nobody's alert: somebody, or a scheduler, has asked the run to end and knows. `unknown` is a run whose folder was
removed. The numbers that are in here, and in no detector, are in `NUMBERS` with their reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resmon.assets.links import Links
from resmon.assets.machines import STEP_SECONDS
from resmon.assets.wording import PLACE, asked, name
from resmon.flight import stalls
from resmon.records import Outcome, Severity
from resmon.rules import Alert

ENDED = "10m"  # how long an end is told
LOST = "1h"  # how long a run is missed that was under way when its agent was last seen


@dataclass(frozen=True, slots=True)
class Number:
    """A threshold of a rule, and why it is that and stands here."""

    value: float
    reason: str


NUMBERS = {
    "stale_minutes": Number(
        stalls.FIRST / 60,
        "the agent itself calls no run stalled before half an hour without a step where it knows no step time; what is stale for "
        "longer and not called stalled is a flight that is not followed, or a run for which stall_after is 0",
    ),
    "slow_factor": Number(
        2.0,
        "against the median of the run's own half hour before; the mean step time of healthy runs on a shared machine moves by "
        "less than half, and twice as long is twice the bill. It needs an hour of a run's history, which no detector keeps in time",
    ),
    "recent_error_seconds": Number(
        900.0,
        "an agent that meets its error again and again is told for as long as it does, one that is mended for a quarter of an "
        "hour more; the time of the newest error is read and not their count, which may be 1 at the first scrape of all",
    ),
    "main_memory_share": Number(
        0.05,
        "of what the process has and could have: the kernel's killer comes without a word, and page cache that could be had is "
        "counted in, so that what is left is really the last",
    ),
    "device_memory_share": Number(
        0.02,
        "of what tensors take and could take: a training fills its device on purpose; below this the allocator's rounding alone "
        "(2 MiB a block) can make the next longer batch fail",
    ),
}

# The model of a run, for series that have no such label; one row for each run and machine, whatever attempts were seen.
_MODEL = "topk by (job, instance, run) (1, last_over_time(resmon_run_info[5m]))"
_HERE = "(job, instance, run)"


@dataclass(frozen=True, slots=True)
class RunAlert:
    """One alert. `page` is its runbook's name, `labels` are those that its series have."""

    alert: str
    page: str
    severity: Severity
    title: str
    says: str
    expr: str
    lasts: str = ""
    keep: str = ""
    labels: tuple[str, ...] = ("run", "model")
    outcome: Outcome | Literal[""] = ""


def _ended(outcome: Outcome) -> str:
    """Runs that ended so, and of which no attempt has begun since."""
    return (
        f'max by (run, model) (max_over_time(resmon_run_outcome{{outcome="{outcome}"}}[{ENDED}]))\n'
        "unless on (run) (\n"
        f"  max by (run) (max_over_time(resmon_run_start_timestamp_seconds[{ENDED}]))\n"
        f'  > max by (run) (max_over_time(resmon_run_end_timestamp_seconds{{outcome="{outcome}"}}[{ENDED}]))\n'
        ")"
    )


def _with_model(expr: str) -> str:
    """A query over series of a run and machine, by run and model; the largest where machines differ."""
    return f"max by (run, model) (\n  ({expr})\n  * on {_HERE} group_left (model) {_MODEL}\n)"


_STEPS = asked("max(max_over_time(resmon_steps_total{run=%q}[10m]))", "It made {} steps.", 'printf "%.0f"')
_CHECKPOINT = asked(
    "max(max_over_time(resmon_checkpoint_step{run=%q}[10m]))", "Its newest named checkpoint is of step {}.", 'printf "%.0f"'
)

_OUTCOMES: tuple[tuple[Outcome, Severity, str, str], ...] = (
    ("out_of_memory", "page", "Out of memory", "The training process asked for memory that it did not get, and has ended."),
    ("nonfinite", "page", "Ended with non-finite values", "The run has ended because values became NaN or infinite."),
    (
        "shape_mismatch",
        "ticket",
        "Shapes that do not fit",
        "The run has ended in its model's forward pass, as shapes do not fit: the model is to be mended before it can start.",
    ),
    ("killed", "page", "Killed run", "The training process is gone and has left no word."),
    ("failed", "page", "Failed run", "An exception has ended the run."),
)

_STALLED = f"{_with_model('max by (job, instance, run) (resmon_run_stalled)')} > 0\nor\n({_ended('stalled')})"

_GONE = (
    f"max by (job, instance, run, model) (last_over_time(resmon_run_info[{LOST}]))\n"
    f"unless on {_HERE} resmon_run_info\n"
    f"unless on {_HERE} (\n"  # it was seen to end
    f"  max by {_HERE} (max_over_time(resmon_run_end_timestamp_seconds[{LOST}]))\n"
    f"  >= max by {_HERE} (max_over_time(resmon_run_start_timestamp_seconds[{LOST}]))\n"
    ")\n"
    f"unless on {_HERE} (\n"  # it was taken up elsewhere
    f"  max by {_HERE} (max_over_time(resmon_last_step_timestamp_seconds[{LOST}]))\n"
    "  < on (run) group_left () max by (run) (resmon_run_start_timestamp_seconds)\n"
    ")"
)

_LAST = f"max by {_HERE} (resmon_last_step_timestamp_seconds)"
_STALE_FOR = f"{NUMBERS['stale_minutes'].value:.0f}m"
_STALE = _with_model(
    f"(time() - ({_LAST} == {_LAST.removesuffix(')')} offset {_STALE_FOR})))\n"
    f"  unless on {_HERE} resmon_run_end_timestamp_seconds\n"
    f"  unless on {_HERE} (resmon_run_stalled > 0)"
)


def _share(of: str) -> str:
    name, share = f"resmon_{of}memory", NUMBERS["device_memory_share" if of else "main_memory_share"].value
    return (
        f"label_replace(\n    min by {_HERE} ({name}_free_bytes / ({name}_free_bytes + {name}_bytes)) < {share:g},\n"
        f'    "memory", "{"device" if of else "main"}", "", ""\n  )'
    )


_MEMORY = f"min by (run, model, memory) (\n  ({_share('')} or {_share('device_')})\n  * on {_HERE} group_left (model) {_MODEL}\n)"

_SLOW = (
    "max by (run, model) (\n  (\n"
    f"    ({STEP_SECONDS} > {NUMBERS['slow_factor'].value:g} * quantile_over_time(0.5, {STEP_SECONDS}[30m] offset 15m))\n"
    f"    and on (run) ({STEP_SECONDS} offset 45m)\n  )\n"
    "  * on (run) group_left (model) topk by (run) (1, resmon_run_info)\n)"
)

RUN_ALERTS: tuple[RunAlert, ...] = (
    *(
        RunAlert(
            name("run", outcome),
            outcome.replace("_", "-"),
            severity,
            title,
            says + _STEPS + _CHECKPOINT,
            _ended(outcome),
            outcome=outcome,
        )
        for outcome, severity, title, says in _OUTCOMES
    ),
    RunAlert(
        name("run", "stalled"),
        "stalled",
        "page",
        "Stalled run",
        "The training process makes no step any more, or hung until it was ended." + _STEPS + _CHECKPOINT,
        _STALLED,
        outcome="stalled",
    ),
    RunAlert(
        name("agent_gone"),
        "agent-gone",
        "page",
        "Agent gone while a run was under way",
        "Prometheus has no more series of a run that had not ended: its agent or the whole machine is gone, or cannot be reached. "
        "The run may go on and is recorded; nothing of it would be told.",
        _GONE,
        lasts="1m",
        labels=("run", "model", "job", "instance"),
    ),
    RunAlert(
        name("run_stale"),
        "stale-run",
        "ticket",
        "Stale run",
        "The run is under way and its newest step is {{ $value | humanizeDuration }} old, though nobody calls it stalled: its "
        "flight is not followed any more, or stalls are not looked for in this run.",
        _STALE,
        lasts="5m",
    ),
    RunAlert(
        name("monitor_errors"),
        "monitor-errors",
        "ticket",
        "Errors inside the monitor",
        "resmon has met errors of its own in this attempt, {{ $value | humanize }} so far, and kept them from the training loop. "
        "The blocks may not be observed any more, and then no detector sees them.",
        # The count of an attempt, which begins at 0 with it: whatever it is, it is an error of this attempt.
        _with_model("sum by (job, instance, run) (max_over_time(resmon_monitor_errors_total[5m]))") + " > 0",
        keep="15m",
    ),
    RunAlert(
        name("agent_errors"),
        "agent-errors",
        "ticket",
        "Errors of an agent",
        "The agent goes on but has met an error of its own: a flight that it cannot follow, a detector that failed, a file that it "
        "cannot write. Its log says which."
        + asked("max(resmon_agent_errors_total{instance=%q})", "It has counted {} so far.", 'printf "%.0f"', ("instance",)),
        "time() - max by (job, instance) (max_over_time(resmon_agent_last_error_timestamp_seconds[10m]))\n"
        f"  < {NUMBERS['recent_error_seconds'].value:g}",
        labels=("job", "instance"),
    ),
    RunAlert(
        name("series_budget"),
        "series-budget",
        "ticket",
        "More blocks than series",
        "{{ $value | humanize }} blocks have no series of their own: what is exported of them is that of their stage."
        + asked("max(resmon_run_series_limit{run=%q})", "The run may export {} series.", 'printf "%.0f"'),
        "max by (run, model) (resmon_run_folded_blocks) > 0",
        lasts="5m",
        keep="10m",
    ),
    RunAlert(
        name("slow_steps"),
        "slow-steps",
        "ticket",
        "Slow steps",
        "A step takes {{ $value | humanizeDuration }} in the mean of five minutes, more than "
        f"{NUMBERS['slow_factor'].value:g} times what was usual half an hour before."
        + asked(f"max(quantile_over_time(0.5, {STEP_SECONDS}{{run=%q}}[30m] offset 15m))", "Usual was {}.", "humanizeDuration"),
        _SLOW,
        lasts="10m",
        keep="15m",
    ),
    RunAlert(
        name("memory_headroom"),
        "memory-headroom",
        "ticket",
        "Little memory left",
        "Of the {{ $labels.memory }} memory that the training process has or could have {{ $value | humanizePercentage }} is left.",
        _MEMORY,
        lasts="5m",
        keep="10m",
        labels=("run", "model", "memory"),
    ),
)


def run_alerts(links: Links) -> list[Alert]:
    return [
        Alert(
            row.alert,
            row.expr,
            {"severity": row.severity} | ({"outcome": row.outcome} if row.outcome else {}),
            {
                "summary": f"{row.title}: {PLACE if 'run' in row.labels else '{{ $labels.instance }}'}",
                "description": row.says,
                "runbook_url": links.runbook(row.page),
                "dashboard_url": links.dashboard(row.alert, row.labels),
            },
            row.lasts,
            row.keep,
        )
        for row in RUN_ALERTS
    ]
