"""What `resmon explain` says of a capsule: what its tensors hold and, where the module was run again, whether it happened again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from resmon.quantities import printable

if TYPE_CHECKING:
    from resmon.capture.forensics.capsule import Capsule, Verdict

TOLD = ("class", "module", "block", "operation", "line", "origin", "summary", "torch")


def as_json(read: Capsule, verdict: Verdict | None) -> dict[str, Any]:
    """The same as values that JSON has."""
    told: dict[str, Any] | None = None
    if verdict is not None:
        event = verdict.event
        what = {"operation": event.operation, "module": event.path, "line": event.line} if event else None
        told = {"event": what, "direction": verdict.direction, "nonfinite": verdict.nonfinite}
    known = {name: read.text(name) for name in TOLD}
    return known | {"tensors": [asdict(each) for each in read.seen()], "left_out": read.left_out, "verdict": told}


def render(path: Path, read: Capsule, verdict: Verdict | None) -> RenderableType:
    """For a terminal."""
    module = f"module {read.text('module') or 'the model itself'}, a {read.text('class')}; torch {read.text('torch')}"
    left_out = [Text(printable(f"left out, it was too large: {name}"), style="yellow") for name in read.left_out]
    return Group(
        Text(printable(read.text("summary")) or "The capsule does not say what failed."),
        Text(printable(module), style="dim"),
        _tensors(read),
        *left_out,
        *_verdict(path, verdict),
    )


def _tensors(read: Capsule) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("tensor", "shape", "dtype", "NaN", "Inf", "from", "to", "first at"):
        table.add_column(name, justify="left" if name in ("tensor", "dtype", "first at") else "right", overflow="fold")
    for each in read.seen():
        table.add_row(
            Text(printable(each.name), style="red" if each.nan or each.infinite else ""),
            "×".join(map(str, each.shape)),
            each.dtype,
            f"{each.nan:,}",
            f"{each.infinite:,}",
            "–" if each.smallest is None else f"{each.smallest:.4g}",
            "–" if each.largest is None else f"{each.largest:.4g}",
            "" if each.first is None else ", ".join(map(str, each.first)),
        )
    return table


def _verdict(path: Path, verdict: Verdict | None) -> list[Text]:
    if verdict is None:
        how = f"To repeat it: resmon explain {path} --module PACKAGE.MODULE:NAME, which makes that module or its model."
        return [Text(how, style="dim")]
    event = verdict.event
    if event is None:
        why = "what it depends on is in no tensor of its: other code, an attribute that was set later, another version of torch."
        return [Text(f"Run with what the capsule holds, the module stayed finite: {why}", style="yellow")]
    what = event.operation or f"{event.kind} {event.name}"
    what = f"the backward of {event.operation}" if verdict.direction == "backward" else what
    where = (f" in module {event.path}" if event.path else "") + (f", at {event.line}" if event.line else "")
    again = f"It happened again, in the {verdict.direction} pass: {what}{where}"
    return [Text(printable(again), style="red"), Text(f"Not finite: {', '.join(verdict.nonfinite)}", style="dim")]
