"""`resmon inspect`: the residual blocks of a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from resmon.errors import DiscoveryError
from resmon.quantities import count


def inspect(
    model: Annotated[str, typer.Argument(help="package.module:name of a model, its class or a function that makes it.")],
    input: Annotated[  # noqa: A002, the option's name
        list[str] | None,
        typer.Option(
            "--input", "-i", help="A random input, once for each: a shape, 8,3,32,32, or token ids, int:8,128:50257 (below 50257)."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the residual blocks that resmon finds in a model."""
    from resmon.capture.discovery.sites import look
    from resmon.capture.discovery.survey import tell
    from resmon.capture.discovery.target import load_target, parameter_count, random_input

    module, args, kwargs = load_target(model)
    if input:
        args = tuple(random_input(text) for text in input)
    try:
        sites, unseen = look(module, args, kwargs)
    except DiscoveryError as error:
        if input or args or kwargs:
            raise
        raise DiscoveryError(f"{error} Here: --input with the shape of each, such as -i 8,3,32,32.") from error
    for sentence in tell(unseen, type(module).__name__):
        Console(stderr=True).print(sentence, style="yellow", highlight=False, soft_wrap=True)
    counts = [parameter_count(module, site.parameters) for site in sites]
    if as_json:
        print(json.dumps([asdict(site) | {"parameter_count": n} for site, n in zip(sites, counts, strict=True)], indent=2))
        return
    console = Console()
    if not sites:
        console.print(f"{type(module).__name__} has no residual block: no addition joins a tensor and what a branch made of it.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("block", "kind", "branch", "skip", "shape", "parameters", "observed"):
        table.add_column(name, justify="right" if name == "parameters" else "left", overflow="fold")
    for site, parameters in zip(sites, counts, strict=True):
        table.add_row(
            site.name,
            site.kind,
            _paths(site.branch, site.module),
            _paths(site.skip, site.module) or "–",
            "×".join(map(str, site.shape)),
            f"{parameters:,}",
            site.observed,
        )
    console.print(table)
    console.print(f"{count(len(sites), 'residual block')} in {type(module).__name__}", style="dim")


def _paths(paths: tuple[str, ...], module: str) -> str:
    """Module paths, those below the site's own module without it."""
    return ", ".join(path.removeprefix(f"{module}.") for path in paths)
