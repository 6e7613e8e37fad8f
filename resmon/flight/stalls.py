"""A process that lives and does not go on: when that is to be said of a run, and how.

    patience = max(10 x the median step time, RunInfo.stall_after)

The median is that of all steps of the attempt, rounded up to a power of two seconds as the histogram of durations has it. Before
the first step, which compiles and reads caches, patience is half an hour at least. A stall is a state of a run that is under way,
and an incident; the next step closes it. It is how the attempt ended only where no step comes before the process ends.

Where it stands its process has written down itself, having looked at its own stack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from resmon.quantities import listed
from resmon.records import DURATION_EDGES, Incident, RunInfo, StackDump, StepRecord, incident_id

STEPS = 10  # median step times without a step
FIRST = 1800.0  # seconds for the first step

_DOING: Mapping[str, str] = {
    "data": "waiting for data",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "optimizer": "in the optimizer's step",
    "collective": "waiting for other ranks in a collective",
    "compile": "compiling",
    "resmon": "in resmon itself",
    "": "outside of any pass",
}
_WAITS: Sequence[str] = ("backward", "collective")  # what a rank is doing that waits for another one
_ADVICE: Mapping[str, str] = {
    "data": "See whether the storage that the data come from answers, and what the loader's workers do: `ps --ppid {pid} -o "
    "pid,stat,wchan:30,args` on {host}.",
    "collective": "In all likelihood it waits for another rank: look first at the one that does not wait for others.",
    "compile": "Where that is not the first time, shapes change; raise stall_after if it has to take so long.",
    "resmon": "That would be a fault of resmon's: report it with the stack, and train without resmon until it is mended.",
}


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


def stall(info: RunInfo, newest: StepRecord | None, seconds: float, now: float, stack: StackDump | None) -> Incident:
    """The incident of a run that has been without a step for so many seconds; `stack` is what its process has written of it."""
    step, median = (None, None) if newest is None else (newest.step, usual(newest))
    if stack is not None and step is not None and (stack.step is None or stack.step < step):
        stack = None  # of an earlier wait
    since = f"after step {step}" if step is not None else "since the run began"
    advice = (
        f"See where it hangs: `py-spy dump --pid {info.pid}` on {info.host} prints every thread's stack. Usual causes are a "
        "collective that another rank never joins, data that does not come, and a long evaluation (then raise stall_after)."
    )
    incident = Incident(
        id=incident_id("stalled", step),
        kind="stalled",
        time=now,
        step=step,
        summary=f"No step for {spoken(seconds)} {since}"
        + (f", where half of the steps take less than {spoken(median)}" if median is not None else "")
        + "; the process lives.",
        since=None if step is None else step + 1,
        advice=advice,
        runbook="stalled",
        evidence={"seconds": seconds, "median_step_seconds": median, "patience_seconds": patience(info, newest), "pid": info.pid},
    )
    return incident if stack is None else _standing(incident, stack, info)


def _standing(incident: Incident, stack: StackDump, info: RunInfo) -> Incident:
    """The incident with what is known of where the process stands."""
    long = stack.seconds - stack.since
    when = f"For {spoken(long)} at least it has been" if long else f"After {spoken(stack.seconds)} of that it was"
    waits = stack.doing in _WAITS and info.world_size > 1
    what_next = _ADVICE["collective"] if waits else _ADVICE.get(stack.doing, "If it goes on, raise stall_after.")
    return replace(
        incident,
        summary=f"{incident.summary} {when} {_place(stack.doing, stack.block, stack.line)}.",
        model=stack.model,
        block=stack.block,
        module=stack.module,
        line=stack.line,
        advice=f"{what_next.format(pid=info.pid, host=info.host)} `py-spy dump --pid {info.pid}` on {info.host} prints what every "
        "thread is doing now.",
        evidence=incident.evidence | {"doing": stack.doing, "stack": list(stack.calls)},
    )


def _place(doing: object, block: str, line: str) -> str:
    said = _DOING.get(str(doing), _DOING[""])
    return said + (f", in block {block}" if block else "") + (f", at {line}" if line else "")


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
    said = f"No step came {since}, until {how}."
    if "stack" in incident.evidence:
        said += f" It was {_place(incident.evidence.get('doing'), incident.block, incident.line)}."
        advice = "Its stack is where it stood; of several ranks, look first at the one that did not wait for others."
    else:
        advice = (
            "Nothing of what it was doing is left in it; the ranks' newest steps tell which of them fell behind. Next time, "
            f"`py-spy dump --pid {incident.evidence.get('pid', 'PID')}` while it hangs shows where."
        )
    return replace(incident, summary=said, advice=advice, evidence=incident.evidence | {"ended": how})


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


def apart(incidents: Iterable[Incident]) -> tuple[list[int], str]:
    """The ranks that the others wait for, where their newest stalls tell, and a sentence on it; nothing where they do not."""
    newest: dict[int, Incident] = {}
    for incident in sorted(incidents, key=lambda each: (each.rank, each.time)):
        if incident.kind == "stalled" and "resumed_step" not in incident.evidence:
            newest[incident.rank] = incident
    doing = {rank: str(stall.evidence["doing"]) for rank, stall in newest.items() if "doing" in stall.evidence}
    others = [rank for rank, what in doing.items() if what in _WAITS]
    first, why = [rank for rank in doing if rank not in others], "did not wait for others"
    if not first:
        steps = {rank: -1 if stall.step is None else stall.step for rank, stall in newest.items()}
        others = [rank for rank, step in steps.items() if step == max(steps.values())]
        first, why = [rank for rank in steps if rank not in others], "fell behind"
    if not first or not others:
        return [], ""
    wait, whom = "wait" if others[1:] else "waits", "them" if first[1:] else "it"
    return first, f"Look first at {ranks(first)}, which {why}: {ranks(others)} probably {wait} for {whom}."


def ranks(numbers: Sequence[int]) -> str:
    """Their names, for a sentence."""
    return ("rank " if len(numbers) == 1 else "ranks ") + listed(numbers, 8)
