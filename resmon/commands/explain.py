"""`resmon explain`: a failure, from its capsule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def explain(
    capsule: Annotated[Path, typer.Argument(help="A capsule-*.safetensors of a rank's folder, which an incident names.")],
    module: Annotated[
        str | None,
        typer.Option(
            "--module",
            "-m",
            metavar="PACKAGE.MODULE:NAME",
            help="Makes the module, or its whole model: its code is run with what the capsule holds.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Repeat a failure from its capsule. Without --module no code is run: what the tensors hold is shown."""
    from resmon.capture.discovery.target import load_target
    from resmon.capture.forensics import capsule as capsules
    from resmon.terminal.explanation import as_json as jsonable
    from resmon.terminal.explanation import render

    read = capsules.read(capsule)
    verdict = capsules.run(read, load_target(module)[0]) if module else None
    if as_json:
        print(json.dumps(jsonable(read, verdict), indent=2))
    else:
        Console().print(render(capsule, read, verdict), soft_wrap=True)
