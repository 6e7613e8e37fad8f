"""The runs, and the steps of them, that are named on a command line."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from resmon.errors import ConfigurationError, FlightError
from resmon.flight import layout

FOLDER = "Folder of the runs; runs/ unless settings say otherwise."
Directory = Annotated[Path | None, typer.Option("--directory", "-d", help=FOLDER)]
SEVERAL = f"{FOLDER} Once for each machine that has ranks of the run; also 'GLOB*' and URLs such as s3://bucket/runs."
Directories = Annotated[list[str] | None, typer.Option("--directory", "-d", help=SEVERAL)]

_KEPT: list[object] = []  # folders that last as long as the command


def runs_directory(directory: Path | None) -> Path:
    if directory is None:
        from resmon.settings import Settings

        return Settings.of().directory
    if not directory.is_dir():
        raise ConfigurationError(f"there is no folder {directory}. Name the folder that holds the runs.")
    return directory


def find_run(run: str, directory: Path) -> Path:
    """The newest attempt of a run that is named, or whose folder (or whose attempt's folder) is. Raises FlightError."""
    if not run:
        raise FlightError("no run is named: the name given is empty. `resmon ls` lists the runs.")
    path = Path(run)
    if layout.attempt_number(path) is not None and layout.ranks(path):
        return path
    for folder in (directory / layout.safe_name(run), directory / run, path):
        attempts = layout.attempts(folder)
        newest = attempts[max(attempts)] if attempts else folder
        if not layout.ranks(newest) and (refused := layout.not_let_in(newest)):
            raise FlightError(f"the run {run!r} cannot be read. {refused}")
        if attempts:
            return newest
    names = [folder.name for folder in layout.runs(directory)]
    near = get_close_matches(run, names, n=3) or names[:3]
    there = f"It holds {', '.join(near)}{' and others' if len(names) > len(near) else ''}." if near else "It holds no runs."
    there = layout.not_let_in(directory) if not near and directory in layout.closed(directory) else there
    raise FlightError(
        f"there is no run {run!r} in {_spoken(directory)}. {there} `resmon ls` lists them; --directory names another folder."
    )


def find_runs(runs: str, directory: Path) -> list[Path]:
    """The newest attempts of several runs: one that is called so, or names and patterns with commas between. Raises FlightError."""
    try:
        return [find_run(runs, directory)]
    except FlightError:
        parts = [part.strip() for part in runs.split(",") if part.strip()]
        if len(parts) <= 1 and not _is_pattern(runs):
            raise
    found: list[Path] = []
    for part in parts:
        if not _is_pattern(part):
            found.append(find_run(part, directory))
            continue
        folders = [folder for folder in layout.runs(directory) if fnmatchcase(folder.name, part)]
        folders = folders or [folder for folder in layout.runs(Path(part).parent) if fnmatchcase(folder.name, Path(part).name)]
        if not folders:
            raise FlightError(
                f"no run in {_spoken(directory)} matches {part!r}. `resmon ls` lists them; --directory names another folder."
            )
        found += [find_run(str(folder), directory) for folder in folders]
    return found


def _spoken(directory: Path) -> str:
    return "this folder" if directory == Path() else str(directory)  # ". It" reads as the folder above


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def run_folder(run: str, directories: list[str] | None) -> Path:
    """The newest attempt of a run, gathered where several folders are named."""

    directory = _one(directories)
    return _gathered(run, directories or []) if directory is None else find_run(run, directory)


def run_folders(runs: str, directories: list[str] | None) -> list[Path]:
    """Those of several runs, as find_runs reads names."""

    directory = _one(directories)
    return [_gathered(runs, directories or [])] if directory is None else find_runs(runs, directory)


def _one(directories: list[str] | None) -> Path | None:
    """The one folder of runs; None where they are several."""
    from resmon.flight.gathering import is_several

    named = directories or []
    if len(named) > 1 or any(map(is_several, named)):
        return None
    return runs_directory(Path(named[0]) if named else None)


def _gathered(run: str, directories: list[str]) -> Path:
    """The run of all the ranks that the folders have, and a word on what they have besides."""
    from resmon.flight.gathering import gather

    found = gather(f"{directory.rstrip('/')}/{layout.safe_name(run)}" for directory in directories)
    for note in found.notes:
        Console(stderr=True, soft_wrap=True).print(Text(note, style="yellow"))
    _KEPT.append(found)
    return max(layout.attempts(found.folder).items())[1]


def step_range(text: str | None) -> tuple[int | None, int | None]:
    """FIRST:LAST, of which either may be left out."""
    if text is None:
        return None, None
    first, colon, last = text.partition(":")
    if not colon or not all(end == "" or (end.isascii() and end.isdecimal()) for end in (first, last)):
        raise ConfigurationError(f"--steps {text!r} cannot be read; write FIRST:LAST, such as 500:1000, 500: or :1000.")
    return int(first) if first else None, int(last) if last else None
