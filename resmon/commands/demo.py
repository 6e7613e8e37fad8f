"""`resmon demo`: a run to look at."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from resmon.commands.runs import Directory, runs_directory


def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="How long the healthy run trains.")] = 60.0,
    directory: Directory = None,
) -> None:
    """Train a small residual network on real images, watch it, then let it blow up and see which block went first."""
    from resmon.terminal.demo import run_demo

    run_demo(Console(), runs_directory(directory), seconds)
