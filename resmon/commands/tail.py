"""`resmon tail`: one run, as it goes on."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from resmon.commands.runs import Directory, find_run, runs_directory
from resmon.quantities import printable


def tail(
    run: Annotated[str, typer.Argument(help="Name of a run in the runs folder, or the path of its folder.")],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    directory: Directory = None,
) -> None:
    """Watch a run, live or finished, in the terminal; into a pipe goes one frame."""
    from resmon.terminal.tail import Tail, draws, page_of, show

    console = Console()
    attempt = find_run(run, runs_directory(directory))
    if (url := page_of(attempt)) is not None:
        console.print(Text.assemble(("in a browser  ", "dim"), url), soft_wrap=True)
    try:
        view = show(console, Tail(attempt), once=once or not draws(console))
    except KeyboardInterrupt:  # how one leaves
        return
    if view.incidents:
        from resmon.flight.frames import load
        from resmon.flight.lead_up import lead_up

        newest = list(view.incidents.values())[-1]
        console.print(Text(f"Before it: {printable(lead_up(load(attempt), newest.step).sentence)}"), soft_wrap=True)
    if view.end is not None and view.end.reason:
        console.print(Text(printable(view.end.reason), style="dim"))
