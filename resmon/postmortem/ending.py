"""Causes that end a process, whatever its numbers are: what speaks for each."""

from __future__ import annotations

import math

import numpy as np

from resmon.flight.stalls import apart
from resmon.postmortem.case import Case
from resmon.postmortem.evidence import FAIR, PROVEN, STRONG, WEAK, Scales, said
from resmon.quantities import count, size

FULL, ROOMY = 0.05, 0.25  # free memory as a share of what could be had
GREW = 1.5  # memory in use, over the run


def shape_mismatch(on: Scales) -> None:
    named = [each for each in on.case.incidents if each.kind == "shape_mismatch"]
    for each in named[:1]:
        on.add(PROVEN, said(each))
    if not named:
        ended = "ended without any exception" if on.case.outcome != "failed" else "ended with an exception that is not about shapes"
        on.add(-STRONG, f"The run {ended}.")
    if not len(on.case.run.steps):
        on.add(WEAK, "Not one step was completed, as where the model and its input do not fit.")
    elif on.case.last_step is not None and not named:
        on.add(-FAIR, f"{count(len(on.case.run.steps), 'step')} went through the same model before.")


def out_of_memory(on: Scales) -> None:
    named = [each for each in on.case.incidents if each.kind == "out_of_memory"]
    for each in named[:1]:
        on.add(PROVEN, said(each))
    if named:
        return
    if on.case.outcome == "out_of_memory":
        on.add(PROVEN, "The run ended as out of memory.")
    if on.case.outcome not in ("killed", "out_of_memory", "unknown"):
        on.add(-STRONG, f"The run ended as {on.case.outcome}, not killed, and no allocation failed.")
    seen = False
    for used, free, where in (("memory", "memory_free", "the machine"), ("device_memory", "device_memory_free", "the device")):
        taken, left = on.case.window.run.get(used), on.case.window.run.get(free)
        if taken is None or left is None or not np.isfinite(left[-1:]).any():
            continue
        seen = True
        whole = float(left[-1] + taken[-1])
        share = float(left[-1]) / whole if math.isfinite(whole) and whole > 0 else math.nan
        if share < FULL and on.case.outcome == "killed":
            on.add(FAIR, "It was killed without a word, as the kernel does where memory runs out.")
        curve = on.case.curves.get(used)
        if curve is not None and curve.mean[-1] > GREW * curve.mean[0]:
            on.add(FAIR, f"Memory in use grew over the run, from {size(float(curve.mean[0]))} to {size(float(curve.mean[-1]))}.")
        text = f"{size(float(left[-1]))} of {where}'s memory could still be had in the end, {size(float(taken[-1]))} were in use."
        on.add(STRONG if share < FULL else -FAIR if share > ROOMY else 0.0, text)
    if not seen:
        on.cannot_see("Memory was not measured around the trouble.")


def exception(on: Scales) -> None:
    named = [each for each in on.case.incidents if each.kind == "failed"]
    for each in named[:1]:
        on.add(PROVEN, said(each))
    if not named and on.case.outcome == "failed":
        on.add(STRONG, f"The run ended with an exception: {_reason(on.case) or 'which one was not recorded'}.")
    elif not named:
        on.add(-STRONG, "No exception of another kind ended the run.")


def killed(on: Scales) -> None:
    outcome = on.case.outcome
    if outcome in ("killed", "interrupted"):
        reason = _reason(on.case).rstrip(".: ") or "it left no end mark"
        by_hand = reason.startswith(("KeyboardInterrupt", "SIGINT"))
        on.add(STRONG, f"Somebody stopped it by hand ({reason})." if by_hand else f"The process was {outcome}: {reason}.")
        if not on.leading:
            on.add(FAIR, "Nothing had left its usual range when it ended.")
        else:
            on.add(-WEAK, f"Something had changed before: {on.leading[0].what} from step {on.leading[0].step:,} on.")
        if any(each.kind == "out_of_memory" for each in on.case.incidents):
            on.add(-STRONG, "It had run out of memory.")
        waiting = on.of_run("memory_free")
        if waiting is None:
            on.cannot_see("Whether memory ran out is not known.")
    elif outcome == "unknown":
        on.cannot_see("The process is gone without an end mark, and only its own machine knows how.")
    else:
        on.add(-PROVEN, f"The process ended by itself, as {outcome}.")


def stalled(on: Scales) -> None:
    stalls = [each for each in on.case.incidents if each.kind == "stalled"]
    if stalls:
        first, why = apart(on.case.incidents)
        on.add(PROVEN, said(next((each for each in stalls if each.rank in first), stalls[0])))
        if why:
            on.add(FAIR, why)
        return
    on.add(-STRONG, "Steps kept coming until the end.")


def _reason(case: Case) -> str:
    return next((end.reason for end in case.ends.values() if end.reason), "")
