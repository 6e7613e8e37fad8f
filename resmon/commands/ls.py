"""`resmon ls`: the runs of a folder, a line each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resmon.commands.runs import FOLDER, Directory, runs_directory
from resmon.quantities import printable, size


def list_runs(
    folder: Annotated[Path | None, typer.Argument(help=FOLDER)] = None,
    directory: Directory = None,
) -> None:
    """List the runs of a folder: outcome, steps, newest loss, blocks, size on disk, age, what broke."""
    from resmon.flight.summary import summaries

    folder = runs_directory(folder or directory)
    rows = summaries(folder)
    console = Console()
    if not rows:
        console.print(f"no runs in {folder}. A script that calls resmon.watch makes one; so does: resmon demo")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "attempt", "outcome", "steps", "loss", "blocks", "size", "age"):
        justify: Literal["left", "right"] = "left" if name in ("run", "outcome") else "right"
        # In a narrow terminal it is the name that is cut.
        table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=name != "run", min_width=8 if name == "run" else None)
    now = time.time()
    for row in rows:
        table.add_row(
            Text(printable(row.name)),
            str(row.attempt),
            Text(row.outcome, style={"running": "green", "finished": ""}.get(row.outcome, "red")),
            f"{row.steps:,}",
            "–" if row.loss is None else f"{row.loss:.4g}",
            f"{row.blocks:,}",
            size(row.size),
            _age(now - row.time),
        )
    console.print(table)
    for row in rows:
        if row.incident:
            console.print(Text.assemble((f"✖ {printable(row.name)}", "bold red"), f": {printable(row.incident)}"), soft_wrap=True)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
