"""`resmon export`: a run in the form of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from resmon.commands.runs import Directories, run_folder


def export(
    run: Annotated[str, typer.Argument(help="Name of a run in the runs folder, or the path of its folder.")],
    to: Annotated[Literal["tensorboard", "wandb", "parquet", "csv"], typer.Option(help="What for.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write into; export/RUN unless named.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over; TensorBoard and W&B only.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Blocks at every so manieth step; TensorBoard and W&B only.")] = 10,
    directory: Directories = None,
) -> None:
    """Write a run, live or finished, in the form of another tool."""
    from resmon.formats import command

    command.export(run_folder(run, directory), to, out, follow=follow, every=every, console=Console())
