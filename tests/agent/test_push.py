"""Pushing to a receiver that takes, refuses, wants it later, says nothing, or is not there."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from resmon.agent import launch, push, runtime, service
from resmon.agent.push import Push
from resmon.errors import ConfigurationError
from resmon.exporters import opentelemetry as otlp
from resmon.exporters.view import AgentView, Event
from resmon.records import Finding, Incident, RunEnd, SpanRecord
from resmon.settings import Settings
from tests import synthetic
from tests.exporters.test_prometheus import full_view
from tests.otlp import Receiver, Refusal, plain, receiving
from tests.waiting import wait_for


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@contextmanager
def pushing(
    to: str, interval: float = 600.0, view: Callable[[], AgentView] = full_view, faults: list[tuple[str, str]] | None = None
) -> Iterator[Push]:
    made = Push(to, interval, view, lambda about, message: (faults if faults is not None else []).append((about, message)), "0")
    made.start()
    try:
        yield made
    finally:
        made.close()


def finding(number: int = 0, **changes: object) -> Finding:
    made = Finding(
        f"f{number}", "opened", "dead_branch", "page", "", "h.1", 3, 1003.0, 3, 1003.5, "h.1 is dead.", "e", "s", 0.9, "dead-branch"
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def event(what: Finding | Incident | RunEnd | None = None, span: SpanRecord | None = None) -> Event:
    return Event("digits", synthetic.info(), what or finding(), 2000.0, span)


def test_metrics_and_events_arrive(receiver: Receiver) -> None:
    with pushing(receiver.url) as made:
        made.tell(event())
        wait_for(lambda: receiver.events() and receiver.numbers("resmon.loss"))
        assert made.dropped == {"metrics": 0, "logs": 0}
    assert receiver.one("resmon.block.depth", block="h.1") == 1.0


def test_they_come_compressed_and_with_headers_where_the_environment_says_so(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    with pushing("environment") as made:
        made.tell(event())
        wait_for(lambda: receiver.events() and receiver.numbers("resmon.loss"))
    assert all(headers["content-encoding"] == "gzip" and headers["api-key"] == "secret" for headers in receiver.headers)


def test_a_finding_is_an_event(receiver: Receiver) -> None:
    span = SpanRecord(2, 1002.0, "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", 1)
    evidence = {"ratio": float("nan"), "peak": float("inf"), "blocks": ["h.1", float("-inf")], "huge": 1 << 70, "half": "\ud800"}
    with pushing(receiver.url) as made:
        made.tell(event(finding(evidence=evidence), span))
        (record,) = wait_for(receiver.events)
    assert (record.event_name, record.severity_text, record.severity_number) == ("resmon.finding.opened", "ERROR", 17)
    assert record.body.string_value == "h.1 is dead."
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (1003_500_000_000, 2000_000_000_000)
    assert (record.trace_id.hex(), record.span_id.hex(), record.flags) == (span.trace_id, span.span_id, 1)
    attributes = plain(record.attributes)
    assert (attributes["run"], attributes["model"], attributes["block"]) == ("digits", "Net", "h.1")
    assert (attributes["finding"], attributes["severity"], attributes["resmon.step"]) == ("dead_branch", "page", 3)
    assert attributes["resmon.evidence.ratio"] != attributes["resmon.evidence.ratio"]
    assert attributes["resmon.evidence.peak"] == float("inf")
    assert attributes["resmon.evidence.blocks"] == '["h.1", "-inf"]'
    assert attributes["resmon.evidence.huge"] == str(1 << 70)
    assert attributes["resmon.evidence.half"] == "\ufffd"


def test_severities_say_how_bad_it_is(receiver: Receiver) -> None:
    told = [
        finding(1, severity="ticket"),
        finding(2, state="closed"),
        Incident("out_of_memory-3", "out_of_memory", 1004.0, 3, "no memory", rank=2, line="train.py:3: loss.backward()"),
        RunEnd("failed", 1005.0, 3, "ValueError: x"),
        RunEnd("finished", 1006.0, 3),
    ]
    with pushing(receiver.url) as made:
        for each in told:
            made.tell(event(each))
        records = wait_for(lambda: len(receiver.events()) == 5 and receiver.events())
    assert [(record.event_name, record.severity_text) for record in records] == [
        ("resmon.finding.opened", "WARN"),
        ("resmon.finding.closed", "INFO"),
        ("resmon.incident", "ERROR"),
        ("resmon.run.ended", "ERROR"),
        ("resmon.run.ended", "INFO"),
    ]
    assert not records[0].trace_id and not records[0].span_id
    incident = plain(records[2].attributes)
    assert (incident["kind"], incident["rank"], incident["resmon.line"]) == ("out_of_memory", "2", "train.py:3: loss.backward()")


def test_limits_of_attributes_hold_and_what_is_cut_is_counted(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is about stays; evidence goes first."""
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "100")
    evidence = {f"value {i}": i for i in range(200)}
    with pushing(receiver.url) as made:
        made.tell(event(finding(block="b" * 500, evidence=evidence)))
        (record,) = wait_for(receiver.events)
    attributes = plain(record.attributes)
    assert len(attributes) == 128
    assert attributes["block"] == "b" * 100
    assert {"run", "finding", "severity", "resmon.finding.id", "log.record.uid"} <= set(attributes)
    known = 14
    assert record.dropped_attributes_count == known + len(evidence) - 128
    assert attributes["resmon.evidence.value 0"] == 0 and "resmon.evidence.value 199" not in attributes


def test_what_may_be_taken_later_is_repeated_after_the_time_that_the_receiver_wants(receiver: Receiver) -> None:
    receiver.refusals = [Refusal(429, {"Retry-After": "0"}), Refusal(503, {"Retry-After": "1"}), Refusal(429, {"Retry-After": "0"})]
    started = time.monotonic()
    with pushing(receiver.url) as made:
        made.tell(event())
        wait_for(lambda: receiver.events() and receiver.numbers("resmon.loss"))
        assert time.monotonic() - started >= 1.0
        assert made.dropped == {"metrics": 0, "logs": 0}
    assert len(receiver.events()) == 1


@pytest.mark.parametrize("status", [400, 401, 413, 302])
def test_what_is_refused_for_good_is_dropped_and_counted(receiver: Receiver, status: int) -> None:
    """A redirection too: the exporter takes it for a success, and nothing has arrived."""
    receiver.always = Refusal(status, {"Location": "/elsewhere"} if status == 302 else {})
    faults: list[tuple[str, str]] = []
    points = sum(count for _, count in otlp.OpenTelemetry("0").requests(full_view()))
    with pushing(receiver.url, faults=faults) as made:
        made.tell(event())
        wait_for(lambda: made.dropped["logs"] == 1 and made.dropped["metrics"] >= points)
    assert not receiver.metrics and not receiver.logs
    assert sorted(about for about, _ in faults) == ["otlp logs", "otlp metrics"]
    assert f"answers {status}" in faults[0][1]


def test_what_is_taken_in_part_is_counted(receiver: Receiver) -> None:
    receiver.always = Refusal(200, rejected=1, said="one is \x1b[31mtoo old")
    faults: list[tuple[str, str]] = []
    with pushing(receiver.url, faults=faults) as made:
        for number in range(5):
            made.tell(event(finding(number)))
        wait_for(lambda: len(receiver.events()) == 5 and len(receiver.metrics) == 2)
        wait_for(lambda: made.dropped == {"logs": len(receiver.logs), "metrics": 2})
    assert "took all but 1 of what it was sent (one is \\x1b[31mtoo old)" in faults[0][1]


def test_a_receiver_that_is_not_there_costs_counts_and_no_event_that_has_room(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setattr(push, "WAITING", 10)
    receiver.close()
    faults: list[tuple[str, str]] = []
    with pushing(receiver.url, interval=0.1, faults=faults) as made:
        for number in range(25):
            started = time.perf_counter()
            made.tell(event(finding(number)))
            assert time.perf_counter() - started < 0.1
        wait_for(lambda: made.dropped["metrics"] > 0 and made.dropped["logs"] >= 15)
        assert made.dropped["logs"] == 15
        wait_for(lambda: {about for about, _ in faults} >= {"otlp logs", "otlp metrics"})  # it was asked for both
        receiver.open()
        wait_for(lambda: receiver.events() and receiver.numbers("resmon.loss"))
        # The newest are there, in their order, each once.
        ids = [plain(record.attributes)["resmon.finding.id"] for record in receiver.events()]
        assert ids == [f"f{number}" for number in range(15, 25)]
        assert made.dropped["logs"] == 15
    assert sorted(about for about, _ in faults) == ["otlp logs", "otlp metrics"]  # once, and not at each push
    assert "does not answer" in faults[0][1]


def test_a_receiver_that_says_nothing_holds_nobody_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "FAREWELL", 0.5)
    hang = threading.Event()
    receiver.always = Refusal(hang=hang)
    with pushing(receiver.url) as made:
        wait_for(lambda: receiver.asked)  # it is in the middle of a push, for ten seconds
        for number in range(push.WAITING + 3):
            made.tell(event(finding(number)))
        assert made.dropped["logs"] == 3
        started = time.monotonic()
        made.close()
        assert time.monotonic() - started < 5
        assert made.dropped["logs"] == push.WAITING + 3  # what is left when the agent leaves
        hang.set()


def test_an_answer_without_an_end_is_not_read(receiver: Receiver) -> None:
    receiver.always = Refusal(400, said="x" * (8 << 20))
    with pushing(receiver.url) as made:
        wait_for(lambda: made.dropped["metrics"])


def test_the_last_ones_go_when_the_agent_leaves(receiver: Receiver) -> None:
    with pushing(receiver.url) as made:
        wait_for(lambda: len(receiver.metrics) == 2)
        made.tell(event())
    assert len(receiver.events()) == 1 and len(receiver.metrics) == 4


def test_after_the_end_of_a_run_its_last_metrics_go_at_once(receiver: Receiver) -> None:
    with pushing(receiver.url) as made:
        wait_for(lambda: len(receiver.metrics) == 2)
        made.tell(event(RunEnd("finished", 1006.0, 3)))
        wait_for(lambda: len(receiver.metrics) == 4)
        made.tell(event())
        wait_for(lambda: len(receiver.events()) == 2)
        assert len(receiver.metrics) == 4  # an event alone does not hurry them


def test_an_event_that_cannot_be_made_keeps_no_other(receiver: Receiver) -> None:
    faults: list[tuple[str, str]] = []
    with pushing(receiver.url, faults=faults) as made:
        made.tell(event(span=SpanRecord(3, 3.0, "no hexadecimal digits", "", 0)))
        made.tell(event(finding(2)))
        (record,) = wait_for(receiver.events)
        assert made.dropped["logs"] == 1
    assert plain(record.attributes)["resmon.finding.id"] == "f2"
    assert "could not be made" in faults[0][1]


def test_a_view_that_cannot_be_had_ends_no_push(receiver: Receiver) -> None:
    turns = iter([ValueError("no view")])

    def view() -> AgentView:
        for error in turns:
            raise error
        return full_view()

    faults: list[tuple[str, str]] = []
    with pushing(receiver.url, interval=0.1, view=view, faults=faults):
        wait_for(lambda: receiver.numbers("resmon.loss"))
    assert "no view" in faults[0][1]


def test_without_what_pushing_takes_an_agent_is_started_that_only_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.of(otlp="http://127.0.0.1:4318", otlp_interval=2)
    assert launch._pushing(settings) == ["--otlp", "http://127.0.0.1:4318", "--otlp-interval", "2.0"]
    assert launch._pushing(Settings.of()) == []
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    assert launch._pushing(settings) == []
    assert "pip install 'resmon[otel]'" in caplog.text


def test_one_that_is_started_by_hand_says_what_it_takes(runtime_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'resmon\[otel\]'"):
        service.main("127.0.0.1:0", 0.0, 1000, otlp="http://127.0.0.1:4318")
    assert runtime.serving(runtime_folder) is None
