"""From a bad step to the pager: the whole chain on this machine, with the rules and the routes that resmon ships.

A residual network learns scikit-learn's digits with a learning rate that is far too large. resmon's agent finds the block in which
numbers stop being finite, Prometheus evaluates alerts/resmon.yaml, Alertmanager routes by alerts/alertmanager.yml, and what a pager
would get is shown here, with the time that it took. Prometheus and Alertmanager (Debian's packages prometheus and
prometheus-alertmanager) listen on loopback, keep their data in a temporary folder, and are stopped in the end.

    python examples/oncall.py
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import resmon

ROOT = Path(__file__).resolve().parent.parent
ALERTS = ROOT / "alerts"
RUN = "digits-too-fast"
TRAINING = ["--run", RUN, "--learning-rate", "100", "--steps", "100000"]  # goes wrong after some 50 to 110 steps
SCRAPE = 1  # seconds between two scrapes, and between two evaluations of the rules
PATIENCE = 120.0

PROMETHEUS = """
global: {{scrape_interval: {scrape}s, evaluation_interval: {scrape}s}}
rule_files: ["{rules}"]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["{alertmanager}"]}}]}}]}}
scrape_configs: [{{job_name: resmon, static_configs: [{{targets: ["{agent}"]}}]}}]
"""


def main() -> None:
    console = Console()
    programs = {name: shutil.which(name) for name in ("prometheus", "prometheus-alertmanager")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        sys.exit(f"{' and '.join(missing)} cannot be found. Install Debian's packages of these names, or put them on the PATH.")
    with tempfile.TemporaryDirectory(prefix="resmon-oncall-") as name, contextlib.ExitStack() as stack:
        folder, pages = Path(name), queue.Queue[dict[str, Any]]()
        pager = stack.enter_context(webhook(pages))
        addresses = {each: f"127.0.0.1:{free_port()}" for each in ("agent", "prometheus", "alertmanager")}
        environment = os.environ | {"RESMON_RUNTIME_DIR": str(folder / "runtime"), "RESMON_DIRECTORY": str(folder / "runs")}
        environment |= {"RESMON_AGENT": "auto", "RESMON_LISTEN": addresses["agent"]}

        def start(what: str, *command: str | Path) -> None:
            log = stack.enter_context((folder / f"{what}.log").open("wb"))
            process = subprocess.Popen([str(each) for each in command], stdout=log, stderr=log, env=environment)
            stack.callback(stop, process)

        routes = (ALERTS / "alertmanager.yml").read_text().replace("http://127.0.0.1:9095", pager)
        (folder / "alertmanager.yml").write_text(routes)
        (folder / "prometheus.yml").write_text(PROMETHEUS.format(scrape=SCRAPE, rules=ALERTS / "resmon.yaml", **addresses))
        console.rule("An agent, Prometheus and Alertmanager")
        start("agent", sys.executable, "-m", "resmon", "agent", "--listen", addresses["agent"])
        start(
            "alertmanager",
            str(programs["prometheus-alertmanager"]),
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={addresses['alertmanager']}",
            "--cluster.listen-address=",
        )
        start(
            "prometheus",
            str(programs["prometheus"]),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={addresses['prometheus']}",
        )
        for what, address in addresses.items():
            wait_until_ready(what, f"http://{address}/-/ready")
            console.print(f"{what:13} http://{address}", highlight=False)

        console.rule("A training that will not end well")
        start("training", sys.executable, ROOT / "examples" / "digits.py", *TRAINING)
        with console.status("training; nobody looks at it"):
            page = next_page(pages, folder)
        arrived = time.time()
        show(console, page)
        step, then = beginning(folder / "runs" / RUN, page["alerts"][0]["labels"])
        console.print(
            f"It is so since step {step}. The page came {arrived - then:.1f} s after that step: a scrape every {SCRAPE} s, rules "
            f"every {SCRAPE} s, and 5 s in which Alertmanager waits for what belongs to it.",
            highlight=False,
        )


def show(console: Console, page: dict[str, Any]) -> None:
    """What a pager gets."""
    for alert in page["alerts"]:
        table = Table.grid(padding=(0, 2))
        table.add_row("[dim]labels", Text(", ".join(f"{name}={value}" for name, value in alert["labels"].items())))
        for name in ("summary", "description", "runbook_url"):
            table.add_row(f"[dim]{name}", Text(alert["annotations"][name], overflow="fold"))
        console.print(Panel(table, title=alert["status"].upper(), border_style="red"))


def beginning(run: Path, labels: dict[str, str]) -> tuple[int, float]:
    """The step since which what was told is so, and its time."""
    flight = resmon.load(run)
    findings = flight.findings()
    told = findings[(findings["kind"] == labels.get("finding")) & (findings["block"] == labels.get("block", ""))].iloc[0]
    step = int(json.loads(told["evidence"]).get("since", told["opened_step"]))
    steps = flight.steps()
    return step, steps.loc[steps["step"] == step, "time"].iloc[0].timestamp()


def next_page(pages: queue.Queue[dict[str, Any]], folder: Path) -> dict[str, Any]:
    try:
        return pages.get(timeout=PATIENCE)
    except queue.Empty:
        logs = {file.stem: file.read_text(errors="replace")[-2000:] for file in folder.glob("*.log")}
        sys.exit(f"no page within {PATIENCE:.0f} s. What was said: {json.dumps(logs, indent=1)}")


@contextlib.contextmanager
def webhook(pages: queue.Queue[dict[str, Any]]) -> Iterator[str]:
    """The pager: what is posted to /page comes into the queue."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/page":
                pages.put(content)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def wait_until_ready(what: str, url: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).is_success:
                return
        time.sleep(0.1)
    sys.exit(f"{what} did not start within {PATIENCE:.0f} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
