"""Incidents in a terminal: everything that is known of each, and nothing that is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from resmon.footprint import size
from resmon.origins import printable
from resmon.records import Incident
from resmon.terminal import sparkline

LONGEST = 300  # characters of a piece of evidence
MOST_BLOCKS = 8  # that memory is shown of
BAR = 20  # characters
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
        if value not in ("", None, [], {}):
            table.add_row(Text(printable(_words(name))), _shown(name, value))
    step = "" if incident.step is None else f" at step {incident.step:,}"
    title = Text(f"{incident.kind}{step}, rank {incident.rank}", style="bold red")
    return Panel(Group(Text(printable(incident.summary)), Text(), table), title=title, title_align="left", box=ROUNDED)


def _shown(name: str, value: Any) -> RenderableType:
    """A piece of evidence: what would fill a page of numbers as a picture."""
    try:
        if name == "blocks":
            return _memory_of_blocks(value)
        if name == "memory":
            return _memory(value)
        said = _said(name, value)
    except (TypeError, KeyError, ValueError, IndexError, OverflowError, OSError):  # a file may hold anything under that name
        said = str(value)
    said = printable(said)
    return Text(said if len(said) <= LONGEST else f"{said[:LONGEST]}…", style="dim")


def _memory_of_blocks(blocks: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What autograd keeps of each block, the largest first."""
    held = [(str(each["block"]), float(each["activation_bytes"])) for each in blocks]
    largest = max(count for _, count in held)
    lines = [
        f"{'█' * max(1, round(count / largest * BAR)):{BAR}} {size(count):>9}  {name}"
        for name, count in held[:MOST_BLOCKS]
        if largest > 0
    ]
    more = [f"and {len(held) - MOST_BLOCKS} more"] if len(held) > MOST_BLOCKS else []
    return Text("\n".join(map(printable, lines + more)), style="dim")


def _memory(steps: Sequence[Sequence[float | None]]) -> RenderableType:
    """Memory in use over the last steps."""
    used = [(int(step), float(in_use)) for step, in_use, *_ in steps if step is not None and in_use is not None]
    (first, before), (last, after) = used[0], used[-1]
    line = sparkline([in_use for _, in_use in used], BAR)
    return Text(f"{line} {size(before)} in use at step {first:,}, {size(after)} at step {last:,}", style="dim")


def _said(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        parts = (
            (key, "shape" if name == "tensors" else key, each) for key, each in value.items() if each not in ("", None, [], {})
        )
        return "; ".join(f"{_words(key)} {_said(kind, each)}" for key, kind, each in parts)
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(each, int) for each in value) and name in ("shape", "traced"):
            return "×".join(map(str, value))
        return (" | " if any(isinstance(each, Mapping) for each in value) else ", ").join(_said(name, each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and name.endswith("_bytes"):
        return size(value)
    if isinstance(value, (int, float)) and name.endswith("_time"):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return str(name).removesuffix("_bytes").replace("_", " ")
