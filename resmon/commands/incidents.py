"""`resmon incidents`: what broke in a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from resmon.commands.runs import Directory, find_run, runs_directory
from resmon.quantities import printable


def incidents(
    run: Annotated[str, typer.Argument(help="Name of a run in the runs folder, or the path of its folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    directory: Directory = None,
) -> None:
    """Show what broke in a run: what failed, where, since when, how sure that is, and what to do."""
    from resmon.flight.endings import of_attempt
    from resmon.flight.layout import ranks
    from resmon.flight.reader import read_stopped
    from resmon.flight.stalls import apart
    from resmon.terminal.incidents import next_commands, panel

    attempt = find_run(run, runs_directory(directory))
    found = of_attempt(attempt)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    console = Console()
    for each in found:
        console.print(panel(each))
        for command in next_commands(each, attempt):
            console.print(Text(printable(command)), soft_wrap=True)
    if why := apart(found)[1]:
        console.print(Text(why))
    stopped = [mark for folder in ranks(attempt).values() if (mark := read_stopped(folder)) is not None]
    if stopped:
        console.print(Text(printable(stopped[0].summary)))
    elif not found:
        console.print(Text(f"nothing that resmon saw broke in {run}"))
