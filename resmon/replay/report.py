"""What a replay found, as the terminal shows it and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from resmon.detectors import DETECTORS, Detector
from resmon.quantities import count, printable
from resmon.records import Finding
from resmon.replay.comparison import Agreement, Change
from resmon.replay.detection import Replayed

_STYLES = {"page": "bold red", "ticket": "yellow", "new": "bold", "gone": "dim", "changed": "bold"}


def as_json(replayed: Replayed, agreement: Agreement | None, changes: Sequence[Change] | None) -> dict[str, Any]:
    """Everything of a replay; `changes` where settings were tried."""
    made = {
        "run": replayed.run,
        "attempt": replayed.attempt,
        "ranks": list(replayed.ranks),
        "steps": replayed.steps,
        "recorded": replayed.recorded,
        "under_way": replayed.under_way,
        "notes": list(replayed.notes),
        "events": [asdict(event) for event in replayed.events[0]],
    }
    if agreement is not None:
        made["agent"] = {
            "same": agreement.is_same,
            "written": agreement.written,
            **{name: [asdict(event) for event in getattr(agreement, name)] for name in ("missing", "more", "differing")},
        }
    if changes is not None:
        made["set"] = {"events": [asdict(event) for event in replayed.events[1]], "changes": [asdict(each) for each in changes]}
    return made


def render(
    replayed: Replayed, agreement: Agreement | None, changes: Sequence[Change] | None, more: Sequence[type[Detector]] = ()
) -> RenderableType:
    """For the terminal; `changes` where settings were tried."""
    parts: list[RenderableType] = []
    if changes is None:
        if found := replayed.findings():
            parts.append(_table(found))
    elif shown := [change for change in changes if change.how != "same"]:
        parts.append(_changes(shown))
    parts += [Text(line) for line in _lines(replayed, agreement, changes, more)]
    return Group(*parts)


def _table(found: Sequence[Finding]) -> Table:
    table = _columns("severity", "opened", "closed", "finding")
    for finding in found:
        table.add_row(Text(finding.severity, _STYLES[finding.severity]), *_span(finding), _said(finding))
    return table


def _changes(changes: Sequence[Change]) -> Table:
    table = _columns("with it", "severity", "opened", "closed", "finding")
    for change in changes:
        finding = change.finding
        said = _said(finding)
        if change.what:
            said.append(f"\n{printable(change.what)}", "bold")
        table.add_row(Text(change.how, _STYLES[change.how]), finding.severity, *_span(finding), said)
    return table


def _columns(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, justify="right" if name in ("opened", "closed") else "left", overflow="fold")
    return table


def _said(finding: Finding) -> Text:
    """What it is, by the name under which it is tuned, and in words."""
    where = f" in {printable(finding.place)}" if finding.model else ""
    return Text.assemble((finding.kind, "bold"), f"{where}: {printable(finding.summary)}")


def _span(finding: Finding) -> tuple[str, str]:
    return f"{finding.opened_step:,}", f"{finding.step:,}" if finding.state == "closed" else "open"


def _lines(
    replayed: Replayed, agreement: Agreement | None, changes: Sequence[Change] | None, more: Sequence[type[Detector]]
) -> Iterator[str]:
    ranks = len(replayed.ranks)
    of_ranks = f" of each of {ranks} ranks" if ranks > 1 else ""
    thinned = replayed.steps < replayed.recorded
    read = f"{replayed.steps:,} of {replayed.recorded:,} steps" if thinned else f"{count(replayed.steps, 'step')}"
    what = f"As the run was watched: {_counted(replayed.findings())} in {read}{of_ranks}"
    if changes is None:
        yield f"{what}."
    else:
        how = Counter(change.how for change in changes)
        differences = ", ".join(f"{how[name]:,} {name}" for name in ("new", "gone", "changed", "same") if how[name])
        yield f"{what}. With these settings: {_counted(replayed.findings(1))}{' – ' if differences else ''}{differences}."
    if thinned:
        yield f"The other {replayed.recorded - replayed.steps:,} were thinned away (budget): what only they show is not said here."
    if replayed.under_way:
        yield "The run is under way: this is what there is so far."
    elif agreement is not None:
        yield from _agreement(agreement, replayed, more)
    yield from map(printable, replayed.notes)


def _agreement(agreement: Agreement, replayed: Replayed, more: Sequence[type[Detector]]) -> Iterator[str]:
    if not agreement.written:
        if agreement.more:
            yield "No agent has written findings of this run; these are what one would have written."
        return
    if agreement.is_same:
        yield f"This is what the agent wrote, to the last number: {count(agreement.written, 'event')}."
        return
    differences = (
        ("only the agent has", agreement.missing),
        ("only the replay has", agreement.more),
        ("told otherwise", agreement.differing),
    )
    for said, events in differences:
        for event in events[:5]:
            yield f"{said}: {event.kind} {event.state} at step {event.step:,}: {printable(event.summary)}"
        if len(events) > 5:
            yield f"{said}: {len(events) - 5:,} more"
    known = tuple(kind.name for kind in (*DETECTORS, *more))
    unknown = sorted({event.kind for event in agreement.missing if not event.kind.startswith(known)})
    if unknown:
        yield f"No detector here says {', '.join(map(printable, unknown))}; name yours with --detector package.module:Class."
    elif replayed.steps == replayed.recorded:
        yield "The agent wrote another story of the same steps: it was of another version, was killed, or came late."


def _counted(found: Sequence[Finding]) -> str:
    if not found:
        return "no finding"
    severities = Counter(finding.severity for finding in found)
    named = " and ".join(count(severities[name], name) for name in ("page", "ticket") if severities[name])
    return f"{count(len(found), 'finding')} ({named})"
