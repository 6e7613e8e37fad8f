"""The command `resmon`: one table of verbs. A verb imports what it needs when it runs, so that the help comes at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resmon.errors import ConfigurationError, DiscoveryError, ResmonError
from resmon.quantities import size
from resmon.slo import application as slo

FOLDER = "Folder of the runs; runs/ unless settings say otherwise."
Directory = Annotated[Path | None, typer.Option("--directory", "-d", help=FOLDER)]
SEVERAL = f"{FOLDER} Once for each machine that has ranks of the run; also 'GLOB*' and URLs such as s3://bucket/runs."
Directories = Annotated[list[str] | None, typer.Option("--directory", "-d", help=SEVERAL)]


def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="How long the healthy run trains.")] = 60.0,
    directory: Directory = None,
) -> None:
    """Train a small residual network on real images, watch it, then let it blow up and see which block went first."""
    from resmon.demo import run_demo

    run_demo(Console(), _runs_directory(directory), seconds)


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
    directories = [_runs_directory(each) for each in directory or ()]
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


def run_script(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="SCRIPT", help="The script that trains; what follows are its own arguments.")],
    as_module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module's name, as in python -m.")] = False,
    run: Annotated[str | None, typer.Option("--run", "-r", help="The run's name.")] = None,
    model_name: Annotated[str | None, typer.Option(help="The label `model`; the model's class unless named.")] = None,
    directory: Directory = None,
    agent_: Annotated[Literal["auto", "off"] | None, typer.Option("--agent", help="off only records.")] = None,
) -> None:
    """Run a training script as it is, and watch what it trains. Also: torchrun --no-python resmon run train.py."""
    from resmon.integrations import script

    given = {"run": run, "model_name": model_name, "directory": directory, "agent": agent_}
    settings = {name: value for name, value in given.items() if value is not None}
    script.run(target, context.args, settings, as_module=as_module)


def list_runs(
    folder: Annotated[Path | None, typer.Argument(help=FOLDER)] = None,
    directory: Directory = None,
) -> None:
    """List the runs of a folder: outcome, steps, newest loss, blocks, size on disk, age, what broke."""
    from resmon.origins import printable
    from resmon.summary import summaries

    folder = _runs_directory(folder or directory)
    rows = summaries(folder)
    console = Console()
    if not rows:
        console.print(f"no runs in {folder}. A script that calls resmon.watch makes one; so does: resmon demo")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "attempt", "outcome", "steps", "loss", "blocks", "size", "age"):
        justify: Literal["left", "right"] = "left" if name in ("run", "outcome") else "right"
        # In a narrow terminal it is the name that is cut.
        table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=name != "run", min_width=8 if name == "run" else None)
    now = time.time()
    for row in rows:
        table.add_row(
            Text(printable(row.name)),
            str(row.attempt),
            Text(row.outcome, style={"running": "green", "finished": ""}.get(row.outcome, "red")),
            f"{row.steps:,}",
            "–" if row.loss is None else f"{row.loss:.4g}",
            f"{row.blocks:,}",
            size(row.size),
            _age(now - row.time),
        )
    console.print(table)
    for row in rows:
        if row.incident:
            console.print(Text.assemble((f"✖ {printable(row.name)}", "bold red"), f": {printable(row.incident)}"), soft_wrap=True)


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
    from resmon.capture.discovery import discover
    from resmon.capture.target import load_target, parameter_count, random_input

    module, args, kwargs = load_target(model)
    if input:
        args = tuple(random_input(text) for text in input)
    try:
        sites = discover(module, *args, **kwargs)
    except DiscoveryError as error:
        if input or args or kwargs:
            raise
        raise DiscoveryError(f"{error} Here: --input with the shape of each, such as -i 8,3,32,32.") from error
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
    for site, count in zip(sites, counts, strict=True):
        table.add_row(
            site.name,
            site.kind,
            _paths(site.branch, site.module),
            _paths(site.skip, site.module) or "–",
            "×".join(map(str, site.shape)),
            f"{count:,}",
            site.observed,
        )
    console.print(table)
    console.print(f"{len(sites):,} residual {'block' if len(sites) == 1 else 'blocks'} in {type(module).__name__}", style="dim")


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
    from resmon.capture import check as checking
    from resmon.verdict import as_json as jsonable
    from resmon.verdict import as_junit, is_good, render

    report = checking.check(model, input or (), () if no_batches else batch or checking.BATCHES)
    if as_json:
        print(json.dumps(jsonable(report, strict), indent=2, allow_nan=False))
    else:
        Console().print(render(report, checking.KINDS))
    if junit is not None:
        try:
            junit.write_bytes(as_junit(report, checking.KINDS, strict))
        except OSError as error:
            raise ConfigurationError(f"--junit {junit} cannot be written: {error}.") from error
    if not is_good(report, strict):
        raise typer.Exit(1)


def tail(
    run: Annotated[str, typer.Argument(help="Name of a run in the runs folder, or the path of its folder.")],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    directory: Directory = None,
) -> None:
    """Watch a run, live or finished, in the terminal; into a pipe goes one frame."""
    from resmon.origins import printable
    from resmon.tail import Tail, find_run, page_of, show

    console = Console()
    attempt = find_run(run, _runs_directory(directory))
    if (url := page_of(attempt)) is not None:
        console.print(Text.assemble(("in a browser  ", "dim"), url), soft_wrap=True)
    try:
        view = show(console, Tail(attempt), once=once or not console.is_terminal)
    except KeyboardInterrupt:  # how one leaves
        return
    if view.incidents:
        from resmon.flight.frames import load
        from resmon.flight.lead_up import lead_up

        newest = list(view.incidents.values())[-1]
        console.print(Text(f"Before it: {printable(lead_up(load(attempt), newest.step).sentence)}"), soft_wrap=True)
    if view.end is not None and view.end.reason:
        console.print(Text(printable(view.end.reason), style="dim"))


def incidents(
    run: Annotated[str, typer.Argument(help="Name of a run in the runs folder, or the path of its folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    directory: Directory = None,
) -> None:
    """Show what broke in a run: what failed, where, since when, how sure that is, and what to do."""
    from resmon.flight.endings import of_attempt
    from resmon.incidents import next_commands, panel
    from resmon.origins import printable
    from resmon.tail import find_run

    attempt = find_run(run, _runs_directory(directory))
    found = of_attempt(attempt)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    console = Console()
    for each in found:
        console.print(panel(each))
        for command in next_commands(each, attempt):
            console.print(Text(printable(command)), soft_wrap=True)
    if not found:
        console.print(Text(f"nothing that resmon saw broke in {run}"))


def runbook(
    name: Annotated[str | None, typer.Argument(help="Which; all are listed where neither this nor a run is given.")] = None,
    run: Annotated[
        str | None, typer.Option("--run", "-r", help="Fill in this run's values, run the commands, and show what they print.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The checkpoint to name, where the run has named none.")] = None,
    model: Annotated[str | None, typer.Option(help="package.module:name of the model, for commands that need it.")] = None,
    directory: Directory = None,
) -> None:
    """Show a runbook: what a failure means, how to look into it, what to do. With a run, its diagnosis is done."""
    from rich.markdown import Markdown

    from resmon import handbook
    from resmon import runbook as books
    from resmon.flight.frames import load
    from resmon.tail import find_run

    console = Console()

    def show(text: str) -> None:
        if console.is_terminal:
            console.print(Markdown(text))
        else:  # to be pasted into a ticket
            print(text.strip("\n"), end="\n\n", flush=True)

    if run is None:
        if name is not None:
            show(handbook.runbook(name).text)
            return
        for each in handbook.names():
            print(each)
        return
    flight = load(find_run(run, _runs_directory(directory)))
    trouble = books.Trouble.of(flight)
    chosen = name or trouble.runbook
    if chosen is None:
        console.print(Text(f"nothing is wrong with {flight.info['run']} as far as resmon saw: it is {flight.outcome}"))
        return
    more = {"CHECKPOINT": checkpoint, "MODEL": model}
    width = console.width - 2 * console.is_terminal  # a block of Markdown has a margin there
    for part in books.page(handbook.runbook(chosen), trouble, {key: value for key, value in more.items() if value}, width):
        show(part)


def settings(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Arguments of watch to try, such as budget=100000000.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every setting, where its value comes from and what it is for. Names all that is wrong, with exit status 2."""
    from resmon.origins import VARIABLES, printable
    from resmon.settings import Settings
    from resmon.tuning import resolved as resolve

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


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The runs to compare with: NAME, NAME,NAME or 'PATTERN*'; paths too.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The runs in question, likewise.")],
    lower: Annotated[list[str] | None, typer.Option(help="A score that is better when lower, whatever its name says.")] = None,
    higher: Annotated[list[str] | None, typer.Option(help="A score that is better when higher.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="scores, speed, memory, gradients or blocks; all unless named.")] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Compare these steps; else scores and blocks by the last quarter.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every row; else the worst of each group.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit status 1 where B is worse beyond the spread between runs.")
    ] = False,
    directory: Directory = None,
) -> None:
    """Compare runs at equal steps: is B worse than A? Several runs of each, with different seeds, make an answer possible."""
    from resmon.diff.comparison import GROUPS, compare
    from resmon.diff.report import as_json as jsonable
    from resmon.diff.report import render
    from resmon.tail import find_runs

    unknown = sorted(set(only or ()) - set(GROUPS))
    if unknown:
        raise ConfigurationError(f"--only {unknown[0]} is no group of quantities. There are: {', '.join(GROUPS)}.")
    contrary = sorted(set(lower or ()) & set(higher or ()))
    if contrary:
        raise ConfigurationError(f"{contrary[0]!r} is named by --lower and by --higher. Name it once.")
    first, last = _step_range(steps)
    folder = _runs_directory(directory)
    comparison = compare(
        find_runs(a, folder),
        find_runs(b, folder),
        lower=lower or (),
        higher=higher or (),
        groups=[group for group in GROUPS if not only or group in only],
        first=first,
        last=last,
    )
    if as_json:
        print(json.dumps(jsonable(comparison), indent=2, allow_nan=False))
    else:
        Console().print(render(comparison, everything))
    if fail_if_worse and comparison.worse:
        raise typer.Exit(1)


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
    from resmon.capture import capsule as capsules
    from resmon.capture.target import load_target
    from resmon.explanation import as_json as jsonable
    from resmon.explanation import render

    read = capsules.read(capsule)
    verdict = capsules.run(read, load_target(module)[0]) if module else None
    if as_json:
        print(json.dumps(jsonable(read, verdict), indent=2))
    else:
        Console().print(render(capsule, read, verdict), soft_wrap=True)


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
    from resmon.origins import printable
    from resmon.postmortem import markdown, page
    from resmon.postmortem.alerts import asked
    from resmon.postmortem.report import as_json as jsonable
    from resmon.postmortem.report import make
    from resmon.settings import Settings

    endings = {"html": "html", "markdown": "md", "json": "json"}
    if form not in endings:
        raise ConfigurationError(f"--format {form} is none. There are: {', '.join(endings)}.")
    folders = [path for run in runs for path in _run_folders(run, directory)]
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


def baseline(
    action: Annotated[Literal["save", "compare"], typer.Argument(help="save NAME RUN, or compare RUN NAME.")],
    first: Annotated[str, typer.Argument(metavar="NAME|RUN", help="save: the baseline's name, NAME.json here. compare: the run.")],
    second: Annotated[str, typer.Argument(metavar="RUN|NAME", help="save: the run. compare: the baseline's name or file.")],
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="These steps of the run; else its last half, before anything broke.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a baseline of that name.")] = False,
    shift: Annotated[float, typer.Option(min=0.0, help="Population stability index from which on a block has drifted.")] = 0.1,
    alpha: Annotated[float, typer.Option(min=0.0, max=1.0, help="False-discovery rate over the blocks.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    directory: Directories = None,
) -> None:
    """Save what a run's blocks put out while it was well, or compare a run with that. Exit status 1 where a block has drifted."""
    from resmon import baseline as baselines
    from resmon.origins import printable

    run, name = (second, first) if action == "save" else (first, second)
    measured = baselines.measure(_run_folder(run, directory), *_step_range(steps))
    path = baselines.file_of(name)
    console = Console()
    if action == "save":
        baselines.save(measured, path, force)
        text = f"{len(measured.blocks)} blocks of {measured.run}, steps {measured.first_step:,} to {measured.last_step:,}: {path}"
        console.print(Text(printable(text)), soft_wrap=True)
        return
    compared = baselines.compare(measured, baselines.load(path), alpha, shift)
    if as_json:
        print(json.dumps(asdict(compared) | {"drifted": len(compared.drifted)}, indent=2, allow_nan=False))
    else:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("block", "", "PSI", "JS", "KS", "Wasserstein", "q", "samples"):
            table.add_column(title, justify="left" if title in ("block", "") else "right", overflow="fold")
        for row in compared.rows:
            distances = (row.population_stability, row.jensen_shannon, row.kolmogorov_smirnov, row.wasserstein)
            values = [f"{value:.4f}" for value in distances]
            values.append("<0.0001" if row.q < 1e-4 else f"{row.q:.4f}")
            style = {"drifted": "red", "shifted": "yellow", "same": "green"}[row.verdict]
            block = printable(f"{row.model} {row.block}".strip())
            table.add_row(Text(block), Text(row.verdict, style=style), *values, f"{row.samples:,.0f}")
        console.print(table)
        if compared.missing:
            console.print(Text(printable(f"only on one side: {', '.join(compared.missing[:10])}"), style="yellow"), soft_wrap=True)
        console.print(Text(printable(baselines.sentence(compared))), soft_wrap=True)
    if compared.drifted:
        raise typer.Exit(1)


def replay(
    run: Annotated[str, typer.Argument(help="Name of a run in the runs folder, or the path of its folder.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="DETECTOR.OPTION=VALUE",
            help="Try this on top of the run's own settings, once for each; of some blocks: 'dead_branch[h.0.*].enabled=false'.",
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

    from resmon import replay_report
    from resmon.detectors.own import OwnError, load
    from resmon.replay import against, compare, settings_of
    from resmon.replay import replay as replayed_of
    from resmon.settings import Settings

    attempt = _run_folder(run, directory)
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

    for option, url in (("--runbooks", runbooks), ("--dashboards", dashboards)):
        if url is not None and not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{option} {url!r} is no address; it begins with http:// or https://.")
    given = {"runbooks": runbooks, "dashboards": dashboards}
    links = Links(**{name: url.rstrip("/") for name, url in given.items() if url is not None})
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
        raise ConfigurationError(f"{error.filename or folder} cannot be written: {error.strerror}.") from error
    for path in written:
        print(folder / path)


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
    from resmon.alertmanager import Alertmanager, Matcher, checked, length, skew_sentence
    from resmon.alertmanager.table import as_json as jsonable
    from resmon.alertmanager.table import covers, table
    from resmon.rules.durations import written
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


def export(
    run: Annotated[str, typer.Argument(help="Name of a run in the runs folder, or the path of its folder.")],
    to: Annotated[Literal["tensorboard", "wandb", "parquet", "csv"], typer.Option(help="What for.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write into; export/RUN unless named.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over; TensorBoard and W&B only.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Blocks at every so manieth step; TensorBoard and W&B only.")] = 10,
    directory: Directories = None,
) -> None:
    """Write a run, live or finished, in the form of another tool."""
    from resmon.export import command

    command.export(_run_folder(run, directory), to, out, follow=follow, every=every, console=Console())


VERBS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("run", run_script),
    ("demo", demo),
    ("ls", list_runs),
    ("tail", tail),
    ("incidents", incidents),
    ("runbook", runbook),
    ("replay", replay),
    ("diff", diff),
    ("baseline", baseline),
    ("postmortem", postmortem),
    ("inspect", inspect),
    ("check", check),
    ("explain", explain),
    ("export", export),
    ("silence", silence),
    ("agent", agent),
    ("assets", assets),
    ("settings", settings),
)


# Verbs that have verbs of their own.
GROUPS: tuple[tuple[str, Callable[[], typer.Typer]], ...] = (("slo", slo),)


# What follows the script is the script's.
_REST = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def application() -> typer.Typer:
    """The command with all its verbs."""
    made = typer.Typer(
        help="resmon watches the residual blocks of neural networks while they train.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    made.callback()(_options)
    for name, function in VERBS:
        made.command(name, context_settings=_REST if function is run_script else None)(function)
    for name, verbs in GROUPS:
        made.add_typer(verbs(), name=name)
    return made


def main() -> None:
    """Run the command. What resmon raises on purpose is one message and exit status 2, anything else a traceback."""
    try:
        application()(prog_name="resmon")
    except ResmonError as error:
        Console(stderr=True).print(Text(f"resmon: {error}", style="red"), soft_wrap=True)
        raise SystemExit(2) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        from resmon import __version__

        print(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What stands before the verb."""


def _runs_directory(directory: Path | None) -> Path:
    if directory is None:
        from resmon.settings import Settings

        return Settings.of().directory
    if not directory.is_dir():
        raise ConfigurationError(f"there is no folder {directory}. Name the folder that holds the runs.")
    return directory


def _run_folder(run: str, directories: list[str] | None) -> Path:
    """The newest attempt of a run, gathered where several folders are named."""
    from resmon.tail import find_run

    directory = _one(directories)
    return _gathered(run, directories or []) if directory is None else find_run(run, directory)


def _run_folders(runs: str, directories: list[str] | None) -> list[Path]:
    """Those of several runs, as find_runs reads names."""
    from resmon.tail import find_runs

    directory = _one(directories)
    return [_gathered(runs, directories or [])] if directory is None else find_runs(runs, directory)


def _one(directories: list[str] | None) -> Path | None:
    """The one folder of runs; None where they are several."""
    from resmon.flight.gathering import is_several

    named = directories or []
    if len(named) > 1 or any(map(is_several, named)):
        return None
    return _runs_directory(Path(named[0]) if named else None)


def _gathered(run: str, directories: list[str]) -> Path:
    """The run of all the ranks that the folders have, and a word on what they have besides."""
    from resmon.flight import layout
    from resmon.flight.gathering import gather

    found = gather(f"{directory.rstrip('/')}/{layout.safe_name(run)}" for directory in directories)
    for note in found.notes:
        Console(stderr=True, soft_wrap=True).print(Text(note, style="yellow"))
    _KEPT.append(found)
    return max(layout.attempts(found.folder).items())[1]


_KEPT: list[object] = []  # folders that last as long as the command


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


def _step_range(text: str | None) -> tuple[int | None, int | None]:
    """FIRST:LAST, of which either may be left out."""
    if text is None:
        return None, None
    first, colon, last = text.partition(":")
    if not colon or not all(end == "" or (end.isascii() and end.isdecimal()) for end in (first, last)):
        raise ConfigurationError(f"--steps {text!r} cannot be read; write FIRST:LAST, such as 500:1000, 500: or :1000.")
    return int(first) if first else None, int(last) if last else None


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


def _paths(paths: tuple[str, ...], module: str) -> str:
    """Module paths, those below the site's own module without it."""
    return ", ".join(path.removeprefix(f"{module}.") for path in paths)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
