"""`python -m benchmarks.run`: measures every training with every observer and writes benchmarks/README.md and benchmarks/results/.

Each measurement has a process, a temporary folder and (resmon's) an agent of its own, so that nothing is left of it for the next.
A part of the whole (`--only`, `--quick`, `--agent off`) is printed and not written: the published table is not made of pieces. A
whole that is cut short can be gone on with on the same machine. `--device cuda` has trainings and a table of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks import device, report
from benchmarks.measurement import Measurement
from benchmarks.observers import OBSERVERS
from benchmarks.workloads import WORKLOADS
from resmon.agent import runtime

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent / "results"

WARM_UP = 5
# For one measurement; on a slow machine there are fewer pairs instead of more minutes.
SECONDS, SECONDS_RESMON, SECONDS_ALONE = 45.0, 130.0, 60.0
QUICK_PAIRS = 3


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    if arguments.device == "cuda" and (why := device.missing()):
        raise SystemExit(why)
    console = Console()
    marks = report.MARKS[arguments.device]
    report.around(PAGE, marks)  # a page that cannot take the table is better known now than in ten minutes
    how = _circumstances(sys.argv[1:] if argv is None else argv, arguments.device)
    path = report.results_file(RESULTS, how)
    measurements: list[Measurement] = []
    if arguments.resume:
        path = arguments.resume
        how, measurements = _earlier(path, how)
    done = {(m.workload, m.observer) for m in measurements}
    rows = [row for row in _rows(arguments, console) if row not in done]
    whole = not (arguments.quick or arguments.only or arguments.agent == "off")
    failures = []
    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[found]}"),
    )
    # Drawn when there is news and never in between: the cores belong to what is measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        for workload, observer in rows:
            extent = _extent(workload, observer, arguments)
            task = progress.add_task(f"{workload} {observer}", total=extent.pairs + extent.warm_up, found="")
            try:
                measured = _measure(workload, observer, extent, arguments, progress, task)
            except NotMeasuredError as error:
                progress.update(task, found="failed")
                failures.append(str(error))
                continue
            finished = len(measured.bare) + extent.warm_up
            progress.update(task, completed=finished, total=finished, found=f"{measured.ratio.median:.3f}")
            progress.refresh()
            measurements.append(measured)
            if whole:  # what stops us now loses no more than the row under way
                report.write_json(path, measurements, how)
    titles = {name: workload.title for name, workload in WORKLOADS.items()}
    targets = {name: workload.target for name, workload in WORKLOADS.items() if workload.target is not None}
    table = report.markdown(measurements, titles, targets, how)
    if failures or not whole:
        print(table)
        console.print("A part of the whole, or too few pairs: printed, not written.", style="dim")
        if failures and whole and measurements:
            failures.append(f"The rows that were measured are kept; measure the others with --resume {path}")
        if failures:
            raise SystemExit("\n\n".join(failures))
        return
    report.put_into(PAGE, table, marks)
    console.print(f"The table is in {PAGE}, every pair in {path}.", highlight=False, soft_wrap=True)


def _circumstances(argv: Sequence[str], on: str) -> report.Circumstances:
    return report.Circumstances(
        command=shlex.join(["python", "-m", "benchmarks.run", *argv]),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=report.cpu_model(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        versions=report.versions(),
        load=report.load_average(),
        gpu=device.description() if on == "cuda" else "",
    )


def _rows(arguments: argparse.Namespace, console: Console) -> list[tuple[str, str]]:
    """Which workload is measured with which observer."""
    workloads = [name for name in WORKLOADS if name in arguments.only]
    workloads = workloads or [name for name, workload in WORKLOADS.items() if arguments.device in workload.devices]
    named = [name for name in OBSERVERS if name in arguments.only]
    rows = [(w, o) for w in workloads for o in OBSERVERS if o in (named or ("resmon", *WORKLOADS[w].beside))]
    for observer in dict.fromkeys(observer for _, observer in rows):
        package = OBSERVERS[observer].package
        if package is not None and find_spec(package) is None:
            console.print(f"{package} is not installed, and not compared with.")
            rows = [row for row in rows if row[1] != observer]
    return rows


def _earlier(path: Path, how: report.Circumstances) -> tuple[report.Circumstances, list[Measurement]]:
    """The results of a run that was cut short; figures of two machines make no table."""
    try:
        before, measurements = report.read_json(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be gone on with: {error}") from error
    if before.machine != how.machine:
        raise SystemExit(f"{path} was measured elsewhere, {before.machine}; here is {how.machine}. Measure all of it again.")
    return before, measurements


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="Measure what watching costs: step time with and without, in pairs."
    )
    names = [*WORKLOADS, *OBSERVERS]
    parser.add_argument("--device", choices=report.MARKS, default="cpu", help="cuda measures on the first NVIDIA GPU")
    parser.add_argument(
        "--only", action="append", default=[], choices=names, help="only this training or observer; may be given several times"
    )
    parser.add_argument("--pairs", type=int, help="pairs to measure, instead of each training's own number")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_PAIRS} pairs and hardly a warm-up: shows that it runs, not what it costs"
    )
    parser.add_argument("--agent", choices=("auto", "off"), default="auto", help="off measures resmon without its agent")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="results of a run that was cut short: measure what they lack")
    arguments = parser.parse_args(argv)
    if arguments.pairs is not None and arguments.pairs < 1:
        parser.error("--pairs needs at least one pair")
    if arguments.resume and (arguments.only or arguments.quick or arguments.agent == "off"):
        parser.error("--resume makes a whole of a part: it goes with none of --only, --quick and --agent off")
    return arguments


class NotMeasuredError(Exception):
    """A row could not be measured, and why."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How many pairs are measured, how many go before, and how long all of that may take."""

    pairs: int
    warm_up: int = WARM_UP
    seconds: float = math.inf


def _extent(workload: str, observer: str, arguments: argparse.Namespace) -> Extent:
    if arguments.quick:
        return Extent(arguments.pairs or QUICK_PAIRS, warm_up=2)
    if arguments.pairs:
        return Extent(arguments.pairs)
    pairs = WORKLOADS[workload].pairs
    if not WORKLOADS[workload].beside:
        return Extent(pairs, seconds=SECONDS_ALONE)
    return Extent(pairs, seconds=SECONDS_RESMON) if observer == "resmon" else Extent(pairs // 2, seconds=SECONDS)


def _measure(
    workload: str, observer: str, extent: Extent, arguments: argparse.Namespace, progress: Progress, task: TaskID
) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="resmon-benchmark-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        result, errors = folder / "result.json", folder / "errors.txt"
        command = [sys.executable, "-m", "benchmarks.pairs", "--workload", workload, "--observer", observer]
        command += ["--pairs", str(extent.pairs), "--warm-up", str(extent.warm_up), "--seconds", str(extent.seconds)]
        command += ["--device", arguments.device, "--result", str(result)]
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                command, cwd=folder, env=_environment(folder, arguments.agent), stdout=subprocess.PIPE, stderr=stderr, text=True
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    word, _, number = line.strip().partition(" ")
                    if word == "done" and number.isdecimal():
                        progress.update(task, completed=int(number))
                        progress.refresh()
                process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                _stop_agent(folder / "agent")
        if process.returncode:
            raise NotMeasuredError(
                f"{workload} with {observer} was not measured: {shlex.join(command)} ended with {process.returncode} and said:\n"
                + errors.read_text(errors="replace")[-4000:]
            )
        return Measurement(**json.loads(result.read_text()))


def _environment(folder: Path, agent: str) -> dict[str, str]:
    """The user's own settings of resmon and wandb do not count here, and nothing is written into the user's folders."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RESMON_", "WANDB_"))}
    paths = {f"WANDB_{name}": str(folder / "wandb") for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR")}
    (folder / "wandb").mkdir(exist_ok=True)
    return (
        environment
        | paths
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "RESMON_AGENT": agent,
            "RESMON_RUNTIME_DIR": str(folder / "agent"),
            "RESMON_LISTEN": "127.0.0.1:0",  # any free port
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
        }
    )


def _stop_agent(folder: Path) -> None:
    agent = runtime.serving(folder) if folder.is_dir() else None
    if agent is None or not agent.pid:
        return
    os.kill(agent.pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while runtime.serving(folder) is not None and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    main()
