"""The command `resmon`: one table of verbs, and what holds for all of them."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from resmon.commands.agent import agent
from resmon.commands.assets import assets
from resmon.commands.baseline import baseline
from resmon.commands.check import check
from resmon.commands.demo import demo
from resmon.commands.diff import diff
from resmon.commands.explain import explain
from resmon.commands.export import export
from resmon.commands.incidents import incidents
from resmon.commands.inspect import inspect
from resmon.commands.ls import list_runs
from resmon.commands.postmortem import postmortem
from resmon.commands.replay import replay
from resmon.commands.run import run_script
from resmon.commands.runbook import runbook
from resmon.commands.settings import settings
from resmon.commands.silence import silence
from resmon.commands.slo import application as slo
from resmon.commands.tail import tail
from resmon.errors import ResmonError

VERBS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("run", run_script),
    ("demo", demo),
    ("ls", list_runs),
    ("tail", tail),
    ("incidents", incidents),
    ("runbook", runbook),
    ("replay", replay),
    ("diff", diff),
    ("baseline", baseline),
    ("postmortem", postmortem),
    ("inspect", inspect),
    ("check", check),
    ("explain", explain),
    ("export", export),
    ("silence", silence),
    ("agent", agent),
    ("assets", assets),
    ("settings", settings),
)


# Verbs that have verbs of their own.
GROUPS: tuple[tuple[str, Callable[[], typer.Typer]], ...] = (("slo", slo),)


# What follows the script is the script's.
_REST = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def application() -> typer.Typer:
    """The command with all its verbs."""
    made = typer.Typer(
        help="resmon watches the residual blocks of neural networks while they train.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    made.callback()(_options)
    for name, function in VERBS:
        made.command(name, context_settings=_REST if function is run_script else None)(function)
    for name, verbs in GROUPS:
        made.add_typer(verbs(), name=name)
    return made


def main() -> None:
    """Run the command. What resmon raises on purpose is one message and exit status 2, anything else a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a terminal that has no ■ shows a question mark in its place
    try:
        application()(prog_name="resmon")
    except ResmonError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        # Nothing more can be written there, neither now nor when Python leaves.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _refuse(f"what it prints cannot be written: {error.strerror}. Free space there, or send it elsewhere.")


def _refuse(message: str) -> NoReturn:
    Console(stderr=True).print(Text(f"resmon: {message}", style="red"), soft_wrap=True)
    raise SystemExit(2) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        from resmon import __version__

        print(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What stands before the verb."""
