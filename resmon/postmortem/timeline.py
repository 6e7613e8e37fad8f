"""What happened, in one order: the beginning, checkpoints, first signs, findings, incidents, the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from resmon.flight.incidents import first_in_doubt
from resmon.postmortem.case import Case
from resmon.postmortem.departures import Departure
from resmon.quantities import count, listed

Kind = Literal["run", "checkpoint", "sign", "finding", "incident"]

GROUPS = 12  # of first signs that are told, each of one quantity at one step


@dataclass(frozen=True, slots=True)
class Event:
    """One line. `step` and `time` are None where nobody knows them."""

    step: int | None
    time: float | None
    kind: Kind
    text: str


def timeline(case: Case, signs: Sequence[Departure]) -> tuple[Event, ...]:
    """All events in the order of their steps."""
    events: list[Event] = []
    started = case.info.get("started")
    first = int(case.run.steps[0]) if len(case.run.steps) else None
    events.append(Event(first, started, "run", f"The run began on {listed(case.info['hosts']) or 'an unknown machine'}."))
    events += _checkpoints(case, last_good_checkpoint(case, signs))
    events += _signs(case, signs)
    for finding in case.findings:
        state = "" if finding.state == "closed" else ", still open at the end"
        events.append(
            Event(
                finding.opened_step,
                finding.opened_time,
                "finding",
                f"{finding.kind} ({finding.severity}{state}): {finding.summary}",
            )
        )
    for incident in case.incidents:
        of_rank = f" (rank {incident.rank})" if len(case.info["ranks"]) > 1 else ""
        events.append(Event(incident.step, incident.time, "incident", f"{incident.kind}{of_rank}: {incident.summary}"))
    end = max((end.time for end in case.ends.values()), default=None)
    if case.outcome != "running":
        reason = next((end.reason for end in case.ends.values() if end.reason), "")
        last = case.time_of(case.last_step) if case.last_step is not None else None
        said = f"The run ended as {case.outcome}" + (f": {reason}" if reason else "")
        events.append(Event(case.last_step, end or last, "run", said.rstrip(".") + "."))
    order: dict[Kind, int] = {"sign": 0, "checkpoint": 1, "finding": 2, "incident": 3, "run": 4}
    return tuple(sorted(events, key=lambda event: _place(event, order)))


def _place(event: Event, order: dict[Kind, int]) -> tuple[float, int, float]:
    beginning = event.kind == "run" and event.text.startswith("The run began")
    step = float("-inf") if beginning else float("inf") if event.step is None else float(event.step)
    return step, order[event.kind], event.time or 0.0


def last_good_checkpoint(case: Case, signs: Sequence[Departure]) -> str:
    """The path of the newest checkpoint from before the first sign of the trouble; empty where there is none."""
    if case.healthy:
        return ""
    since = [*(sign.step for sign in signs[:1]), *map(first_in_doubt, case.incidents)]
    if all(each.step != case.trouble for each in case.incidents):
        since.append(case.trouble)
    bound = min((step for step in since if step is not None), default=None)
    before = [each for each in case.checkpoints if bound is None or each.step is None or each.step < bound]
    return before[-1].path if before else ""


def _checkpoints(case: Case, good: str) -> list[Event]:
    """The last one before the first sign, and the very last."""
    last = case.checkpoints[-1:]
    chosen = [each for each in case.checkpoints if good and each.path == good][-1:]
    chosen += [each for each in last if each not in chosen]
    of_all = f", one of {len(case.checkpoints):,}" if len(case.checkpoints) > 1 else ""
    return [
        Event(
            each.step,
            each.time,
            "checkpoint",
            f"The last checkpoint{' before the trouble' if good and each.path == good else ''}{of_all}: {each.path}",
        )
        for each in chosen
    ]


def _signs(case: Case, signs: Sequence[Departure]) -> list[Event]:
    events = []
    groups = [(key, list(group)) for key, group in groupby(sorted(signs, key=_group), key=_group)]
    for (step, _, _), group in groups[:GROUPS]:
        first = group[0]
        blocks = [sign.block for sign in group if sign.block]
        if not blocks:
            text = f"The {first.quantity} left its usual range for good: {first.moved}."
        elif len(blocks) == 1:
            text = f"The {first.quantity} of {first.block} left its usual range for good: {first.moved}."
        else:
            text = f"The {first.quantity} of {count(len(blocks), 'block')} left its usual range for good: {listed(blocks)}."
            text = f"{text[:-1]} ({first.moved} in {blocks[0]})."
        events.append(Event(step, case.time_of(step), "sign", text))
    if len(groups) > GROUPS:
        rest = sum(len(group) for _, group in groups[GROUPS:])
        step = groups[GROUPS][0][0]
        events.append(Event(step, case.time_of(step), "sign", f"{count(rest, 'more quantity', 'more quantities')} followed."))
    return events


def _group(sign: Departure) -> tuple[int, bool, str]:
    return sign.step, bool(sign.block), sign.quantity
