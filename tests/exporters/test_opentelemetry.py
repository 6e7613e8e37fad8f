"""What the agent pushes, as OpenTelemetry's own encoder makes it and its protobuf classes read it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, Metric

from resmon.catalogue import BY_NAME, CATALOGUE
from resmon.exporters import opentelemetry as otlp
from resmon.exporters.conventions import CONVENTIONS
from resmon.exporters.exponential import magnitudes
from resmon.exporters.points import pushed
from resmon.exporters.prometheus import Prometheus
from resmon.exporters.view import AgentView
from resmon.records import DURATION_EDGES, MAGNITUDE_LARGER, MAGNITUDE_LOW, MAGNITUDE_ZERO, Finding
from tests.exporters import views
from tests.exporters.test_prometheus import HOSTILE, UNWRITABLE, full_view, samples
from tests.otlp import Labels, labels, plain
from tests.otlp import metrics as metrics_of
from tests.synthetic import Training, info, sites

CATALOGUED = {convention.name: convention.metric for convention in CONVENTIONS.values()}


def encoded(view: AgentView) -> list[ExportMetricsServiceRequest]:
    """As it is sent."""
    made = [(encode_metrics(request), points) for request, points in otlp.OpenTelemetry("0").requests(view)]
    for request, points in made:
        assert sum(len(getattr(each, each.WhichOneof("data")).data_points) for each in metrics_of(request)) == points
    return [ExportMetricsServiceRequest.FromString(request.SerializeToString()) for request, _ in made]


def points(view: AgentView) -> Iterator[tuple[Metric, Labels, Any]]:
    seen = set()
    for request in encoded(view):
        for metric in metrics_of(request):
            for point in getattr(metric, metric.WhichOneof("data")).data_points:
                key = metric.name, labels(point.attributes)
                assert key not in seen, f"{key} is there twice"
                seen.add(key)
                yield metric, key[1], point


def bits(value: float) -> bytes:
    return b"NaN" if math.isnan(value) else struct.pack("<d", value)


def test_every_metric_of_the_catalogue_is_there_as_the_table_has_it() -> None:
    found = {metric.name: metric for metric, _, _ in points(full_view())}
    assert set(found) == set(CATALOGUED)
    for name, metric in found.items():
        catalogued = CATALOGUED[name]
        assert (metric.unit, metric.description) == (CONVENTIONS[catalogued.name].unit, catalogued.help)
        if catalogued.kind == "counter":
            assert metric.sum.is_monotonic
            assert metric.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
        else:
            assert metric.WhichOneof("data") == {"resmon.step.duration": "histogram"}.get(
                name, "gauge" if catalogued.kind == "gauge" else "exponential_histogram"
            )


def spoilt_view() -> AgentView:
    """NaN and infinite values of blocks, of scores and of norms."""
    blocks = sites(4)
    training = Training(blocks)
    infinite = {("gradient_square", 1): math.inf, ("skip_square", 2): math.nan, ("gradient_square", 0): 1e-310}
    records = [training.step(), training.step(forward=[3], backward=[0], values=infinite, absent=[("gradient_square", 2)])]
    shown = views.run(blocks, records, scores={"loss": math.nan, "worst": -math.inf, "best": math.inf, "tiny": 5e-324})
    return views.agent(replace(shown, gradient_norm=math.inf, loss_max=math.nan))


@pytest.mark.parametrize("view", [full_view(), spoilt_view()], ids=["healthy", "spoilt"])
def test_numbers_are_those_of_a_scrape_to_the_last_bit(view: AgentView) -> None:
    """NaN and infinite ones too; and what is absent there is absent here."""
    view = pushed(view)
    scraped = samples(Prometheus().render(view, "text/plain")[0], "text")
    numbers = {
        (CATALOGUED[metric.name].name, key): float(getattr(point, point.WhichOneof("value")))
        for metric, key, point in points(view)
        if CATALOGUED[metric.name].kind != "histogram"
    }
    expected = {key: value for key, value in scraped.items() if key[0] in BY_NAME and key[0] != "resmon_run_series"}
    assert {key: bits(value) for key, value in numbers.items() if key[0] != "resmon_run_series"} == {
        key: bits(value) for key, value in expected.items()
    }
    assert len(expected) > 100


def test_a_run_says_how_many_points_it_has() -> None:
    view = pushed(full_view())
    of_run = [key for _, key, _ in points(view) if ("run", "digits") in key]
    (series,) = [point for metric, _, point in points(view) if metric.name == "resmon.run.series"]
    assert series.as_int == len(of_run)


def test_magnitudes_are_in_the_buckets_of_the_flight() -> None:
    view = full_view()
    blocks = view.runs[0].blocks
    assert blocks is not None
    blocks.magnitude_buckets[0, [0, MAGNITUDE_ZERO, MAGNITUDE_LARGER]] = 7, 11, 13
    found = {key: point for metric, key, point in points(view) if metric.name == "resmon.block.activation_magnitude"}
    rows = {row.name: i for i, row in enumerate(blocks.rows)}
    assert len(found) == len(rows)
    for key, point in found.items():
        i = rows[dict(key)["block"]]
        counts = blocks.magnitude_buckets[i].tolist()
        assert (point.scale, point.zero_count, point.zero_threshold) == (0, counts[MAGNITUDE_ZERO], 0.0)
        # OpenTelemetry's bucket j is (2^j, 2^(j+1)].
        assert point.positive.offset + 1 == MAGNITUDE_LOW
        assert list(point.positive.bucket_counts) == counts[: MAGNITUDE_LARGER + 1]
        assert point.count == sum(counts[: MAGNITUDE_ZERO + 1])
        assert point.sum == blocks.magnitude_sum[i]
        assert not point.HasField("min") and not point.HasField("max")
        assert point.start_time_unix_nano == round(view.runs[0].started * 1e9) < point.time_unix_nano


def test_native_histograms_and_these_come_from_one_mapper() -> None:
    """A scrape's zero bucket has a threshold; without it the same counts stand in the bucket that ends there."""
    blocks = full_view().runs[0].blocks
    assert blocks is not None
    for native in magnitudes(blocks.magnitude_buckets, blocks.magnitude_sum):
        pushed = native.without_threshold()
        assert (pushed.count, pushed.sum, pushed.first) == (native.count, native.sum, native.first - 1)
        assert pushed.zero_count + pushed.counts[0] == native.zero_count
        assert pushed.counts[1:] == native.counts


def test_step_times_have_the_bounds_that_rules_read() -> None:
    view = full_view()
    record = view.runs[0].ranks[0].record
    assert record is not None
    (point,) = [point for metric, _, point in points(view) if metric.name == "resmon.step.duration"]
    assert list(point.explicit_bounds) == DURATION_EDGES.tolist()
    assert list(point.bucket_counts) == record.duration_buckets.tolist()
    assert (point.count, point.sum) == (record.steps_total, record.duration_total)


def test_hostile_names_of_any_length_come_whole() -> None:
    """OpenTelemetry exempts the attributes of metrics from its limits, as two series would become one if they were cut."""
    names = [*HOSTILE, *UNWRITABLE, "y" * 500 + "1", "y" * 500 + "2"]
    view = full_view(names, run=HOSTILE[8], model=HOSTILE[2])
    found = {dict(key)["block"] for metric, key, _ in points(view) if metric.name == "resmon.block.skip_rms"}
    assert len(found) == len(names)
    assert {*HOSTILE, "y" * 500 + "1", "y" * 500 + "2"} <= found


def test_each_run_is_a_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vision")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab,service.name=not me")
    one, two = full_view().runs[0], replace(full_view().runs[0], run="digits#2")
    two = replace(two, info=info(world_size=2, git_commit="abc"))
    resources = [plain(request.resource_metrics[0].resource.attributes) for request in encoded(views.agent(one, two))]
    assert all(each["service.name"] == "vision" and each["deployment.environment.name"] == "lab" for each in resources)
    assert len({each["service.instance.id"] for each in resources}) == 3
    agent, first, second = resources
    assert "resmon.run.name" not in agent
    assert (first["resmon.run.name"], first["host.name"], first["process.pid"]) == ("digits", "digits", 1)
    assert (second["resmon.run.name"], second["vcs.ref.head.revision"]) == ("digits#2", "abc")
    assert "process.pid" not in second  # of two ranks there are two


def test_requests_are_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {(metric.name, key): bits(getattr(point, "as_double", 0.0)) for metric, key, point in points(full_view())}
    monkeypatch.setattr(otlp, "MOST_POINTS", 7)
    assert {(metric.name, key): bits(getattr(point, "as_double", 0.0)) for metric, key, point in points(full_view())} == whole
    sizes = [points for _, points in otlp.OpenTelemetry("0").requests(full_view())]
    assert max(sizes) == 7 and len(sizes) > 10


def test_what_is_only_for_scrapers_is_not_pushed() -> None:
    """Who is told of the events, and when counters began, needs nothing held back."""
    view = full_view()
    finding = Finding("f", "closed", "dead_branch", "page", "", "h.1", 1, 1.0, 1, 1.0, "s", "e", "s", 0.9, "dead-branch")
    run = replace(view.runs[0], findings=((finding, False),), unseen=frozenset({"f"}))
    shown = pushed(replace(view, runs=(run,)))
    found = {metric.name: point for metric, key, point in points(shown) if ("finding", "dead_branch") in key}
    assert found["resmon.finding.active"].as_double == 0.0
    (runs,) = [point for metric, key, point in points(shown) if metric.name == "resmon.runs" and ("outcome", "finished") in key]
    assert runs.as_int == 2
    assert len(CATALOGUE) > 50
