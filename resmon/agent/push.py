"""What the agent pushes to an OTLP receiver: metrics every so many seconds, findings, incidents and ends as soon as they are read.

A thread of its own does it, and takes the lock over the roster only as long as a scrape does for its view. The exporter of
OpenTelemetry does the transport: it waits ten seconds for an answer (OTEL_EXPORTER_OTLP_TIMEOUT) and, where the receiver says that
it may take it later or cannot be reached, repeats it within that time, each time after twice as long, or after what Retry-After
says. What it does not get through then:

- Metrics are dropped and counted; they are cumulative, so that the next ones say all but the moments between.
- Events wait for the next turn, if the receiver may take them later; at most WAITING of them do, and the oldest make room for the
  newest. What makes room, what the receiver refuses for good, and what is left when the agent leaves is dropped and counted.

A receiver that fails is told once, and counted as an error of the agent, each time that it begins to. Answers are not trusted:
of each at most ANSWER bytes are read, and a redirection is not followed and is no success.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import requests
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.sdk._logs import LogRecordLimits, ReadableLogRecord

from resmon.exporters import opentelemetry as otlp
from resmon.exporters.events import log_record
from resmon.exporters.points import pushed
from resmon.exporters.view import AgentView, Event
from resmon.quantities import printable
from resmon.records import RunEnd

log = logging.getLogger("resmon.agent")

WAITING = 2048  # events, as the batch processor of OpenTelemetry's SDK has it by default
AT_ONCE = 512  # of them, likewise
ANSWER = 1 << 16  # bytes
SAID = 200  # characters of its reason
FAREWELL = 5.0  # seconds that the agent stays for a last push
ENVIRONMENT = "environment"  # instead of an address: OTEL_EXPORTER_OTLP_ENDPOINT and its like say it
LATER = (429, 502, 503, 504)  # a receiver that answers so may take it later (OTLP's specification, "Failures")

Signal = Literal["metrics", "logs"]
SIGNALS: tuple[Signal, ...] = ("metrics", "logs")

Fault = Callable[[str, str], None]


@dataclass(slots=True)
class _Answer:
    """What the receiver said last of one signal."""

    status: int | None = None  # None where it said nothing
    rejected: int = 0  # of those that it took in part
    why: str = ""

    @property
    def is_taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def may_be_taken_later(self) -> bool:
        return self.status is None or self.status in LATER


class Push:
    """Pushes from `start` to `close`. `view` is called from its own thread, and takes the lock itself."""

    def __init__(self, to: str, interval: float, view: Callable[[], AgentView], fault: Fault, version: str) -> None:
        self._to = to
        self._interval = interval
        self._view = view
        self._fault = fault
        self._answers: dict[Signal, _Answer] = {signal: _Answer() for signal in SIGNALS}
        # The exporter's own words at each attempt would fill the log: what it does not get through is said here.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        base = None if to == ENVIRONMENT else to
        self._metrics = OTLPMetricExporter(endpoint=base and f"{base}/v1/metrics", session=self._session("metrics"))
        self._logs = OTLPLogExporter(endpoint=base and f"{base}/v1/logs", session=self._session("logs"))
        self._exporter = otlp.OpenTelemetry(version)
        self._scope = otlp.scope(version)
        self._limits = LogRecordLimits()
        self._events: deque[Event] = deque()
        self._under_way = 0  # of them, those that are being sent
        self._dropped: Counter[Signal] = Counter(dict.fromkeys(SIGNALS, 0))
        self._guard = threading.Lock()  # over the events and the counts, for moments only
        self._wake = threading.Event()
        self._hurried = False  # metrics are due, too
        self._stopping = False
        self._fails: set[Signal] = set()
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    @property
    def dropped(self) -> Mapping[str, int]:
        """What was dropped so far, by signal."""
        with self._guard:
            return {signal: self._dropped[signal] for signal in SIGNALS}

    def start(self) -> None:
        self._thread.start()

    def tell(self, event: Event) -> None:
        """Take an event, without waiting for anybody. After an end the metrics go at once, too: the run's last ones."""
        with self._guard:
            if len(self._events) >= WAITING:
                self._events.popleft()
                self._dropped["logs"] += 1
            self._events.append(event)
            self._hurried |= isinstance(event.what, RunEnd)
        self._wake.set()

    def close(self) -> None:
        """A last push, if the receiver takes it within FAREWELL; then no more."""
        self._stopping = True
        self._wake.set()
        self._thread.join(FAREWELL)
        for exporter in (self._logs, self._metrics):
            exporter.shutdown()  # ends a repetition that waits
        with self._guard:
            left, self._under_way = len(self._events) + self._under_way, 0
            self._events.clear()
        if left:
            self._drop("logs", left)
            log.warning("%d events have not reached the OTLP receiver %s, and are in the flights only", left, self._to)

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            last = self._stopping
            self._wake.clear()
            try:
                with self._guard:
                    hurried, self._hurried = self._hurried, False
                self._push_events()
                if last or hurried or time.monotonic() >= due:
                    due = time.monotonic() + self._interval
                    self._push_metrics()
            except Exception as error:  # noqa: BLE001 - a fault of the libraries or of ours must not end the pushing
                self._fault(f"otlp {type(error).__name__}", f"a push to {self._to} failed: {error!r}")
            if last:
                return
            # Events that could not be sent are tried again with the next metrics, and not at once.
            self._wake.wait(max(0.0, due - time.monotonic()))

    def _push_events(self) -> None:
        while True:
            with self._guard:
                batch = [self._events.popleft() for _ in range(min(AT_ONCE, len(self._events)))]
                self._under_way = len(batch)
            if not batch:
                return
            made = [(event, record) for event in batch if (record := self._record(event)) is not None]
            batch = [event for event, _ in made]
            answer = self._answers["logs"] = _Answer()
            self._logs.export([record for _, record in made])
            with self._guard:
                self._under_way = 0
                if answer.is_taken:
                    self._dropped["logs"] += min(answer.rejected, len(batch))
                elif answer.may_be_taken_later:
                    kept = batch[max(0, len(batch) + len(self._events) - WAITING) :]
                    self._dropped["logs"] += len(batch) - len(kept)
                    self._events.extendleft(reversed(kept))
                else:
                    self._dropped["logs"] += len(batch)
            self._heard("logs", answer)
            if not answer.is_taken:
                return

    def _record(self, event: Event) -> ReadableLogRecord | None:
        try:
            return log_record(event, otlp.of_run(event.run, event.info), self._scope, self._limits)
        except Exception as error:  # noqa: BLE001 - of one event, which must not keep the others
            self._drop("logs", 1)
            self._fault("otlp event", f"an event of run {event.run!r} could not be made: {error!r}")
            return None

    def _push_metrics(self) -> None:
        takes = True
        for request, points in self._exporter.requests(pushed(self._view())):
            if not takes:  # it did not take the one before, and each would take its time
                self._drop("metrics", points)
                continue
            answer = self._answers["metrics"] = _Answer()
            self._metrics.export(request)
            self._drop("metrics", min(answer.rejected, points) if answer.is_taken else points)
            self._heard("metrics", answer)
            takes = answer.is_taken or not answer.may_be_taken_later

    def _drop(self, signal: Signal, count: int) -> None:
        with self._guard:
            self._dropped[signal] += count

    def _heard(self, signal: Signal, answer: _Answer) -> None:
        """Say it where the receiver begins to fail, or to take again."""
        if answer.is_taken and not answer.rejected:
            if signal in self._fails:
                self._fails.discard(signal)
                log.info("the OTLP receiver %s takes %s again", self._to, signal)
            return
        if signal not in self._fails:
            self._fails.add(signal)
            what = "does not answer" if answer.status is None else f"answers {answer.status}"
            if answer.rejected:
                what = f"took all but {answer.rejected} of what it was sent"
            why = f" ({answer.why})" if answer.why else ""
            self._fault(
                f"otlp {signal}",
                f"the OTLP receiver {self._to} {what}{why}: {signal} are dropped, and counted in resmon_agent_otlp_dropped_total, "
                "until it takes them. Training, flights and scrapes are not affected",
            )

    def _session(self, signal: Signal) -> Any:
        """Connections that note what the receiver says."""

        def note(response: Any, *_: Any, **__: Any) -> None:
            answer = self._answers[signal]
            content = response.raw.read(ANSWER, decode_content=True) or b""
            response.close()
            answer.status = response.status_code  # now that it has said all
            if not answer.is_taken:
                answer.why = printable((response.reason or "")[:SAID])
                return
            try:
                if signal == "metrics":
                    partial = ExportMetricsServiceResponse.FromString(content).partial_success
                    answer.rejected, answer.why = partial.rejected_data_points, printable(partial.error_message[:SAID])
                else:
                    taken = ExportLogsServiceResponse.FromString(content).partial_success
                    answer.rejected, answer.why = taken.rejected_log_records, printable(taken.error_message[:SAID])
            except DecodeError:
                return  # no answer of OTLP's, but taken
            answer.rejected = max(0, answer.rejected)

        session = requests.Session()
        session.stream = True  # so that no more is read than is asked for
        session.hooks["response"].append(note)
        return session
