"""`resmon check`: a model before it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from resmon.errors import ConfigurationError


def check(
    model: Annotated[str, typer.Argument(help="package.module:name of a model, its class or a function that makes it.")],
    input: Annotated[  # noqa: A002, the option's name
        list[str] | None,
        typer.Option("--input", "-i", help="An input, once for each, as for inspect: 8,3,32,32 or int:8,128:50257."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", "-b", help="A batch size to try besides the given one; 1, 2 and 3 unless named.")
    ] = None,
    no_batches: Annotated[bool, typer.Option("--no-batches", help="The inputs' first dimension is no batch: try none.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 for warnings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file, for a CI server.")] = None,
) -> None:
    """Check a model before it trains: shapes, gradients, initial weights, memory. Exit status 1 where something is wrong."""
    from resmon.capture.fitting import check as checking
    from resmon.terminal.verdict import as_json as jsonable
    from resmon.terminal.verdict import as_junit, is_good, render

    report = checking.check(model, input or (), () if no_batches else batch or checking.BATCHES)
    if as_json:
        print(json.dumps(jsonable(report, strict), indent=2, allow_nan=False))
    else:
        Console().print(render(report, checking.KINDS))
    if junit is not None:
        try:
            junit.write_bytes(as_junit(report, checking.KINDS, strict))
        except OSError as error:
            raise ConfigurationError(f"--junit {junit} cannot be written: {error}. Name another file.") from error
    if not is_good(report, strict):
        raise typer.Exit(1)
