"""incidents.jsonl: what broke in a rank, one event of an incident a line.

The training process appends what it meets; the agent that no step comes, and how a process ended that could not say so itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from resmon.flight import journal, layout
from resmon.flight.journal import Lines
from resmon.flight.reader import Skip, typed
from resmon.records import OUTCOMES, Checkpoint, Confidence, Incident

_TEXTS = ("id", "summary", "model", "block", "module", "operation", "line", "origin", "checkpoint", "advice", "runbook", "capsule")
_NUMBERS = ("step", "since", "checkpoint_step")  # that may be None


def append(rank_folder: Path, incident: Incident) -> Incident:
    """Write an event down, with the rank whose folder it is and the last checkpoint from before the trouble, and give it back so.

    Raises OSError where that cannot be.
    """
    rank = layout.rank_number(rank_folder)
    whole = replace(incident, rank=rank or 0)
    if not whole.checkpoint and (last := last_checkpoint(rank_folder.parent, first_in_doubt(whole))):
        whole = replace(whole, checkpoint=last.path, checkpoint_step=last.step)
    journal.append(rank_folder / layout.INCIDENTS, asdict(whole))
    return whole


def read(rank_folder: Path, ended: bool = True) -> tuple[list[Incident], list[Skip]]:
    """Every event in order, and the lines that are none. `ended` says that nobody writes any more."""
    found = lines(rank_folder)
    return found.poll(ended), found.skips


def lines(rank_folder: Path) -> Lines[Incident]:
    """For whoever reads them as they come."""
    return Lines(rank_folder / layout.INCIDENTS, partial(_incident, rank=layout.rank_number(rank_folder) or 0), "an incident")


def newest(events: Iterable[Incident]) -> list[Incident]:
    """Every incident in its newest state, in their order; of one in several ranks first those that say where."""
    found = {(event.rank, event.id): event for event in events}
    began: dict[str, float] = {}
    for event in found.values():
        began[event.id] = min(event.time, began.get(event.id, event.time))

    def order(incident: Incident) -> tuple[float, str, bool, int]:
        return began[incident.id], incident.id, not (incident.origin or incident.block), incident.rank

    return sorted(found.values(), key=order)


def first_in_doubt(incident: Incident) -> int | None:
    """The first step whose weights may not be sound."""
    if incident.since is not None or incident.step is None:
        return incident.since
    # Weights that NaN came into are noted as those of that step. Of any other failure it was not over, or did them no harm.
    return incident.step if incident.kind == "nonfinite" else incident.step + 1


def last_checkpoint(attempt_folder: Path, step: int | None) -> Checkpoint | None:
    """The newest checkpoint that any rank has named and that holds the weights from before `step`; of all where that is None."""
    found: list[Checkpoint] = []
    for folder in layout.ranks(attempt_folder).values():
        found += Lines(folder / layout.CHECKPOINTS, partial(typed, Checkpoint), "a checkpoint").poll(ended=False)
    before = [each for each in found if step is None or each.step is None or each.step < step]
    return max(before, key=lambda each: (-1 if each.step is None else each.step, each.time), default=None)


def _incident(values: dict[str, Any], rank: int) -> Incident:
    """An incident from a line's values. Raises ValueError, TypeError or KeyError where these are none."""
    made = {name: values[name] for name in _TEXTS} | {name: values[name] for name in _NUMBERS}
    if not all(isinstance(made[name], str) for name in _TEXTS):
        raise ValueError("a text is none")
    if not all(made[name] is None or type(made[name]) is int for name in _NUMBERS):
        raise ValueError("a step is none")
    if values["kind"] not in OUTCOMES or values["confidence"] not in ("", *get_args(Confidence)):
        raise ValueError(f"kind {values['kind']!r:.40} or confidence {values['confidence']!r:.40} is unknown")
    if not isinstance(values["evidence"], dict):
        raise ValueError("the evidence is none")
    return Incident(
        kind=values["kind"],
        confidence=values["confidence"],
        time=float(values["time"]),
        rank=rank,
        evidence=values["evidence"],
        **made,
    )
