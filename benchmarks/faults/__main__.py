"""`python -m benchmarks.faults`: tries every fault, trains the healthy runs, writes benchmarks/FAULTS.md and benchmarks/results/.

What has been measured is kept in a notebook (.faults/), so that a bench that was stopped goes on where it was. A part of the whole
(`--quick`, `--only`) is printed and not written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.faults import comparison, healthy, report, tasks
from benchmarks.faults.kinds import KINDS
from benchmarks.faults.notebook import Notebook
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.processes import server
from benchmarks.faults.tasks import Task
from benchmarks.report import Circumstances, cpu_model, load_average, versions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "benchmarks" / "FAULTS.md"
RESULTS = ROOT / "benchmarks" / "results"
NOTEBOOK = ROOT / ".faults"
TOGETHER = 6  # trials that one process does before it says what came of them
QUICK, QUICK_STEPS, QUICK_RUNS = 2, 600, 2


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    console = Console()
    if arguments.trial is not None:
        (kind,) = arguments.only
        _repeat(kind, arguments.trial, console)
        return
    how = _circumstances(sys.argv[1:] if argv is None else argv)
    part = bool(arguments.quick or arguments.only or arguments.trials)
    with tempfile.TemporaryDirectory() as folder:
        notebook = Notebook(Path(folder) if part else NOTEBOOK)
        anew = arguments.fresh or (notebook.is_whole and not arguments.again)
        if not arguments.page and notebook.begin(how.machine, anew=anew):
            console.print(f"Going on with what {notebook.folder} holds; --fresh begins anew.", style="dim", highlight=False)
        for kind in arguments.again:
            notebook.forget(kind)
        failures = [] if arguments.page else _measure(notebook, arguments, console)
        if not (part or arguments.page):
            with console.status("what the tools cost") as status:
                for cost in comparison.costs(notebook.costs(), lambda what: status.update(f"what the tools cost: {what}")):
                    notebook.add_cost(cost)
        if part:
            report.show(console, notebook.outcomes(), notebook.quiets())
            console.print("A part of the whole: printed, not written.", style="dim")
        else:
            _publish(notebook, how, console)
            if not failures and not arguments.page:
                notebook.finish()
    if failures:
        raise SystemExit("\n".join([f"{len(failures)} parts could not be measured:", *failures]))


def _publish(notebook: Notebook, how: Circumstances, console: Console) -> None:
    outcomes, quiets, costs = notebook.outcomes(), notebook.quiets(), notebook.costs()
    path = RESULTS / f"faults-{how.date[:10]}.json"
    report.write_json(path, outcomes, quiets, costs, how)
    PAGE.write_text(report.markdown(outcomes, quiets, costs, how), encoding="utf-8")
    report.show(console, outcomes, quiets)
    console.print(f"The page is {PAGE}, every trial in {path}.", highlight=False, soft_wrap=True)


def _circumstances(argv: Sequence[str]) -> Circumstances:
    used = ("resmon", "python", "torch", "transformers")
    return Circumstances(
        command=shlex.join(["python", "-m", "benchmarks.faults", *argv]),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=cpu_model(),
        cores=os.cpu_count() or 1,
        threads=1,
        versions={name: number for name, number in versions().items() if name in used},
        load=load_average(),
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} trials of each kind and {QUICK_RUNS} short healthy runs")
    parser.add_argument("--only", action="append", default=[], choices=KINDS, metavar="KIND", help="this kind (several times)")
    parser.add_argument("--trial", type=int, metavar="NUMBER", help="this one trial of the kind named by --only")
    parser.add_argument("--trials", type=int, metavar="COUNT", help="so many of each kind, where that is fewer than usual")
    parser.add_argument("--again", action="append", default=[], choices=KINDS, metavar="KIND", help="forget what is known of it")
    parser.add_argument("--fresh", action="store_true", help="forget all that the notebook holds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (as many as there are cores)")
    parser.add_argument("--page", action="store_true", help="only write the page, of what the notebook holds so far")
    arguments = parser.parse_args(argv)
    if arguments.trial is not None and len(arguments.only) != 1:
        parser.error("--trial needs the one kind that it is of: --only KIND --trial NUMBER")
    return arguments


def _repeat(kind: str, number: int, console: Console) -> None:
    outcome = tasks.quietly(partial(tasks.trials, kind, (number,)))[0]
    console.print("right" if outcome.is_right else "wrong", style="green" if outcome.is_right else "red")
    console.print(json.dumps(asdict(outcome), indent=1), highlight=False, soft_wrap=True)


def _measure(notebook: Notebook, arguments: argparse.Namespace, console: Console) -> list[str]:
    """What the notebook lacks. Returns what could not be measured."""
    missing = list(_missing(notebook, arguments))
    columns = (
        TextColumn("{task.description:18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[found]}"),
    )
    failures: list[str] = []
    with (
        Progress(*columns, console=console, refresh_per_second=1) as progress,
        ProcessPoolExecutor(arguments.workers, mp_context=server()) as pool,
    ):
        bars = {
            name: progress.add_task(name, total=sum(size for n, size, _ in missing if n == name), found="")
            for name, _, _ in missing
        }
        under_way: dict[Future[list[Outcome]], tuple[str, int]] = {
            pool.submit(tasks.quietly, task): (name, size) for name, size, task in missing
        }
        wrong: dict[str, int] = {}
        try:
            for future in as_completed(under_way):
                name, size = under_way[future]
                try:
                    outcomes = future.result()
                except Exception as error:  # noqa: BLE001 - the others are measured all the same
                    failures.append(f"{name}: {type(error).__name__}: {error}")
                    progress.update(bars[name], found="failed")
                    continue
                for outcome in outcomes:
                    notebook.add(outcome)
                    wrong[name] = wrong.get(name, 0) + (outcome.kind in KINDS and not outcome.is_right)
                progress.update(bars[name], advance=size, found=f"{wrong[name]} not right" if wrong.get(name) else "")
        except KeyboardInterrupt:  # the notebook has what was done
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return failures


def _missing(notebook: Notebook, arguments: argparse.Namespace) -> Iterator[tuple[str, int, Task]]:
    """What is still to be done: under which name, how much of it, and how."""
    known = {(outcome.kind, outcome.trial) for outcome in notebook.outcomes()}
    for name, kind in KINDS.items():
        if arguments.only and name not in arguments.only:
            continue
        count = min(kind.trials, QUICK if arguments.quick else arguments.trials or kind.trials)
        numbers = [number for number in range(count) if (name, number) not in known]
        for i in range(0, len(numbers), TOGETHER):
            some = tuple(numbers[i : i + TOGETHER])
            yield name, len(some), partial(tasks.trials, name, some)
    if arguments.only:
        return
    for tool in comparison.TOOLS:
        for name in comparison.INJECTS:
            count = 1 if arguments.quick else min(comparison.TRIALS, arguments.trials or comparison.TRIALS)
            numbers = [number for number in range(count) if (f"{tool}:{name}", number) not in known]
            for i in range(0, len(numbers), TOGETHER):
                some = tuple(numbers[i : i + TOGETHER])
                yield tool, len(some), partial(tasks.compared, tool, name, some)
    done = {quiet.name for quiet in notebook.quiets() if quiet.done}
    runs = [name for name in healthy.HEALTHY if name not in done][: QUICK_RUNS if arguments.quick else None]
    for name in runs:
        steps = QUICK_STEPS if arguments.quick else healthy.HEALTHY[name].steps
        yield "healthy steps", steps, partial(tasks.trained, name, steps, notebook.folder)


if __name__ == "__main__":
    main()
