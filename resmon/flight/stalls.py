"""A process that lives and does not go on: when that is to be said of a run, and how.

    patience = max(10 x the median step time, RunInfo.stall_after)

The median is that of all steps of the attempt, rounded up to a power of two seconds as the histogram of durations has it. Before
the first step, which compiles and reads caches, patience is half an hour at least. A stall is a state of a run that is under way,
and an incident; the next step closes it. It is how the attempt ended only where no step comes before the process ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from resmon.records import DURATION_EDGES, Incident, RunInfo, StepRecord, incident_id

STEPS = 10  # median step times without a step
FIRST = 1800.0  # seconds for the first step


def usual(newest: StepRecord | None) -> float | None:
    """The median step time, rounded up to a power of two; None where no step has told any."""
    counts = None if newest is None else newest.duration_buckets.cumsum()
    if newest is None or counts is None or not counts[-1]:
        return None
    bucket = int(np.searchsorted(counts, counts[-1] / 2))
    return float(DURATION_EDGES[bucket]) if bucket < len(DURATION_EDGES) else 2 * newest.duration_total / newest.steps_total


def patience(info: RunInfo, newest: StepRecord | None) -> float:
    """Seconds without a step after which a run is stalled; infinite where the user wants none to be called so."""
    median = usual(newest)
    if not info.stall_after:
        return math.inf
    return max(info.stall_after, FIRST if median is None else STEPS * median)


def stall(info: RunInfo, newest: StepRecord | None, seconds: float, now: float) -> Incident:
    """The incident of a run that has been without a step for so many seconds."""
    step, median = (None, None) if newest is None else (newest.step, usual(newest))
    since = f"after step {step}" if step is not None else "since the run began"
    return Incident(
        id=incident_id("stalled", step),
        kind="stalled",
        time=now,
        step=step,
        summary=f"No step for {spoken(seconds)} {since}"
        + (f", where half of the steps take less than {spoken(median)}" if median is not None else "")
        + "; the process lives.",
        since=None if step is None else step + 1,
        advice=f"See where it hangs: `py-spy dump --pid {info.pid}` on {info.host} prints every thread's stack. Usual causes are a "
        "collective that another rank never joins, data that does not come, and a long evaluation (then raise stall_after).",
        runbook="stalled",
        evidence={"seconds": seconds, "median_step_seconds": median, "patience_seconds": patience(info, newest), "pid": info.pid},
    )


def is_open(incident: Incident) -> bool:
    """Whether it is a stall that nothing has ended yet."""
    return incident.kind == "stalled" and not {"resumed_step", "ended"} & incident.evidence.keys()


def open_stall(incidents: Iterable[Incident]) -> Incident | None:
    """The stall that a rank is in, of its incidents in their newest state."""
    return next((incident for incident in incidents if is_open(incident)), None)


def resumed(incident: Incident, record: StepRecord) -> Incident:
    """The incident once a step has come after all."""
    since = f"after step {incident.step}" if incident.step is not None else "before the first one"
    told = incident.evidence.get("seconds")
    seconds = record.time - incident.time + (told if isinstance(told, float) else 0.0)
    return replace(
        incident,
        summary=f"No step for {spoken(max(0.0, seconds))} {since}; it went on with step {record.step}.",
        advice="",
        evidence=incident.evidence | {"resumed_step": record.step, "resumed_time": record.time},
    )


def ended(incident: Incident, how: str) -> Incident:
    """The incident where the process ended in it."""
    since = f"after step {incident.step}" if incident.step is not None else "since the run began"
    advice = (
        "Nothing of what it was doing is left in it; the ranks' newest steps tell which of them fell behind. Next time, "
        f"`py-spy dump --pid {incident.evidence.get('pid', 'PID')}` while it hangs shows where."
    )
    return replace(
        incident, summary=f"No step came {since}, until {how}.", advice=advice, evidence=incident.evidence | {"ended": how}
    )


def over(incident: Incident, outcome: str) -> Incident:
    """The incident where the run came to an end of another kind without one more step."""
    if outcome != "finished":
        return ended(incident, f"the run ended ({outcome})")
    known = ended(incident, "the run finished")
    return replace(known, advice="If it evaluates or saves that long before it finishes, all is well: raise stall_after.")


def spoken(seconds: float) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if rest else f"{minutes} min"
