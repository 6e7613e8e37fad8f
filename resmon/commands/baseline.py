"""`resmon baseline`: what a run's blocks put out while it was well, saved or compared with."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resmon.commands.runs import Directories, run_folder, step_range
from resmon.quantities import printable


def baseline(
    action: Annotated[Literal["save", "compare"], typer.Argument(help="save NAME RUN, or compare RUN NAME.")],
    first: Annotated[str, typer.Argument(metavar="NAME|RUN", help="save: the baseline's name, NAME.json here. compare: the run.")],
    second: Annotated[str, typer.Argument(metavar="RUN|NAME", help="save: the run. compare: the baseline's name or file.")],
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="These steps of the run; else its last half, before anything broke.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a baseline of that name.")] = False,
    shift: Annotated[float, typer.Option(min=0.0, help="Population stability index from which on a block has drifted.")] = 0.1,
    alpha: Annotated[float, typer.Option(min=0.0, max=1.0, help="False-discovery rate over the blocks.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    directory: Directories = None,
) -> None:
    """Save what a run's blocks put out while it was well, or compare a run with that. Exit status 1 where a block has drifted."""
    from resmon.diff import baseline as baselines

    run, name = (second, first) if action == "save" else (first, second)
    measured = baselines.measure(run_folder(run, directory), *step_range(steps))
    path = baselines.file_of(name)
    console = Console()
    if action == "save":
        baselines.save(measured, path, force)
        text = f"{len(measured.blocks)} blocks of {measured.run}, steps {measured.first_step:,} to {measured.last_step:,}: {path}"
        console.print(Text(printable(text)), soft_wrap=True)
        return
    compared = baselines.compare(measured, baselines.load(path), alpha, shift)
    if as_json:
        print(json.dumps(asdict(compared) | {"drifted": len(compared.drifted)}, indent=2, allow_nan=False))
    else:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
        table.add_column("block", overflow="fold", min_width=7)
        table.add_column("", no_wrap=True)
        for title in ("PSI", "JS", "KS", "Wasserstein", "q", "samples"):
            table.add_column(title, justify="right", no_wrap=title != "Wasserstein", overflow="fold")
        for row in compared.rows:
            distances = (row.population_stability, row.jensen_shannon, row.kolmogorov_smirnov, row.wasserstein)
            values = [f"{value:.4f}" for value in distances]
            values.append("<0.0001" if row.q < 1e-4 else f"{row.q:.4f}")
            style = {"drifted": "red", "shifted": "yellow", "same": "green"}[row.verdict]
            block = printable(f"{row.model} {row.block}".strip())
            table.add_row(Text(block), Text(row.verdict, style=style), *values, f"{row.samples:,.0f}")
        console.print(table)
        if compared.missing:
            console.print(Text(printable(f"only on one side: {', '.join(compared.missing[:10])}"), style="yellow"), soft_wrap=True)
        console.print(Text(printable(baselines.sentence(compared))), soft_wrap=True)
    if compared.drifted:
        raise typer.Exit(1)
