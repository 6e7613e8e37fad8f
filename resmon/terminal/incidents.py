"""Incidents in a terminal: everything that is known of each, and nothing that is not."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from resmon.flight import layout
from resmon.quantities import moment, printable, size
from resmon.records import Incident
from resmon.terminal.view import sparkline

LONGEST = 300  # characters of a piece of evidence
WIDEST = 32  # characters of its name
MOST = 8  # lines of a list
FIELDS = ("advice", "model", "block", "module", "operation", "line", "origin", "confidence", "since", "checkpoint")
BAR = 20  # characters
BYTES = "_bytes"  # what the names of sizes end with
SHAPES = ("shape", "traced")
LAST_TIME = 253402300800.0  # seconds: the year 10000


def panel(incident: Incident) -> RenderableType:
    """One incident."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name in FIELDS:
        value = getattr(incident, name)
        if value not in ("", None):
            table.add_row(name, Text(printable(str(value))))
    for name, value in incident.evidence.items():
        for i, line in enumerate(_lines(name, value)):
            said = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
            table.add_row(Text(printable("" if i else _spoken(name))), Text(printable(said), style="dim"))
    step = "" if incident.step is None else f" at step {incident.step:,}"
    title = Text(f"{incident.kind}{step}, rank {incident.rank}", style="bold red")
    return Panel(Group(Text(printable(incident.summary)), Text(), table), title=title, title_align="left", box=ROUNDED)


def next_commands(incident: Incident, attempt: Path) -> Iterator[str]:
    """What to run next for an incident of that attempt, as it can be pasted."""
    if incident.capsule:
        yield shlex.join(["resmon", "explain", str(layout.ranks(attempt)[incident.rank] / incident.capsule)])
    if incident.runbook:
        yield shlex.join(["resmon", "runbook", incident.runbook, "--run", str(attempt)])


def _lines(name: str, value: Any) -> Iterator[str]:
    """A piece of evidence; none where it says nothing."""
    if not _says(value):
        return
    if name == "memory" and isinstance(value, list):
        yield from _memory(value)
    elif name == "blocks" and isinstance(value, list) and (held := _held(value)):
        largest = max(count for _, count in held)
        for block, count in held[:MOST]:
            yield f"{'█' * round(count / largest * BAR):{BAR}} {size(count):>9}  {block}"
        if len(held) > MOST:
            yield f"and {len(held) - MOST:,} more"
    elif name == "stack" and isinstance(value, list):
        yield from map(str, value[-MOST:])
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        for each in value[:MOST]:
            yield _said(name, each)
        if len(value) > MOST:
            yield f"and {len(value) - MOST:,} more"
    else:
        yield _said(name, value)


def _spoken(name: str) -> str:
    said = name.removesuffix(BYTES).replace("_", " ")
    return said if len(said) <= WIDEST else f"{said[:WIDEST]}…"


def _says(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _said(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        parts = [(str(inner), each) for inner, each in value.items() if _says(each)]
        within = "shape" if name == "tensors" else ""
        return ", ".join(
            _spoken(inner) if each is True else f"{_spoken(inner)} {_said(within or inner, each)}" for inner, each in parts
        )
    if name.endswith(BYTES) and isinstance(value, (int, float)):
        return size(value)
    if isinstance(value, list) and all(isinstance(each, (str, int)) for each in value):
        return ("×" if name in SHAPES else ", ").join(map(str, value))
    if name.endswith("_time") and isinstance(value, float) and 0 <= value < LAST_TIME:
        return moment(value)
    return f"{value:,.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _held(blocks: list[Any]) -> list[tuple[str, float]]:
    """What autograd keeps of each block, where that is what they are listed for."""
    found = [(str(each.get("block")), each.get("activation_bytes")) for each in blocks if isinstance(each, Mapping)]
    held = [(block, float(count)) for block, count in found if isinstance(count, (int, float)) and 0 <= count < math.inf]
    return held if any(count for _, count in held) else []


def _memory(rows: list[Any]) -> Iterator[str]:
    """What was in use and what was free in the last steps: where it changed, so that a slope and a jump are told apart."""
    known = [row for row in rows if isinstance(row, list) and len(row) == 3 and isinstance(row[1], (int, float))]
    changed = [row for i, row in enumerate(known) if not i or size(row[1]) != size(known[i - 1][1])]
    if len(changed) > MOST:
        yield sparkline([row[1] for row in known], BAR)
        changed = [changed[0], *changed[1 - MOST :]]
    for step, used, free in [*changed, *known[-1:]] if known[-1:] != changed[-1:] else changed:
        yield f"step {step}: {size(used)} in use" + (f", {size(free)} free" if isinstance(free, (int, float)) else "")
