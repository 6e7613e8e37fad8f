"""A real Alertmanager for a test, a receiver of what it sends, and servers that are no Alertmanager."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.programs import program
from tests.waiting import wait_for

SILENT = "route: {receiver: nobody, group_by: [alertname]}\nreceivers: [{name: nobody}]\n"


class Server:
    """An Alertmanager with its data in `folder`; it can be stopped and started again there."""

    def __init__(
        self,
        folder: Path,
        configuration: str = SILENT,
        *options: str,
        scheme: str = "http",
        prefix: str = "",
        cluster: tuple[str, ...] = ("--cluster.listen-address=",),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}{prefix}"
        self._folder = folder
        (folder / "alertmanager.yml").write_text(configuration)
        self._options = [*options, *cluster, f"--web.route-prefix={prefix or '/'}"]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [
            program("prometheus-alertmanager"),
            f"--config.file={self._folder / 'alertmanager.yml'}",
            f"--storage.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
            *self._options,
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._listens, said=(self._folder / "log").read_text)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        import socket

        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def running(folder: Path, configuration: str = SILENT, *options: str, **more: Any) -> Iterator[Server]:
    server = Server(folder, configuration, *options, **more)
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Heard:
    """What a receiver was sent."""

    url: str
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # path and content, as they came

    def of(self, path: str) -> list[dict[str, Any]]:
        return [content for where, content in list(self.said) if where == path]


@contextmanager
def receiver() -> Iterator[Heard]:
    """A webhook's other end."""
    heard = Heard("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.said.append((self.path, content))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as heard.url:
        yield heard


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler, int], None]) -> Iterator[tuple[str, list[str]]]:
    """A server of which each request is answered by `answer(handler, how many there were before)`; address, and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            asked.append(f"{self.command} {self.path}")
            answer(self, len(asked) - 1)

        def __getattr__(self, name: str) -> Any:  # do_GET and its like
            if name.startswith("do_"):
                return self.handle_any
            raise AttributeError(name)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as url:
        yield url, asked


def reply(handler: BaseHTTPRequestHandler, status: int, content: Any = None, **headers: str) -> None:
    body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def forward(handler: BaseHTTPRequestHandler, url: str) -> tuple[int, bytes]:
    """What the server at `url` says to the request of `handler`."""
    length = int(handler.headers.get("Content-Length") or 0)
    request = urllib.request.Request(f"{url}{handler.path}", handler.rfile.read(length) or None, method=handler.command)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
