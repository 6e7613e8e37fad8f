"""The report as one HTML page that needs nothing beside it: style, script, plotly.js and every figure's data stand in it, once.

Names and texts come from files that anybody may have written. The template escapes all of them, JSON inside of scripts too, and the
page's own policy lets no script run but the two whose digests it names, and load nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resmon
import resmon.plots
from resmon.diff.report import divergence_sentence, sentence, structure_sentences
from resmon.flight import layout
from resmon.flight.layout import safe_name
from resmon.postmortem.case import Case
from resmon.postmortem.figures import figures
from resmon.postmortem.report import Report
from resmon.quantities import count, duration, in_units, listed, moment, number, size
from resmon.records import Incident

TEMPLATES = Path(__file__).parent / "templates"
PLOTS = Path(resmon.plots.__file__).parent
SIGNS = 30  # rows of what was first and what followed
POLICY = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
LONGEST = 2000  # characters of an incident's evidence


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table of runs side by side."""

    name: str
    cells: tuple[str, ...]
    differs: bool


@dataclass(frozen=True, slots=True)
class Card:
    """An incident as it is shown."""

    summary: str
    details: tuple[tuple[str, str], ...]
    measured: tuple[tuple[str, str], ...]  # what else was written down of it


def render(report: Report) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    plotly = get_plotlyjs()
    script, style = (
        "\n".join(file.read_text(encoding="utf-8") for file in files)
        for files in ((PLOTS / "draw.js", TEMPLATES / "page.js"), (PLOTS / "colours.css", TEMPLATES / "style.css"))
    )
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (plotly, script))
    case = report.case
    indicated = [suspect for suspect in report.suspects if suspect.is_indicated]
    page = environment.get_template(
        "page.html"
    ).render(
        report=report,
        case=case,
        model=case.info.get("model") or "model unknown",
        version=resmon.__version__,
        policy=f"default-src 'none'; script-src {digests}; {POLICY}",
        style=Markup(style),  # noqa: S704, our own file
        script=Markup(script),  # noqa: S704, our own file
        plotly=Markup(plotly),  # noqa: S704, plotly's own
        file=f"{file_name(report)}.html",
        figures=figures(report),
        facts=facts(report),
        notes=report.notes,
        incidents=[card(incident, case) for incident in case.incidents],
        events=list(events(report)),
        signs=report.signs[:SIGNS],
        more_signs=f"{len(report.signs) - SIGNS:,}" if len(report.signs) > SIGNS else "",
        in_units=in_units,
        indicated=indicated,
        unlikely=[suspect for suspect in report.suspects if suspect not in indicated],
        findings=case.findings,
        alerts=report.alerts,
        alert_rows=alert_rows(report),
        beside=side_by_side(report),
        healthy_peers=any(other.healthy for other in report.others),
        compared=compared(report),
        compared_with=listed(run.name for run in report.comparison.a) if report.comparison else "",
        environment=environment_of(case),
    )
    # Of a page nobody can write half a character; what JSON can hold and UTF-8 cannot is replaced.
    return page.encode("utf-8", "replace").decode()


def file_name(report: Report) -> str:
    """What the report is called as a file, without its kind."""
    return f"postmortem-{safe_name(report.case.name)}-{report.case.run.attempt}"


def facts(report: Report) -> list[tuple[str, str]]:
    """What one wants to know first."""
    case = report.case
    began = case.info.get("started")
    last = case.time_of(case.last_step) if case.last_step is not None else None
    ended = max((end.time for end in case.ends.values()), default=last)
    rows = [("began", moment(began) if began else "unknown")]
    if began and ended:
        rows.append(("ran", duration(max(0.0, ended - began))))
    rows.append(("last step", f"{case.last_step:,}" if case.last_step is not None else "none"))
    rows.append(("blocks", f"{len(case.blocks):,}"))
    rows.append(("ranks", f"{len(case.info['ranks']):,} of {case.info.get('world_size') or 1:,}"))
    if case.trouble is not None:
        rows.append(("broke at step", f"{case.trouble:,}"))
        rows.append(("last good checkpoint", report.checkpoint or "none was named"))
    loss = case.run.scores.get("loss")
    if loss is not None and len(loss.values):
        rows.append(("newest loss", number(float(loss.values[-1]))))
    return rows


def _rank_folder(case: Case, incident: Incident) -> Path:
    return layout.ranks(case.run.folder).get(incident.rank, case.run.folder)


def card(incident: Incident, case: Case) -> Card:
    """An incident: what is known of it, in words."""
    when = f"step {incident.step:,}" if incident.step is not None else "before the first step"
    rows = [
        ("what", incident.kind + (f" in rank {incident.rank}" if len(case.info["ranks"]) > 1 else "")),
        ("when", f"{when}, {moment(incident.time)}"),
        ("since", f"step {incident.since:,}" if incident.since is not None else ""),
        ("block", incident.place),
        ("module", incident.module),
        ("operation", incident.operation),
        ("line", incident.line),
        ("origin", incident.origin),
        ("confidence", incident.confidence),
        (
            "checkpoint",
            incident.checkpoint + (f" (step {incident.checkpoint_step:,})" if incident.checkpoint_step is not None else ""),
        ),
        ("next", incident.advice),
        (
            "capsule",
            shlex.join(["resmon", "explain", str(_rank_folder(case, incident) / incident.capsule)]) if incident.capsule else "",
        ),
    ]
    measured: list[tuple[str, str]] = []
    flat: dict[str, Any] = {}
    for name, value in incident.evidence.items():  # one level deep; what lies deeper or is a list, is in the JSON
        flat |= {f"{name} {inner}": each for inner, each in value.items()} if isinstance(value, dict) else {name: value}
    for name, value in flat.items():
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            if isinstance(value, str) or name == "pid":  # which is pasted
                said = str(value)
            else:
                said = size(value) if name.endswith("bytes") else number(value)
            measured.append((name.removesuffix("_bytes").replace("_", " "), said))
    details, more = (tuple((name, value[:LONGEST]) for name, value in part if value) for part in (rows, measured))
    return Card(incident.summary, details, more)


def events(report: Report) -> Sequence[dict[str, str]]:
    """The timeline's lines."""
    began = report.case.info.get("started")
    names = {"run": "", "checkpoint": "", "sign": "first sign", "finding": "finding", "incident": "incident"}
    if report.case.trouble is None:
        names["sign"] = "change"
    return [
        {
            "kind": event.kind,
            "of": names[event.kind],
            "step": "" if event.step is None or event.text.startswith("The run began") else f"step {event.step:,}",
            "after": f"+{duration(max(0.0, event.time - began))}" if event.time and began else "",
            "text": event.text,
        }
        for event in report.timeline
    ]


ALERT_COLUMNS = ("alert", "severity", "of", "pending from", "firing from", "until", "silenced")


def alert_rows(report: Report) -> list[tuple[str, ...]]:
    """The alerts, under ALERT_COLUMNS."""
    rows = []
    for alert in report.alerts.alerts if report.alerts is not None else ():
        of = alert.block or alert.labels.get("slo") or alert.labels.get("instance") if "run" not in alert.labels else alert.block
        times = [moment(each) if each is not None else "–" for each in (alert.pending, alert.fired)]
        until = moment(alert.until) if alert.until is not None else "goes on"
        rows.append((alert.name, alert.severity or "–", of or "–", *times, until, "; ".join(alert.silenced) or "–"))
    return rows


def side_by_side(report: Report) -> dict[str, Any] | None:
    """What the runs are, one column each; rows in which they differ are marked."""
    if not report.others:
        return None
    cases = (report.case, *report.others)
    made = [
        ("outcome", [case.outcome for case in cases]),
        ("broke at step", [f"{case.trouble:,}" if case.trouble is not None else "–" for case in cases]),
        ("last step", [f"{case.last_step:,}" if case.last_step is not None else "–" for case in cases]),
    ]
    for name in dict.fromkeys(name for case in cases for name in case.run.scores):
        newest: list[Any] = [case.run.scores[name].values[-1:] if name in case.run.scores else [] for case in cases]
        made.append((f"newest {name}", [number(float(value[0])) if len(value) else "–" for value in newest]))
        if len(made) > 8:
            break
    made.append(("blocks", [f"{len(case.blocks):,}" for case in cases]))
    tables = [dict(environment_of(case)) for case in cases]
    names = dict.fromkeys(name for table in tables for name in table if name not in ("run", "began", "process"))
    made += [(name, [table.get(name, "–") for table in tables]) for name in names]
    rows = [Row(name, tuple(cells), len(set(cells)) > 1) for name, cells in made]
    return {"names": [case.name for case in cases], "rows": rows}


def compared(report: Report) -> list[tuple[str, str]]:
    """What `resmon diff` says, a sentence for each group of quantities."""
    comparison = report.comparison
    if comparison is None:
        return []
    said = []
    if comparison.structure is not None:
        said += [("structure", line) for line in structure_sentences(comparison.structure)]
    if comparison.divergence is not None:
        said.append(("behaviour", divergence_sentence(comparison.divergence)))
    return said + [(group, sentence(comparison, group)) for group in comparison.verdicts]


def environment_of(case: Case) -> list[tuple[str, str]]:
    """Where and how it ran."""
    info = case.info
    ranks = info["ranks"]
    rows = [
        ("run", f"{case.name}, attempt {case.run.attempt} of {count(len(info['attempts']), 'attempt')}"),
        ("command", " ".join(info.get("command") or ())),
        ("folder", info.get("working_directory") or ""),
        ("git commit", info.get("git_commit") or ""),
        ("seed", str(info["seed"]) if info.get("seed") is not None else ""),
        ("model", f"{info.get('model') or ''}, {count(len(case.blocks), 'residual block')}"),
        ("began", moment(info["started"]) if info.get("started") else ""),
        ("host", listed(info["hosts"], 8)),
        ("rank" if len(ranks) == 1 else "ranks", f"{listed(ranks, 8)} of {info.get('world_size') or 1:,}"),
        ("process", str(info.get("pid") or "")),
        *((f"{name} version", version or "") for name, version in info["versions"].items()),
        ("targets", ", ".join(info.get("targets") or ())),
    ]
    return [(name, value) for name, value in rows if value]
