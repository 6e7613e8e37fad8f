"""`resmon runbook`: a page for whoever is on call, filled in for a run where one is named."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from resmon.commands.runs import Directory, find_run, runs_directory


def runbook(
    name: Annotated[str | None, typer.Argument(help="Which; all are listed where neither this nor a run is given.")] = None,
    run: Annotated[
        str | None, typer.Option("--run", "-r", help="Fill in this run's values, run the commands, and show what they print.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The checkpoint to name, where the run has named none.")] = None,
    model: Annotated[str | None, typer.Option(help="package.module:name of the model, for commands that need it.")] = None,
    directory: Directory = None,
) -> None:
    """Show a runbook: what a failure means, how to look into it, what to do. With a run, its diagnosis is done."""
    from rich.markdown import Markdown

    from resmon.flight.frames import load
    from resmon.handbook import diagnosis as books
    from resmon.handbook import pages as handbook

    console = Console()

    def show(text: str) -> None:
        if console.is_terminal:
            console.print(Markdown(text))
        else:  # to be pasted into a ticket
            print(text.strip("\n"), end="\n\n", flush=True)

    if run is None:
        if name is not None:
            show(handbook.runbook(name).text)
            return
        for each in handbook.names():
            print(each)
        return
    flight = load(find_run(run, runs_directory(directory)))
    trouble = books.Trouble.of(flight)
    chosen = name or trouble.runbook
    if chosen is None:
        console.print(Text(f"nothing is wrong with {flight.info['run']} as far as resmon saw: it is {flight.outcome}"))
        return
    more = {"CHECKPOINT": checkpoint, "MODEL": model}
    width = console.width - 2 * console.is_terminal  # a block of Markdown has a margin there
    for part in books.page(handbook.runbook(chosen), trouble, {key: value for key, value in more.items() if value}, width):
        show(part)
