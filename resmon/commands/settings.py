"""`resmon settings`: every setting, its value and where that comes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resmon.quantities import printable


def settings(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Arguments of watch to try, such as budget=100000000.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every setting, where its value comes from and what it is for. Names all that is wrong, with exit status 2."""
    from resmon.monitor.tuning import resolved as resolve
    from resmon.settings import Settings
    from resmon.settings.origins import VARIABLES

    resolved = resolve(dict(map(_name_and_value, arguments or ())))
    values = resolved.settings.model_dump(mode="json")
    if as_json:
        rows = [
            {"name": name, "value": values[name], "origin": asdict(resolved.origins[name]), "description": field.description}
            for name, field in Settings.model_fields.items()
        ]
        print(json.dumps({"settings": rows, "nits": [asdict(nit) for nit in resolved.nits]}, indent=2))
    else:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("setting", "value", "from", "for"):
            table.add_column(column, overflow="fold")
        for name, field in Settings.model_fields.items():
            origin = resolved.origins[name]
            table.add_row(
                name,
                Text(printable(_value(values[name]))),
                Text(origin.place, style="dim" if origin.kind == "default" else ""),
                Text(field.description or ""),
            )
        console = Console()
        console.print(table)
        console.print(
            "\nAn argument of watch goes before a variable of the environment (RESMON_ and the name), that before a key of the "
            "current folder's resmon.toml, that before the default.",
            style="dim",
        )
        for path in {origin.path for origin in resolved.origins.values() if origin.path}:
            console.print(Text(f"resmon.toml is {path}.", style="dim"))
        for variable, purpose in VARIABLES.items():
            console.print(Text(f"{variable}, only in the environment: {purpose}.", style="dim"))
    resolved.without_nits()


def _name_and_value(argument: str) -> tuple[str, str]:
    name, equals, value = argument.partition("=")
    if not equals:
        raise typer.BadParameter(f"{argument!r} is no NAME=VALUE, such as budget=100000000")
    return name.strip(), value.strip()


def _value(value: Any) -> str:
    """A setting's value as one would write it."""
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return json.dumps(value) if value else ""
    return "–" if value is None else str(value)
