"""`resmon postmortem`: the report on a run that broke."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from resmon.commands.runs import Directories, run_folders
from resmon.errors import ConfigurationError
from resmon.quantities import printable


def postmortem(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs: NAME, NAME,NAME or 'PATTERN*'; paths too.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write, - for the terminal; postmortem-RUN-ATTEMPT.html unless named."),
    ] = None,
    form: Annotated[str, typer.Option("--format", "-f", help="html, markdown or json.")] = "html",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this Prometheus which alerts fired; the settings' unless named.")
    ] = None,
    alertmanager: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask this Alertmanager which of them were silenced; likewise.")
    ] = None,
    directory: Directories = None,
) -> None:
    """Tell what happened to a run that broke: what was first, what followed, why, what to do; beside healthy runs, if named."""
    from resmon.postmortem import markdown, page
    from resmon.postmortem.alerts import asked
    from resmon.postmortem.report import as_json as jsonable
    from resmon.postmortem.report import make
    from resmon.settings import Settings

    endings = {"html": "html", "markdown": "md", "json": "json"}
    if form not in endings:
        raise ConfigurationError(f"--format {form} is none. There are: {', '.join(endings)}.")
    folders = [path for run in runs for path in run_folders(run, directory)]
    servers = Settings.of(prometheus=prometheus, alertmanager=alertmanager)
    ask = asked(servers.prometheus, servers.alertmanager) if servers.prometheus else None
    progress = Console(stderr=True)
    with progress.status("reading") as status:
        report = make(folders, lambda what: status.update(Text(printable(what))), ask)
        status.update("writing")
        if form == "json":
            text = json.dumps(jsonable(report), indent=2, allow_nan=False) + "\n"
        else:
            text = markdown.render(report) if form == "markdown" else page.render(report)
    if output == Path("-") or (output is None and form != "html"):
        print(text, end="")
        return
    path = output or Path(f"{page.file_name(report)}.{endings[form]}")
    if path.exists() and not force:
        raise ConfigurationError(
            f"{path} is there already, and may have been filled in. Write over it with --force, or name another."
        )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}. Name another file with --output.") from error
    Console(soft_wrap=True).print(Text(printable(" ".join(report.summary))), Text(f"\n{path}"), sep="\n")
