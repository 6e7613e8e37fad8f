"""`resmon ls`: the runs of a folder, a line each."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resmon.commands.runs import FOLDER, Directory, runs_directory
from resmon.quantities import printable, size

COLUMNS = ("run", "attempt", "outcome", "steps", "loss", "blocks", "size", "age")

# What a narrow terminal goes without, first to last: a run's name and outcome are never left out.
_DISPENSABLE = ("attempt", "blocks", "size", "age", "loss", "steps")
_NAME = 8  # characters of a name that there is room for, before other columns go
_GAP = 2  # between columns
_ENDLESS = 100_000  # of a pipe or a file, which has no right edge: nothing is cut in it


def list_runs(
    folder: Annotated[Path | None, typer.Argument(help=FOLDER)] = None,
    directory: Directory = None,
) -> None:
    """List the runs of a folder: outcome, steps, newest loss, blocks, size on disk, age, what broke."""
    from resmon.flight import layout
    from resmon.flight.summary import summaries

    folder = runs_directory(folder or directory)
    rows = summaries(folder)
    console = Console() if Console().is_terminal or "COLUMNS" in os.environ else Console(width=_ENDLESS)
    refused = layout.not_let_in(folder)
    if not rows:
        nothing = "A script that calls resmon.watch makes one; so does: resmon demo"
        console.print(Text(f"no runs in {folder}. {printable(refused) or nothing}"), soft_wrap=True)
        return
    now = time.time()
    cells = [
        (
            Text(printable(row.title)),
            Text(str(row.attempt)),
            Text(row.outcome, style={"running": "green", "finished": ""}.get(row.outcome, "red")),
            Text(f"{row.steps:,}"),
            Text("–" if row.loss is None else f"{row.loss:.4g}"),
            Text(f"{row.blocks:,}"),
            Text(size(row.size)),
            Text(_age(now - row.time)),
        )
        for row in rows
    ]
    widths = {name: max(len(name), *(line[i].cell_len for line in cells)) + _GAP for i, name in enumerate(COLUMNS) if name != "run"}
    for name in _DISPENSABLE:
        if _NAME + sum(widths.values()) > console.width:
            del widths[name]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", overflow="ellipsis", no_wrap=True, max_width=max(_NAME, console.width - sum(widths.values())))
    for name in widths:
        # In a narrow terminal it is the name that is cut.
        table.add_column(name, justify="left" if name == "outcome" else "right", no_wrap=True, min_width=widths[name] - _GAP)
    for line in cells:
        table.add_row(*(cell for name, cell in zip(COLUMNS, line, strict=True) if name == "run" or name in widths))
    console.print(table)
    for row in rows:
        if row.incident:
            console.print(Text.assemble((f"✖ {printable(row.title)}", "bold red"), f": {printable(row.incident)}"), soft_wrap=True)
        if row.unread:
            what = f": None of its steps can be read: {printable(row.unread)}"
            console.print(Text.assemble((f"✖ {printable(row.title)}", "bold red"), what), soft_wrap=True)
    if refused:
        console.print(Text(printable(refused), style="yellow"), soft_wrap=True)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
