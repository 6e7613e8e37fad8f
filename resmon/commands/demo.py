"""`resmon demo`: a run to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from resmon.commands.runs import Directory, runs_directory
from resmon.errors import ConfigurationError


def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="How long the healthy run trains.")] = 60.0,
    directory: Directory = None,
) -> None:
    """Train a small residual network on real images, watch it, then let it blow up and see which block went first."""
    from resmon.terminal.demo import run_demo

    run_demo(Console(), runs_directory(made(directory)), seconds)


def made(directory: Path | None) -> Path | None:
    """The folder that was named, which a first run may make, as `resmon.watch` does."""
    if directory is not None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"the folder {directory} cannot be made: {error.strerror}. Name another one with --directory."
            ) from error
    return directory
