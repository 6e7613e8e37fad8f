"""`python -m benchmarks.house`: what the parts behind the training step cost: a row, a scrape, the agent at rest."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from resmon.agent import runtime
from resmon.exporters.prometheus import OPENMETRICS, PROTOBUF, TEXT, Prometheus
from resmon.flight.layout import claim
from resmon.flight.writer import FlightWriter
from resmon.records import RunEnd
from tests import synthetic
from tests.exporters import client_model, views

REST = 20.0  # seconds that the agent is watched at rest
FORMATS = {"text": TEXT, "OpenMetrics": OPENMETRICS, "protobuf": PROTOBUF}


def main() -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("what", "measured", "target"):
        table.add_column(name)
    for sites in (12, 100, 1000):
        table.add_row(f"writing a row of {sites} sites", f"{writing(sites) * 1e6:.0f} µs", "")
    for blocks, target in ((206, 30), (3447, 500)):
        for kind, accept in FORMATS.items():
            series, seconds = rendering(blocks, accept)
            table.add_row(f"rendering {blocks:,} blocks, {series:,} series, as {kind}", f"{seconds * 1e3:.1f} ms", f"{target} ms")
    with console.status(f"the agent at rest, {REST:.0f} s"):
        table.add_row("the agent at rest, one live run that is silent", f"{at_rest():.2%} of a core", "0.5 %")
    console.print(table)


def timed(what: Callable[[], object], rounds: int) -> float:
    """The median duration of some rounds, in seconds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        what()
        taken.append(time.perf_counter() - started)
    return median(taken)


def writing(sites: int) -> float:
    training = synthetic.Training(synthetic.sites(sites))
    with tempfile.TemporaryDirectory() as folder:
        rank_folder, attempt = claim(Path(folder), "bench", "launch", 0)
        writer = FlightWriter(rank_folder, synthetic.info(run="bench", attempt=attempt), 1 << 30)
        writer.sites(training.sites)
        record = training.step()
        steps = iter(range(1, 10_000))
        seconds = timed(lambda: writer.step(replace(record, step=next(steps))), 500)
        writer.end(RunEnd("finished", time.time(), 500))
    return seconds


def rendering(blocks: int, accept: str) -> tuple[int, float]:
    sites = synthetic.sites(blocks)
    training, exporter = synthetic.Training(sites), Prometheus()
    view = [views.agent(views.run(sites, [training.step()])) for _ in range(12)]
    content, kind = exporter.render(view.pop(), accept)  # the first makes the labels
    if kind == PROTOBUF:
        series = sum(len(family.metric) for family in client_model.families(content))
    else:
        series = sum(not line.startswith(b"#") for line in content.splitlines())
    return series, timed(lambda: exporter.render(view.pop(), accept), 10)


def at_rest() -> float:
    """The share of a core that the agent takes while it follows one run that lives and says nothing."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        os.environ["RESMON_RUNTIME_DIR"] = str(Path(folder) / "runtime")
        rank_folder, attempt = claim(Path(folder) / "runs", "bench", "launch", 0)
        writer = FlightWriter(rank_folder, synthetic.info(run="bench", attempt=attempt), 1 << 30)
        training = synthetic.Training(synthetic.sites(48))
        writer.sites(training.sites)
        for _ in range(50):
            writer.step(training.step())
        runtime.register(rank_folder)
        agent = subprocess.Popen(
            [sys.executable, "-m", "resmon", "agent", "--listen", listen], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(agent.wait)
        stack.callback(agent.terminate)
        time.sleep(5)

        def seconds() -> float:
            tasks = Path(f"/proc/{agent.pid}/task").iterdir()
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

        started, before = time.monotonic(), seconds()
        time.sleep(REST)
        share = (seconds() - before) / (time.monotonic() - started)
        writer.end(RunEnd("finished", time.time(), 49))
    return share


if __name__ == "__main__":
    main()
