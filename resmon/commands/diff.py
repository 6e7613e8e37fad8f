"""`resmon diff`: two kinds of runs, compared."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from resmon.commands.runs import Directory, find_runs, runs_directory, step_range
from resmon.errors import ConfigurationError


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The runs to compare with: NAME, NAME,NAME or 'PATTERN*'; paths too.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The runs in question, likewise.")],
    lower: Annotated[list[str] | None, typer.Option(help="A score that is better when lower, whatever its name says.")] = None,
    higher: Annotated[list[str] | None, typer.Option(help="A score that is better when higher.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="scores, speed, memory, gradients or blocks; all unless named.")] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Compare these steps; else scores and blocks by the last quarter.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every row; else the worst of each group.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit status 1 where B is worse beyond the spread between runs.")
    ] = False,
    directory: Directory = None,
) -> None:
    """Compare runs at equal steps: is B worse than A? Several runs of each, with different seeds, make an answer possible."""
    from resmon.diff.comparison import GROUPS, compare
    from resmon.diff.report import as_json as jsonable
    from resmon.diff.report import render

    unknown = sorted(set(only or ()) - set(GROUPS))
    if unknown:
        raise ConfigurationError(f"--only {unknown[0]} is no group of quantities. There are: {', '.join(GROUPS)}.")
    contrary = sorted(set(lower or ()) & set(higher or ()))
    if contrary:
        raise ConfigurationError(f"{contrary[0]!r} is named by --lower and by --higher. Name it once.")
    first, last = step_range(steps)
    folder = runs_directory(directory)
    comparison = compare(
        find_runs(a, folder),
        find_runs(b, folder),
        lower=lower or (),
        higher=higher or (),
        groups=[group for group in GROUPS if not only or group in only],
        first=first,
        last=last,
    )
    if as_json:
        print(json.dumps(jsonable(comparison), indent=2, allow_nan=False))
    else:
        Console().print(render(comparison, everything))
    if fail_if_worse and comparison.worse:
        raise typer.Exit(1)
