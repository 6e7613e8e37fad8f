"""`resmon slo`: rules from objectives, what is wrong with a specification, and what is left of the budgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

USUAL = "http://127.0.0.1:9090"  # where Prometheus listens unless it is told otherwise
NEARLY_GONE = 0.25  # of a budget

Specs = Annotated[
    list[Path] | None, typer.Argument(metavar="[SPEC...]", help="Files in sloth's form; resmon's own objectives unless named.")
]
Policy = Annotated[str, typer.Option(metavar="NAME|FILE", help="Windows and burn rates: workbook, burn-rate-2, or a file.")]
Period = Annotated[str | None, typer.Option(help="Over which objectives hold: 7d, 28d, 90d; the policy's, 30d, unless named.")]


def generate(
    specs: Specs = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder: slo.yaml is written there, and tests/slo.yaml.")] = Path(
        "alerts"
    ),
    policy: Policy = "workbook",
    period: Period = None,
    runbooks: Annotated[str | None, typer.Option(help="Where the runbooks are that alerts link to.")] = None,
    dashboards: Annotated[str | None, typer.Option(help="Where the dashboards are.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit status 1 where a file would change.")] = False,
) -> None:
    """Write Prometheus' rules for objectives, and the unit tests of these rules."""
    from resmon.objectives import generation
    from resmon.objectives.rules import Addresses

    made = generation.make(specs, policy, period, Addresses.of(runbooks, dashboards))
    console = Console(soft_wrap=True)
    for remark in made.remarks:
        Console(stderr=True, soft_wrap=True).print(Text(remark, style="yellow"))
    if check:
        stale = generation.stale(made.files, output)
        for path in stale:
            console.print(Text(f"{path} is not what the objectives say now; make it anew with resmon slo generate", style="red"))
        if stale:
            raise typer.Exit(1)
        console.print(Text(f"{', '.join(str(output / name) for name in made.files)}: up to date"))
        return
    for path in generation.write(made.files, output):
        console.print(Text(str(path)))


def check(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Files in sloth's form.")],
    policy: Policy = "workbook",
    period: Period = None,
) -> None:
    """Name all that is wrong with specifications, by line, with exit status 2; and what may not be meant."""
    from resmon.objectives import generation

    made = generation.make(specs, policy, period)
    console = Console(soft_wrap=True)
    for remark in made.remarks:
        console.print(Text(remark, style="yellow"))
    for each in made.objectives:
        tiers = " and ".join(each.tiers) or "no"
        console.print(Text(f"{each.service}/{each.name}: {each.percent} % over {made.period}, {tiers} alerts"))


def report(
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help=f"A server that has the rules; the settings' unless named, else {USUAL}.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how each objective stands: how fast its error budget burns, what is left of it, which alerts fire."""
    from resmon.objectives.budgets import standings
    from resmon.quantities import printable
    from resmon.servers.prometheus import Prometheus
    from resmon.settings import Settings

    with Prometheus.of(Settings.of(prometheus=prometheus).prometheus or USUAL, attempts=2) as server:
        found = standings(server)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2, allow_nan=False))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("objective", "target", "over", "burn rate now", "in the period", "budget left", "firing"):
        table.add_column(name, justify="left" if name in ("objective", "firing") else "right", overflow="fold")
    for each in found:
        name = "/".join([each.service, each.slo, *(f"{label}={value}" for label, value in each.labels.items())])
        left = each.budget_left
        style = "" if left is None else "red" if left <= 0 else "yellow" if left < NEARLY_GONE else "green"
        table.add_row(
            Text(printable(name)),
            _number(each.objective, lambda value: f"{100 * value:.6g} %"),
            _number(each.period_days, lambda value: f"{value:.4g} d"),
            _number(each.current_burn_rate, lambda value: f"{value:.3g}"),
            _number(each.period_burn_rate, lambda value: f"{value:.3g}"),
            Text(_number(left, lambda value: f"{100 * value:.1f} %"), style=style),
            Text(printable(", ".join(each.firing)), style="red"),
        )
    console = Console()
    console.print(table)
    if any(each.current_burn_rate is None or each.budget_left is None for each in found):
        console.print(Text("– is where nothing happened that counts, so that there is no share of it.", style="dim"))


def _number(value: float | None, written: Callable[[float], str]) -> str:
    return "–" if value is None else written(value)


VERBS: Sequence[tuple[str, Callable[..., Any]]] = (("generate", generate), ("check", check), ("report", report))


def application() -> typer.Typer:
    made = typer.Typer(help="Service level objectives: rules, checks, and how they stand.", no_args_is_help=True)
    for name, function in VERBS:
        made.command(name)(function)
    return made
