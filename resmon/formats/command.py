"""`resmon export`: from an attempt's folder to the files of another tool, with progress."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, Protocol

from rich.console import Console
from rich.text import Text

from resmon.errors import ConfigurationError
from resmon.formats.story import Moment, Story
from resmon.quantities import printable
from resmon.records import RunInfo

Form = Literal["tensorboard", "wandb", "parquet", "csv"]

PERIOD = 1.0  # seconds between two looks at a run that is followed


class Sink(Protocol):
    """Who takes an attempt step by step."""

    def add(self, moment: Moment, *, blocks: bool) -> None: ...
    def close(self) -> None: ...


def export(attempt: Path, to: Form, out: Path | None, *, follow: bool, every: int, console: Console) -> None:
    """Write the attempt, and say what was written and where.

    Raises ConfigurationError where the package that it needs is missing or the folder cannot be written, FlightError where nothing
    can be read.
    """
    folder = out or Path("export") / attempt.parent.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if to == "parquet" or to == "csv":
            _tables(attempt, to, folder, follow, console)
        else:
            _steps(attempt, to, folder, follow, every, console)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Name another with --out."
        ) from error


def _tables(attempt: Path, to: Literal["parquet", "csv"], folder: Path, follow: bool, console: Console) -> None:
    if follow:
        raise ConfigurationError(f"{to} files are written whole: without --follow, again whenever they are wanted.")
    from resmon.flight.frames import load
    from resmon.formats import tables

    flight = load(attempt)
    for path in tables.write(flight, folder, to):
        console.print(Text(f"{path}  {path.stat().st_size:,} bytes"), soft_wrap=True)


def _steps(attempt: Path, to: Literal["tensorboard", "wandb"], folder: Path, follow: bool, every: int, console: Console) -> None:
    story = Story(attempt)
    sink = _sink(to, folder, story.info)
    steps = first = last = 0
    try:
        with console.status("") as status:
            while True:
                moments = story.poll()
                for moment in moments:
                    sink.add(moment, blocks=moment.step % every == 0)
                    first = moment.step if not steps else first
                    steps, last = steps + 1, moment.step
                status.update(f"{printable(story.info.run)}: step {last:,}")
                if moments:
                    continue
                if story.over or not follow:
                    break
                time.sleep(PERIOD)
    except KeyboardInterrupt:  # the usual way to end what follows
        console.print("stopped")
    finally:
        sink.close()
    console.print(Text(f"{steps:,} steps, {first:,} to {last:,}, for {to} in {folder}"), soft_wrap=True)
    if (thinned := last - first + 1 - steps) > 0:
        console.print(f"{thinned:,} of the steps in between are not in the flight any more: older ones are thinned to bins")
    if story.skipped:
        console.print(f"{story.skipped:,} damaged rows were skipped")
    if to == "tensorboard":
        console.print(Text(f"tensorboard --logdir {folder}"), soft_wrap=True)


def _sink(to: Literal["tensorboard", "wandb"], folder: Path, info: RunInfo) -> Sink:
    try:
        if to == "tensorboard":
            from resmon.formats.tensorboard import TensorBoard

            return TensorBoard(folder)
        from resmon.formats.wandb import Wandb

        return Wandb(folder, info)
    except ImportError as error:
        raise ConfigurationError(f"{to} is not installed: pip install 'resmon[{to}]' ({error}).") from error
