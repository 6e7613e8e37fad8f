"""A Prometheus with rules, and a page of made-up series that it scrapes."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

from resmon.objectives import generation
from tests.ports import free_port
from tests.programs import program

Value = TypeVar("Value")

CONFIGURATION = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: resmon
    static_configs: [{{targets: ["{page}"]}}]
"""


def wait_for(what: Callable[[], Value], seconds: float = 60.0) -> Value:
    """What `what` gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s; last: {found!r}"
        time.sleep(0.2)
    return found


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
    """Its address, as long as it is wanted. `web` is its web configuration."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    (folder / "prometheus.yml").write_text(CONFIGURATION.format(rules=rules, page=page.address))
    (folder / "web.yml").write_text(web)
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--web.config.file={folder / 'web.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        before = page.scrapes
        wait_for(lambda: page.scrapes > before or process.poll() is not None)
        assert process.poll() is None, (folder / "log.txt").read_text()
        yield f"{scheme}://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
