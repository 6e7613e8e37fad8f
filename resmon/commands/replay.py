"""`resmon replay`: what the detectors say of a recorded run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from resmon.commands.runs import Directories, run_folder
from resmon.errors import ConfigurationError


def replay(
    run: Annotated[str, typer.Argument(help="Name of a run in the runs folder, or the path of its folder.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="DETECTOR.OPTION=VALUE",
            help=r"Try this on top of the run's own settings, once for each; of some blocks: 'dead_branch\[h.0.*].enabled=false'.",
        ),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(metavar="PACKAGE.MODULE:CLASS", help="A detector of your own to run too; its code is run."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    directory: Directories = None,
) -> None:
    """Run the detectors over a recorded run: what they say, as the agent did; with --set, what other settings would have said."""
    from rich.progress import Progress

    from resmon.detectors.own import OwnError, load
    from resmon.replay import report as replay_report
    from resmon.replay.comparison import against, compare
    from resmon.replay.detection import replay as replayed_of
    from resmon.replay.detection import settings_of
    from resmon.settings import Settings

    attempt = run_folder(run, directory)
    try:
        own = [load(name, [str(Path.cwd())]) for name in dict.fromkeys((*Settings.of().own_detectors, *(detector or ())))]
    except OwnError as error:
        raise ConfigurationError(f"{error}. docs/detectors.md shows how a detector is written.") from error
    tried = settings_of(changes, own) if changes else None
    progress = Console(stderr=True)
    with Progress(console=progress, transient=True, disable=not progress.is_terminal) as bars:
        bar: dict[int, Any] = {}

        def show(rank: int, share: float) -> None:
            if rank not in bar:
                bar[rank] = bars.add_task(f"rank {rank}", total=1.0)
            bars.update(bar[rank], completed=share)

        replayed = replayed_of(attempt, [{}] if tried is None else [{}, tried], own, show)
    agreement = None if replayed.under_way else against(attempt, replayed.events[0])
    compared = None if tried is None else compare(replayed.findings(0), replayed.findings(1))
    if as_json:
        print(json.dumps(replay_report.as_json(replayed, agreement, compared), indent=2))
    else:
        Console().print(replay_report.render(replayed, agreement, compared, own), soft_wrap=False)
