"""What is known when an exception ends a run, how it is put into words, and what of it is a plain failure."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from resmon.capture.host.stack import Whereabouts
from resmon.memory.footprint import Footprint
from resmon.records import Incident, Outcome, ResidualSite, incident_id

LONGEST = 1000  # characters of an exception's message


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known of the run when an exception ends it."""

    models: Mapping[str, nn.Module]
    sites: Sequence[ResidualSite]
    step: int | None  # under way or, between two steps, the newest that is over
    footprint: Callable[[], Footprint] | None = None  # looks up what is known of memory


Diagnosis = Callable[[BaseException, Scene, Whereabouts], Incident | None]


# How torch hands on what was raised in a worker of a data loader, or in a replica: as text, with its whole traceback.
_ELSEWHERE = re.compile(r"Caught \w+ in (.+?)\.\nOriginal Traceback \(most recent call last\):\n(.*)", re.DOTALL)
_GONE = re.compile(r"DataLoader worker \(pid")  # and this is how it says that a worker ended without a word
_FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)


def said(error: BaseException) -> str:
    """An exception as one line of text, cut where it is long."""
    text = f"{type(error).__name__}: {error}"
    if (elsewhere := _ELSEWHERE.fullmatch(str(error))) is not None and (frames := list(_FRAME.finditer(elsewhere[2]))):
        lines = elsewhere[2][frames[-1].end() :].splitlines()[1:]
        message = [line for line in lines if not line.startswith("  ")]
        text = f"{' '.join(message) or type(error).__name__}, in {elsewhere[1]} at {frames[-1][1]}:{frames[-1][2]}"
    return " ".join(text.split())[:LONGEST].removesuffix(":")


def place(where: Whereabouts) -> str:
    """Where it happened, for the middle of a sentence; empty where that is not known."""
    if where.module is None:
        return f" at {where.line}" if where.line else ""
    inside = f"module {where.module}" if where.module else "the model's own forward"
    return f" in {inside}" + (f" (block {where.block})" if where.block else "")


def plain_failure(error: BaseException, scene: Scene, where: Whereabouts) -> Incident:
    """What no diagnosis knows."""
    kind: Outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    summary = f"{signal.Signals.SIGINT.name} ended the run"
    advice = ""
    if kind == "failed":
        at = place(where)
        summary = f"{said(error)},{at}" if at else said(error)
        advice = "The exception's message says what; the line is the innermost that is yours."
    if _GONE.match(str(error)):
        advice = (
            "A worker of the data loader ended without a word. With num_workers=0 its exception is seen; one that was killed most "
            "likely lacked memory, one with a bus error shared memory (/dev/shm): fewer workers, or smaller batches."
        )
    return Incident(
        id=incident_id(kind, scene.step),
        kind=kind,
        time=time.time(),
        step=scene.step,
        summary=summary,
        model=where.model,
        block=where.block,
        module=where.module or "",
        line=where.line,
        advice=advice,
        runbook=kind,
        evidence={"exception": said(error)},
    )
