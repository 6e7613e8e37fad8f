"""Incidents in a terminal: everything that is known of each, and nothing that is not."""

from __future__ import annotations

import json

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from resmon.origins import printable
from resmon.records import Incident

LONGEST = 300  # characters of a piece of evidence
FIELDS = ("advice", "model", "block", "module", "operation", "line", "origin", "confidence", "since", "checkpoint", "capsule")


def panel(incident: Incident) -> RenderableType:
    """One incident."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name in FIELDS:
        value = getattr(incident, name)
        if value not in ("", None):
            table.add_row(name, Text(printable(str(value))))
    if incident.runbook:
        table.add_row("runbook", Text(f"resmon runbook {printable(incident.runbook)}"))
    for name, value in incident.evidence.items():
        said = printable(json.dumps(value, ensure_ascii=False))
        table.add_row(Text(printable(name)), Text(said if len(said) <= LONGEST else f"{said[:LONGEST]}…", style="dim"))
    step = "" if incident.step is None else f" at step {incident.step:,}"
    title = Text(f"{incident.kind}{step}, rank {incident.rank}", style="bold red")
    return Panel(Group(Text(printable(incident.summary)), Text(), table), title=title, title_align="left", box=ROUNDED)
