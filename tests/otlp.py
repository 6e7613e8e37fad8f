"""A receiver of OTLP over HTTP, as its specification has it, for tests to push to.

It takes protobuf, plain or compressed, refuses what is none, and keeps what it took. What it answers instead can be told: any
status, with Retry-After; that it took all but some; nothing, as long as that is wanted. It listens on a port of its own.
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest, ExportMetricsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from tests.ports import free_port

Labels = frozenset[tuple[str, Any]]


@dataclass
class Refusal:
    """What is answered instead of taking something."""

    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    rejected: int = 0  # with status 200: taken but for so many
    said: str = ""
    hang: threading.Event | None = None  # says nothing until this is set


class Receiver:
    """What came, newest last, and what is to be answered."""

    def __init__(self) -> None:
        self.port = free_port()
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.logs: list[ExportLogsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.asked = 0  # requests, taken or not
        self.refusals: list[Refusal] = []  # for the next requests, one each
        self.always: Refusal | None = None  # for all others
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked += 1
                status, headers, answer = receiver._answer(
                    self.path, {name.lower(): value for name, value in self.headers.items()}, body
                )
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the name is http.server's
                """Nothing on standard error."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Somebody has hung up: tests that end agents do that."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        taking = {
            "/v1/metrics": (ExportMetricsServiceRequest, ExportMetricsServiceResponse, self.metrics),
            "/v1/logs": (ExportLogsServiceRequest, ExportLogsServiceResponse, self.logs),
        }.get(path)
        if taking is None:
            return 404, {}, b""
        if headers.get("content-type") != "application/x-protobuf":
            return 415, {}, b""
        request, response, kept = taking
        refusal = self.refusals.pop(0) if self.refusals else self.always
        if refusal is not None and refusal.hang is not None:
            refusal.hang.wait()
        if refusal is not None and refusal.status != 200:
            return refusal.status, refusal.headers, refusal.said.encode()
        try:
            unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(headers.get("content-encoding", ""), bytes)
            took = request.FromString(unpack(body))
        except (DecodeError, OSError, zlib.error):
            return 400, {}, b""
        kept.append(took)  # type: ignore[arg-type]
        self.headers.append(headers)
        answer = response()
        if refusal is not None:
            part = answer.partial_success
            part.error_message = refusal.said
            setattr(part, "rejected_data_points" if path == "/v1/metrics" else "rejected_log_records", refusal.rejected)
        return 200, {"Content-Type": "application/x-protobuf"}, answer.SerializeToString()

    # -- what it was told ----------------------------------------------------------------------------------------------

    def found(self, name: str) -> dict[Labels, Any]:
        """The newest points of a metric, by their attributes."""
        return {
            labels(point.attributes): point
            for request in list(self.metrics)
            for metric in metrics(request)
            if metric.name == name
            for point in getattr(metric, metric.WhichOneof("data")).data_points
        }

    def numbers(self, name: str, **wanted: str) -> dict[Labels, float]:
        """The newest values of a gauge or sum, by attributes, among them those that are wanted."""
        points = self.found(name)
        return {key: getattr(point, point.WhichOneof("value")) for key, point in points.items() if set(wanted.items()) <= key}

    def one(self, name: str, **wanted: str) -> float | None:
        found = self.numbers(name, **wanted)
        assert len(found) <= 1, found
        return next(iter(found.values()), None)

    def events(self, name: str = "") -> list[LogRecord]:
        return [
            record
            for request in list(self.logs)
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
            if record.event_name.startswith(name)
        ]


def metrics(request: ExportMetricsServiceRequest) -> Iterator[Metric]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            yield from scope.metrics


def labels(attributes: Any) -> Labels:
    return frozenset(plain(attributes).items())


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes as Python has them."""
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.open()
    try:
        yield receiver
    finally:
        if receiver.always is not None and receiver.always.hang is not None:
            receiver.always.hang.set()
        receiver.close()
