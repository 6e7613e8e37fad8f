"""The span that the loop is in, as the real OpenTelemetry SDK has it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

import resmon
from resmon.capture.host import spans
from resmon.capture.host.spans import Spans
from resmon.records import SpanRecord
from tests.integrations.networks import batch, network


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    provider = TracerProvider()
    yield provider.get_tracer("tests")
    provider.shutdown()


def ids(span: trace.Span) -> tuple[str, str, int]:
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id), int(context.trace_flags)


def seen(record: SpanRecord | None) -> tuple[str, str, int] | None:
    return None if record is None else (record.trace_id, record.span_id, record.flags)


def test_a_span_is_noted_when_it_is_another(tracer: Tracer) -> None:
    found = Spans()
    assert found.look(0) is None
    with tracer.start_as_current_span("training") as training:
        assert seen(found.look(1)) == ids(training)
        assert found.look(2) is None
        with tracer.start_as_current_span("epoch") as epoch:
            assert seen(found.look(3)) == ids(epoch)
        assert seen(found.look(4)) == ids(training)
    assert seen(found.look(5)) == ("", "", 0)
    assert found.look(6) is None


def test_after_so_many_none_is_noted_rather_than_a_wrong_one(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MOST", 3)
    found = Spans()
    for step in range(2):
        with tracer.start_as_current_span("step") as span:
            assert seen(found.look(step)) == ids(span)
    for step in range(2, 6):
        with tracer.start_as_current_span("step"):
            assert seen(found.look(step)) == (("", "", 0) if step == 2 else None)


def test_where_nobody_traces_nothing_is_imported_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert Spans().look(0) is None
    assert "opentelemetry.trace" not in sys.modules


def test_a_library_that_is_half_there_is_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", ModuleType("opentelemetry.trace"))
    assert Spans().look(0) is None


def test_the_spans_of_a_training_stand_beside_its_rows(tracer: Tracer, tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(number: int) -> None:
        x, y = batch(number)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()

    made = []
    with resmon.watch(model, optimizer, run="net", directory=tmp_path, agent="off"):
        step(0)
        for number in (1, 2):
            with tracer.start_as_current_span("step") as span:
                made.append(ids(span))
                step(number)
    (file,) = tmp_path.rglob("spans.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["step"], line["trace_id"], line["span_id"], line["flags"]) for line in lines[:2]] == [
        (number, *span) for number, span in zip((1, 2), made, strict=True)
    ]
    assert len(lines) == 2  # the end of the run is no step


def test_without_tracing_there_is_no_such_file(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with resmon.watch(model, optimizer, run="net", directory=tmp_path, agent="off"):
        model(batch()[0]).square().mean().backward()
        optimizer.step()
    assert not list(tmp_path.rglob("spans.jsonl"))
