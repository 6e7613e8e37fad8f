"""`resmon run`: a training script as it is, watched."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from resmon.commands.runs import Directory


def run_script(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="SCRIPT", help="The script that trains; what follows are its own arguments.")],
    as_module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module's name, as in python -m.")] = False,
    run: Annotated[str | None, typer.Option("--run", "-r", help="The run's name.")] = None,
    model_name: Annotated[str | None, typer.Option(help="The label `model`; the model's class unless named.")] = None,
    directory: Directory = None,
    agent_: Annotated[Literal["auto", "off"] | None, typer.Option("--agent", help="off only records.")] = None,
) -> None:
    """Run a training script as it is, and watch what it trains. Also: torchrun --no-python resmon run train.py."""
    from resmon.integrations import script

    given = {"run": run, "model_name": model_name, "directory": directory, "agent": agent_}
    settings = {name: value for name, value in given.items() if value is not None}
    script.run(target, context.args, settings, as_module=as_module)
