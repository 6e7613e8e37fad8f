"""`resmon agent`: the agent, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resmon.commands.runs import runs_directory


def agent(
    listen: Annotated[str | None, typer.Option(help="HOST:PORT to serve on; 127.0.0.1:9699 unless settings say otherwise.")] = None,
    linger: Annotated[float, typer.Option(min=0.0, help="Seconds that an ended run's series stay if nobody scrapes.")] = 90.0,
    grace: Annotated[
        float, typer.Option(min=0.0, help="Seconds to stay after SIGTERM, at most, until ended runs have been scraped.")
    ] = 0.0,
    max_series: Annotated[int | None, typer.Option(help="Most series of a run; 10,000 unless settings say otherwise.")] = None,
    web_config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Who may read, and the certificate (docs/security.md); the settings' unless named."),
    ] = None,
    served_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which it is asked besides its address; several times for several."),
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OTLP receiver to push to (docs/opentelemetry.md); the settings' unless named."),
    ] = None,
    otlp_interval: Annotated[
        float | None, typer.Option(help="Seconds between two pushes of metrics; 15 unless settings say otherwise.")
    ] = None,
    directory: Annotated[
        list[Path] | None,
        typer.Option("--directory", "-d", help="Folder of runs that its page is to list as well; several may be named."),
    ] = None,
) -> None:
    """Follow the flights of this machine, for browsers and for Prometheus. `resmon.watch` starts one by itself."""
    from resmon.agent import service
    from resmon.settings import Settings

    names = tuple(served_name) if served_name else None
    chosen = Settings.of(
        listen=listen,
        max_series=max_series,
        web_config=web_config,
        served_names=names,
        otlp=otlp,
        otlp_interval=otlp_interval,
    )
    directories = [runs_directory(each) for each in directory or ()]
    service.main(
        chosen.listen,
        linger,
        chosen.max_series,
        grace,
        chosen.web_config,
        chosen.served_names,
        directories,
        chosen.otlp,
        chosen.otlp_interval,
    )
