"""`resmon silence`: alerts that are to notify nobody for a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from resmon.errors import ConfigurationError


def silence(
    action: Annotated[
        Literal["add", "list", "extend", "expire"], typer.Argument(help="add one, list them, extend ID or expire ID.")
    ] = "add",
    identity: Annotated[str | None, typer.Argument(metavar="ID", help="Of the silence to extend or to expire.")] = None,
    run: Annotated[str | None, typer.Option("--run", "-r", help="Alerts of this run.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Alerts of this model, whatever the run.")] = None,
    block: Annotated[str | None, typer.Option("--block", "-b", help="Alerts of this block.")] = None,
    alert: Annotated[str | None, typer.Option("--alert", "-a", help="Alerts of this name, such as ResmonDeadBranch.")] = None,
    matcher: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=VALUE", help="Any label, once for each: 'block=~\"h[.].*\"', also != and !~.")
    ] = None,
    lasts: Annotated[str | None, typer.Option("--for", help="How long from now: 30m, 2h, 1d12h; 30d at the most.")] = None,
    comment: Annotated[str | None, typer.Option("--comment", "-c", help="Why: whoever is on call reads it.")] = None,
    author: Annotated[str | None, typer.Option(help="Who; user@host unless named.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="List those that are over, too.")] = False,
    alertmanager: Annotated[
        str | None, typer.Option(metavar="URL", help="Alertmanager's address; the settings' unless named.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Keep alerts from notifying anybody for a time. What is planned is silenced; the alerts still fire and are seen."""
    from resmon.rules.durations import written
    from resmon.servers.alertmanager import Alertmanager, Matcher, checked, length, skew_sentence
    from resmon.servers.alertmanager.table import as_json as jsonable
    from resmon.servers.alertmanager.table import covers, table
    from resmon.settings import Settings

    names = {"run": run, "model": model, "block": block, "alertname": alert}
    matchers = [Matcher(name, value) for name, value in names.items() if value]
    readable = len(matchers) + len(matcher or ())

    def covers_something() -> None:
        if action == "add" and len(matchers) == readable:
            checked(matchers, comment or "told above")

    _all_at_once(
        lambda: Settings.of(alertmanager=alertmanager),
        *(partial(lambda text: matchers.append(Matcher.parse(text)), each) for each in matcher or ()),
        lambda: _fits_action(action, identity, lasts, comment, readable > 0),
        covers_something,
        lambda: lasts and action in ("add", "extend") and length(lasts),
    )
    console = Console(soft_wrap=True)
    with Alertmanager.of(Settings.of(alertmanager=alertmanager).alertmanager) as client:
        if action == "list":
            found = [each for each in client.silences(*matchers) if expired or each.state != "expired"]
            if as_json:
                print(json.dumps([jsonable(each) for each in found], indent=2))
            elif found:
                Console().print(table(found, client.now()))
            else:
                console.print("nothing is silenced")
        elif action == "add":
            made = client.create(matchers, lasts or "", comment or "", author=author or "")
            alerts = client.alerts(*made.matchers, silenced=True)
            if as_json:
                print(json.dumps(jsonable(made) | {"alerts": len(alerts)}, indent=2))
            else:
                left, until = written((made.ends - client.now()).total_seconds()), f"{made.ends:%Y-%m-%d %H:%M:%S} UTC"
                console.print(Text(f"{covers(made)} is silenced for {left}, until {until}."))
                console.print(Text(f"Of alerts that are there now it covers {len(alerts):,}."))
                console.print(Text(f"resmon silence extend {made.id} --for 2h\nresmon silence expire {made.id}"))
        elif action == "extend":
            made = client.extend(identity or "", lasts or "")
            if as_json:
                print(json.dumps(jsonable(made), indent=2))
            else:
                console.print(Text(f"{covers(made)} is silenced until {made.ends:%Y-%m-%d %H:%M:%S} UTC, as {made.id}."))
        else:
            made = client.expire(identity or "")
            if as_json:
                print(json.dumps(jsonable(made), indent=2))
            else:
                console.print(Text(f"{covers(made)} has not been silenced any more since {made.ends:%Y-%m-%d %H:%M:%S} UTC."))
        if not as_json and (said := skew_sentence(client.skew)):
            console.print(Text(said, style="yellow"))


def _all_at_once(*checks: Callable[[], object]) -> None:
    """Raises ConfigurationError with what each of them raises, in lines of their own."""
    told = []
    for check in checks:
        try:
            check()
        except ConfigurationError as error:
            told.append(str(error))
    if told:
        raise ConfigurationError("\n".join(told))


def _fits_action(action: str, identity: str | None, lasts: str | None, comment: str | None, matchers: bool) -> None:
    """Raises ConfigurationError with all that `resmon silence` was told too much or too little of for what it is to do."""
    needed = {"an ID": (identity, ("extend", "expire")), "--for": (lasts, ("add", "extend")), "--comment": (comment, ("add",))}
    nits = [f"{action} needs {name}" for name, (value, actions) in needed.items() if action in actions and not value]
    nits += [f"{action} takes no {name.removeprefix('an ')}" for name, (value, on) in needed.items() if action not in on and value]
    if matchers and action in ("extend", "expire"):
        nits.append(f"{action} takes an ID and no matchers")
    if nits:
        raise ConfigurationError(f"{'; '.join(nits)}. `resmon silence --help` shows what each takes.")
