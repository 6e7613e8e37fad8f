"""The report as Markdown, for an issue or a wiki: all that the page says in words, and none of its figures.

Text from files is escaped, so that a name cannot become a heading, a link, an image, a table's cell or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from resmon.postmortem.evidence import Suspect
from resmon.postmortem.page import ALERT_COLUMNS, alert_rows, card, compared, environment_of, events, facts, side_by_side
from resmon.postmortem.report import Report
from resmon.quantities import in_units

SIGNS = 20

# What CommonMark and GitHub read as a mark anywhere in a line, and what they do at its beginning; < and & would begin HTML.
_MARKS = re.compile(r"([\\`*_\[\]#!|~$@>]|:(?=//))")
_BEGINNINGS = re.compile(r"^([-+=](?=[-+=\s]|$)|\d+(?=[.)]\s))")


def escaped(text: str) -> str:
    """The text as it is, in one line."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    marked = _MARKS.sub(r"\\\1", plain.replace("&", "&amp;").replace("<", "&lt;"))
    return _BEGINNINGS.sub(lambda match: f"&#{ord(match[0][0])};{match[0][1:]}", marked)


def render(report: Report) -> str:
    """The document."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    case = report.case
    yield f"# {escaped(report.title)}"
    yield ""
    yield escaped(" ".join(report.summary))
    yield ""
    yield from _table(("", ""), facts(report))
    for note in report.notes:
        yield f"- {escaped(note)}"
    yield ""
    yield "## What happened"
    yield ""
    for incident in case.incidents:
        shown = card(incident, case)
        yield f"**{escaped(shown.summary)}**"
        yield ""
        yield from _table(("", ""), [*shown.details, *shown.measured])
    lines = events(report)
    yield from _table(("step", "after", "what"), [(e["step"], e["after"], f"{e['of']} {e['text']}".strip()) for e in lines])
    yield "## What was first, and what followed"
    yield ""
    if report.signs:
        rows = [
            (f"{s.step:,}", s.quantity, s.block or "–", in_units(s.statistic, s.usual), in_units(s.statistic, s.seen))
            for s in report.signs[:SIGNS]
        ]
        yield from _table(("step", "quantity", "block", "usual", "from there on"), rows)
        if len(report.signs) > SIGNS:
            yield f"{len(report.signs) - SIGNS:,} more followed."
            yield ""
    else:
        yield escaped(report.summary[1])
        yield ""
    yield "## Probable causes"
    yield ""
    yield "Weights are decades of likelihood: +1 means ten times as likely where this is the cause as where it is not."
    yield ""
    for suspect in report.suspects:
        if suspect.is_indicated:
            yield from _suspect(suspect)
    rest = [suspect for suspect in report.suspects if not suspect.is_indicated]
    yield from _table(
        ("also looked at", "verdict", "heaviest evidence"),
        [(s.title, s.verdict, s.evidence[0].text if s.evidence else " ".join(s.unknown)) for s in rest],
    )
    yield "## What to do"
    yield ""
    if report.runbook:
        yield f"Runbook: {escaped(report.runbook)}, in runbooks."
        yield ""
    if case.trouble is not None:
        yield f"Last checkpoint from before the trouble: {escaped(report.checkpoint) or 'none was named'}."
        yield ""
    actions = [(action.what, action.why, "", "") for action in report.actions]
    yield from _table(("action", "because", "owner", "due"), [*actions, ("", "", "", "")])
    if case.findings:
        yield "## Findings"
        yield ""
        rows = [(f"{f.opened_step:,}", f.kind, f.block or "–", f.severity, f.summary) for f in case.findings]
        yield from _table(("step", "finding", "block", "severity", "summary"), rows)
    if report.alerts is not None:
        yield "## Alerts"
        yield ""
        if rows_of := alert_rows(report):
            yield from _table(ALERT_COLUMNS, rows_of)
        yield from (f"- {escaped(note)}" for note in report.alerts.notes)
        yield ""
    beside = side_by_side(report)
    if beside is not None:
        yield "## Beside the other runs"
        yield ""
        yield from _table(("", *beside["names"]), [(row.name, *row.cells) for row in beside["rows"] if row.differs])
        yield from (f"- {escaped(name)}: {escaped(sentence)}" for name, sentence in compared(report))
        yield ""
    yield "## Where it ran"
    yield ""
    yield from _table(("", ""), environment_of(case))


def _suspect(suspect: Suspect) -> Iterator[str]:
    yield f"### {escaped(suspect.title)}: {suspect.verdict}"
    yield ""
    for each in suspect.evidence:
        yield f"- {each.weight:+.1f} {escaped(each.text)}"
    for text in suspect.unknown:
        yield f"- ? {escaped(text)}"
    yield ""


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield f"| {' | '.join(escaped(cell) for cell in heading)} |"
    yield f"|{'---|' * len(heading)}"
    for row in rows:
        yield f"| {' | '.join(escaped(cell) for cell in row)} |"
    yield ""
