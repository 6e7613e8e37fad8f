"""The report: the case of a run, what came first, the likeliest causes, the comparison with other runs; and all of it as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import resmon
from resmon.diff.comparison import Comparison, compare
from resmon.diff.report import as_json as comparison_as_json
from resmon.errors import FlightError, FlightVersionError
from resmon.postmortem.alerts import Alerts
from resmon.postmortem.case import Case, Progress, read
from resmon.postmortem.causes import weigh
from resmon.postmortem.departures import Departure, departures, leading_up
from resmon.postmortem.evidence import Suspect
from resmon.postmortem.timeline import Event, last_good_checkpoint, timeline
from resmon.quantities import count, duration

FORMAT = 1  # of the JSON: it rises when a key goes away or changes its meaning
SIGNS = 200  # that the JSON lists

# What a run did that ended so.
_DID = {
    "out_of_memory": "ran out of memory",
    "nonfinite": "went non-finite",
    "shape_mismatch": "met tensors whose shapes do not fit",
    "killed": "was killed",
    "failed": "ended with an exception",
    "stalled": "stopped making steps",
    "interrupted": "was interrupted",
    "unknown": "ended, and nobody recorded how,",
    "finished": "finished",
    "running": "is under way",
}


# What a run did of which a finding says so.
FOUND = {"nonfinite": "went non-finite", "nonfinite_loss": "had a loss that is not finite", "loss_divergence": "diverged"}


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do, with room for who and when."""

    what: str
    why: str
    owner: str = ""
    due: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """All that is to be said."""

    case: Case
    others: tuple[Case, ...]
    summary: tuple[str, str, str]
    timeline: tuple[Event, ...]
    signs: tuple[Departure, ...]
    suspects: tuple[Suspect, ...]
    actions: tuple[Action, ...]
    checkpoint: str
    runbook: str
    comparison: Comparison | None
    notes: tuple[str, ...]
    alerts: Alerts | None = None  # None where no server was asked

    @property
    def title(self) -> str:
        return f"Post-mortem of {self.case.name}" if not self.case.healthy else f"Report on {self.case.name}"


def make(folders: Sequence[Path], say: Progress = lambda _: None, ask: Callable[[Case], Alerts] | None = None) -> Report:
    """The report on the first of these attempts that broke, beside the others; on the first of all where none did.

    `ask` finds the alerts of that attempt, where there is a server that knows them.

    Raises FlightError where none of them can be read, FlightVersionError where a newer resmon wrote one.
    """
    cases: list[Case] = []
    notes: list[str] = []
    failed: FlightError | None = None
    for folder in dict.fromkeys(path.resolve() for path in folders):
        try:
            cases.append(read(folder, lambda what, folder=folder: say(f"{folder.parent.name}: {what}")))  # type: ignore[misc]
        except FlightVersionError:
            raise
        except FlightError as error:
            failed = error
            notes.append(f"left out: {error}")
    if not cases:
        raise failed or FlightError("no run was named. Name one at least; `resmon ls` lists them.")
    case = next((each for each in cases if not each.healthy), cases[0])
    others = tuple(each for each in cases if each is not case)
    say(f"{case.name}: looking for what came first")
    changes = departures(case.window, case.blocks)
    suspects = weigh(case, changes)
    kinds = {case.outcome, *(each.kind for each in case.incidents)}
    indicated = [suspect for suspect in suspects if suspect.is_indicated]
    # Where nothing is wrong, what is told is how the network changed, not the machine's pace.
    plain = case.trouble is None and bool(indicated)
    signs = tuple(changes) if plain else tuple(leading_up(changes, kinds, case.trouble))
    checkpoint = last_good_checkpoint(case, signs)
    incident = case.broken
    found = [each for each in case.findings if each.opened_step == case.trouble]
    runbook = next((each.runbook for each in (incident, *found, *indicated) if each and each.runbook), "")
    comparison, note = _compared(case, others, say)
    if ask is not None:
        say(f"{case.name}: asking which alerts fired")
    return Report(
        case=case,
        others=others,
        summary=(_what(case), _since(case, signs, bool(indicated)), _why(case, indicated, checkpoint)),
        timeline=timeline(case, signs),
        signs=signs,
        suspects=suspects,
        actions=_actions(case, indicated),
        checkpoint=checkpoint,
        runbook="" if case.healthy and not indicated else runbook,
        comparison=comparison,
        notes=(*notes, *case.notes, *note),
        alerts=None if ask is None else ask(case),
    )


def _compared(case: Case, others: Sequence[Case], say: Progress) -> tuple[Comparison | None, list[str]]:
    """The run against the healthy ones of the others, or against all of them where none is healthy."""
    peers = [other for other in others if other.healthy] or list(others)
    if not peers:
        return None, []
    say("comparing the runs")
    try:
        return compare([peer.run.folder for peer in peers], [case.run.folder]), []
    except FlightError as error:
        return None, [f"the runs could not be compared: {error}"]


def _what(case: Case) -> str:
    model = case.info.get("model") or "a model without a name"
    blocks = count(len(case.blocks), "residual block") if case.blocks else "no residual block"
    began, last = case.info.get("started"), case.last_step
    incident = case.broken
    kind = incident.kind if incident and incident.kind != "interrupted" else case.outcome
    did = _DID.get(kind, "ended")
    if kind == "finished" and case.trouble is not None:
        pages = [each for each in case.findings if each.severity == "page"]
        finding = min(pages, key=lambda each: each.opened_step != case.trouble)
        did = f"finished, but {FOUND.get(finding.kind, f'raised the finding {finding.kind}')}"
        place = f" in block {finding.place}" if finding.block else ""
    else:
        place = f" in block {incident.place}" if incident and incident.block and kind != "interrupted" else ""
    step = case.trouble if case.trouble is not None else last
    if incident is not None and kind == incident.kind and incident.step is not None:
        step = incident.step
    at = f" at step {step:,}" if step is not None else " before its first step was over"
    when = case.time_of(step) if step is not None else None
    after = f", {duration(when - began)} after it began" if when is not None and isinstance(began, float) and when > began else ""
    return f"{case.name} ({model}, {blocks}) {did}{at}{place}{after}."


def _since(case: Case, signs: Sequence[Departure], concern: bool) -> str:
    if not len(case.run.steps):
        return "No step was recorded, so nothing can be said of what came before."
    coming = min((each.since for each in case.incidents if each.since is not None), default=None)
    if coming is not None and case.trouble is not None and coming < min([case.trouble, *(sign.step for sign in signs)]):
        return f"It had been coming since step {coming:,}, {count(case.trouble - coming, 'step')} before, as the incident tells."
    if not signs:
        return (
            "Nothing that was measured had left its usual range before: it came from one step to the next."
            if case.trouble is not None
            else "Nothing that was measured has left its usual range for good."
        )
    first = signs[0]
    if case.healthy and not concern:
        what = count(len(signs), "quantity", "quantities")
        return (
            f"{what} left the usual range for good on the way, as happens while a network learns; the first was the "
            f"{first.what}, at step {first.step:,}, {first.moved}."
        )
    blocks = list(dict.fromkeys(sign.block for sign in signs if sign.block and sign.step >= first.step))
    before = (
        f", {count(case.trouble - first.step, 'step')} before" if case.trouble is not None and case.trouble > first.step else ""
    )
    follow = ""
    if first.block:
        followed = [block for block in blocks if block != first.block]
        follow = f"; {count(len(followed), 'other block')} followed" if followed else ""
    elif blocks:
        at = next(sign.step for sign in signs if sign.block)
        follow = f"; the first block to follow was {blocks[0]}, at step {at:,}"
    return f"The first sign was at step {first.step:,}{before}: the {first.what} went {first.moved}{follow}."


def _why(case: Case, indicated: Sequence[Suspect], checkpoint: str) -> str:
    resume = ""
    if case.trouble is not None:
        later = [each.path for each in case.checkpoints if each.step is not None and each.step < case.trouble]
        if checkpoint:
            resume = f"; the last checkpoint before it is {checkpoint}"
        elif later:
            resume = f"; the last checkpoint before it, {later[-1]}, is from after the first sign"
        else:
            resume = "; no checkpoint from before it was named"
    if not indicated:
        return f"No cause is needed{resume}." if case.healthy else f"What was recorded points to no cause{resume}."
    first = indicated[0]
    reason = next((each.text for each in first.supporting), "")
    because = f", because {_within(reason.rstrip('.'))}" if reason else ""
    also = f"; also {_within(indicated[1].title)} ({indicated[1].verdict})" if len(indicated) > 1 else ""
    concern = "Likeliest cause" if not case.healthy or case.outcome == "interrupted" else "What deserves a look"
    return f"{concern}: {_within(first.title)} ({first.verdict}){because}{also}{resume}."


def _within(sentence: str) -> str:
    """A sentence inside of another one: names keep their capitals."""
    word = sentence.partition(" ")[0].rstrip(":,.;")
    return sentence[:1].lower() + sentence[1:] if word[1:].islower() or len(word) == 1 else sentence


def _actions(case: Case, indicated: Sequence[Suspect]) -> tuple[Action, ...]:
    actions = [
        Action(each.advice, f"advice of the incident {each.id}")
        for each in case.incidents
        if each.advice and each.kind != "interrupted"
    ]
    for suspect in indicated[:3]:
        actions += [Action(what, f"{suspect.title}, {suspect.verdict}") for what in suspect.actions]
    return tuple({action.what: action for action in reversed(actions)}.values())[::-1]


def as_json(report: Report) -> dict[str, Any]:
    """For programs. Numbers that are not there or not finite are null."""
    case = report.case
    return {
        "format": FORMAT,
        "resmon": resmon.__version__,
        "run": case.name,
        "attempt": case.run.attempt,
        "folder": str(case.run.folder),
        "outcome": case.outcome,
        "healthy": case.healthy,
        "trouble_step": case.trouble,
        "last_step": case.last_step,
        "summary": list(report.summary),
        "environment": {key: _plain(value) for key, value in case.info.items() if key not in ("sites", "folder")},
        "blocks": list(case.blocks),
        "incidents": [_plain(asdict(each)) for each in case.incidents],
        "findings": [_plain(asdict(each)) for each in case.findings],
        "alerts": None if report.alerts is None else _plain(asdict(report.alerts)),
        "checkpoints": [_plain(asdict(each)) for each in case.checkpoints],
        "last_good_checkpoint": report.checkpoint or None,
        "timeline": [_plain(asdict(each)) for each in report.timeline],
        "first_signs": [_plain(asdict(each)) for each in report.signs[:SIGNS]],
        "causes": [
            {
                "cause": each.key,
                "title": each.title,
                "verdict": each.verdict,
                "score": each.score,
                "evidence": [asdict(evidence) for evidence in each.evidence],
                "unknown": list(each.unknown),
                "runbook": each.runbook or None,
            }
            for each in report.suspects
        ],
        "runbook": report.runbook or None,
        "actions": [asdict(each) for each in report.actions],
        "compared_with": [other.name for other in report.others],
        "comparison": comparison_as_json(report.comparison) if report.comparison else None,
        "notes": list(report.notes),
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
