"""A real Prometheus, which scrapes and evaluates rules once a second, and a page of made-up series that it may scrape."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from resmon.objectives import generation
from tests.ports import free_port
from tests.programs import program
from tests.waiting import wait_for

RULES = Path(__file__).parent.parent / "alerts" / "resmon.yaml"

Alert = dict[str, Any]


def configuration(*rules: Path, targets: str | Path, alertmanager: str = "") -> str:
    """`targets` is an address, or the file in which an agent keeps its own; `alertmanager` is the address of one."""
    where: dict[str, Any] = {"static_configs": [{"targets": [targets]}]}
    if isinstance(targets, Path):
        where = {"file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}]}
    told = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
    return json.dumps(
        {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(each) for each in rules],
            "alerting": {"alertmanagers": told},
            "scrape_configs": [{"job_name": "resmon", **where}],
        }
    )


class Server:
    """A Prometheus with its data and its configuration in `folder`. `web` is its web configuration."""

    def __init__(self, folder: Path, configuration: str, web: str = "", scheme: str = "http", flags: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"{scheme}://{self.address}"
        (folder / "prometheus.yml").write_text(configuration)
        (folder / "web.yml").write_text(web)
        with (folder / "log.txt").open("w") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--web.config.file={folder / 'web.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.address}",
                    "--log.level=info",
                    *flags,
                ],
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return (self._folder / "log.txt").read_text()

    def wait_until_ready(self) -> None:
        """By what it says itself: behind a password it answers nobody."""
        wait_for(lambda: "Server is ready" in self.log() or self._process.poll() is not None, said=self.log)
        assert self._process.poll() is None, self.log()

    def read_again(self) -> None:
        """Its configuration and its rules."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **parameters: str) -> Any:
        """What its interface answers, `query` and `alerts` and the like."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The instant vector: labels and values."""
        found = self.get("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def by_block(self, expression: str) -> dict[str, float]:
        """The instant vector's values by block, or by rank, or under "" where a series has neither."""
        return {labels.get("block") or labels.get("rank") or "": value for labels, value in self.query(expression)}

    def alerts(self) -> list[Alert]:
        """What fires, or is about to."""
        return list(self.get("alerts")["alerts"])

    def firing(self, name: str) -> list[Alert]:
        return [alert for alert in self.alerts() if alert["labels"]["alertname"] == name and alert["state"] == "firing"]

    def fired(self) -> set[str]:
        """The names of all alerts that ever fired."""
        found = self.query('count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))')
        return {labels["alertname"] for labels, _ in found}

    def assert_rules_evaluate(self) -> None:
        for group in self.get("rules")["groups"]:
            for rule in group["rules"]:
                assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))


@contextmanager
def serving(folder: Path, configuration: str, web: str = "", scheme: str = "http", flags: Sequence[str] = ()) -> Iterator[Server]:
    """A Prometheus that is ready, as long as it is wanted."""
    server = Server(folder, configuration, web, scheme, flags)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


class Page:
    """Series that a scrape sees, as they are at that moment."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.scrapes = 0
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.scrapes += 1
                text = "".join(f"{series} {value}\n" for series, value in page.values.items()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@contextmanager
def scraped() -> Iterator[Page]:
    """A page, as long as it is wanted."""
    made = Page()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()


def quick_rules(folder: Path, *specs: Path) -> Path:
    """The rules of objectives, of resmon's own unless named, evaluated each second: no test waits for minutes."""
    path = folder / "rules.yaml"
    path.write_text(generation.make(specs or None).files[generation.RULES].replace("interval: 1m", "interval: 1s"))
    return path


@contextmanager
def prometheus(folder: Path, rules: Path, page: Page, web: str = "", scheme: str = "http") -> Iterator[str]:
    """The address of one that scrapes a page and has done so."""
    with serving(folder, configuration(rules, targets=page.address), web, scheme) as server:
        before = page.scrapes
        wait_for(lambda: page.scrapes > before, said=server.log)
        yield server.url
