"""`resmon assets`: alert rules and dashboards, written from resmon's own tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from resmon.errors import ConfigurationError


def assets(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIRECTORY", help="Folder with alerts/ and dashboards/; the current one unless given."),
    ] = Path(),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit status 1 where a file is not as it would be.")
    ] = False,
    runbooks: Annotated[str | None, typer.Option(metavar="URL", help="Where the runbooks are; runbook_url begins with it.")] = None,
    dashboards: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the dashboards are; dashboard_url begins with it.")
    ] = None,
    only: Annotated[
        Literal["alerts", "dashboards", "deploy"] | None, typer.Option(help="Nothing but what is below that folder.")
    ] = None,
) -> None:
    """Write rules and their unit tests for Prometheus and dashboards for Grafana, from resmon's own tables."""
    from resmon.assets import FOLDERS, Links, differing, write

    links = Links.of(runbooks, dashboards)
    folders = FOLDERS if only is None else (only,)
    if check:
        stale = differing(folder, links, folders)
        for path in stale:
            print(f"{folder / path} is not as it would be written now")
        if stale:
            print("resmon assets, with the same options, writes them anew")
            raise typer.Exit(1)
        return
    try:
        written = write(folder, links, folders)
    except OSError as error:
        raise ConfigurationError(f"{error.filename or folder} cannot be written: {error.strerror}. Name another folder.") from error
    for path in written:
        print(folder / path)
