"""The agent's index page: what it follows, and where the numbers are."""

from __future__ import annotations

from html import escape

from resmon.exporters.view import AgentView, RunView

STYLE = "body{font:15px system-ui,sans-serif;margin:2em}td,th{padding:.2em 1em .2em 0;text-align:left}"


def page(view: AgentView) -> str:
    """The page. Everything that comes from a flight is escaped."""
    rows = "".join(map(_row, view.runs)) or "<tr><td colspan=7>none at the moment</td></tr>"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>resmon</title>'
        f"<style>{STYLE}</style><h1>resmon {escape(view.version)}</h1>"
        '<p><a href="/metrics">metrics</a> · <a href="/-/healthy">healthy</a> · <a href="/-/ready">ready</a></p>'
        "<table><tr><th>run<th>attempt<th>state<th>step<th>blocks<th>open findings<th>incidents</tr>"
        f"{rows}</table></html>\n"
    )


def _row(run: RunView) -> str:
    steps = [rank.record.step for rank in run.ranks if rank.record is not None]
    findings = "; ".join(finding.summary for finding, is_open in run.findings if is_open)
    cells = (
        run.run,
        str(run.info.attempt),
        run.outcome or ("stalled" if run.is_stalled else "under way"),
        str(max(steps)) if steps else "–",
        str(sum(run.watched.values())) if run.watched else "–",
        findings or "–",
        " ".join(f"{incident.summary} {incident.advice}" for incident in run.incidents[-3:]) or "–",
    )
    return "<tr>" + "".join(f"<td>{escape(_shown(cell))}" for cell in cells) + "</tr>"


def _shown(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= 500 else text[:500] + "…"
