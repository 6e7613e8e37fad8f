"""The protobuf exposition, as Google's library reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.catalogue import BLOCK, CATALOGUE
from resmon.exporters import protobuf
from resmon.exporters.exponential import Exponential
from resmon.exporters.names import writable
from resmon.exporters.prometheus import PROTOBUF, Prometheus
from resmon.exporters.view import AgentView
from resmon.records import (
    DURATION_EDGES,
    MAGNITUDE_COLUMNS,
    MAGNITUDE_HIGH,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    MAGNITUDE_NONFINITE,
    MAGNITUDE_ZERO,
)
from tests.exporters import views
from tests.exporters.client_model import buckets, families
from tests.exporters.test_prometheus import HOSTILE, UNWRITABLE, full_view, samples
from tests.synthetic import Training, info, sites

TYPES = {0: "counter", 1: "gauge", 4: "histogram"}
Labels = frozenset[tuple[str, str]]


def rendered(view: AgentView, exporter: Prometheus | None = None) -> dict[str, Any]:
    content, kind = (exporter or Prometheus()).render(view, PROTOBUF)
    assert kind == PROTOBUF
    found = list(families(content))
    assert len({family.name for family in found}) == len(found), "a family is there twice"
    return {family.name: family for family in found}


def metrics(family: Any) -> dict[Labels, Any]:
    found = {frozenset((pair.name, pair.value) for pair in metric.label): metric for metric in family.metric}
    assert len(found) == len(family.metric), "a label set is there twice"
    return found


def test_every_metric_of_the_catalogue_is_there_and_no_other() -> None:
    found = rendered(full_view())
    assert set(found) == {metric.name for metric in CATALOGUE}
    for metric in CATALOGUE:
        family = found[metric.name]
        assert (TYPES[family.type], family.help) == (metric.kind, metric.help)
        for each in family.metric:
            assert [pair.name for pair in each.label] == list(metric.labels)
            assert each.HasField(metric.kind)


def test_it_says_what_the_text_says() -> None:
    """All values, and the classic buckets of histograms, are those of the text; only the number of series is another."""
    view = full_view(("h.0", "h.1", "h.2"))
    text = samples(Prometheus().render(view, "text/plain")[0], "text")
    found = {}
    for name, family in rendered(view).items():
        for labels, metric in metrics(family).items():
            if metric.HasField("histogram"):
                histogram = metric.histogram
                found[f"{name}_count", labels] = found[f"{name}_bucket", labels | {("le", "+Inf")}] = histogram.sample_count
                found[f"{name}_sum", labels] = histogram.sample_sum
                for bucket in histogram.bucket:
                    found[f"{name}_bucket", labels | {("le", repr(bucket.upper_bound))}] = bucket.cumulative_count
            else:
                found[name, labels] = (metric.gauge if metric.HasField("gauge") else metric.counter).value
    series = ("resmon_run_series", frozenset({("run", "digits")}))
    classic, native = text.pop(series), found.pop(series)
    assert found == text
    written = [name for name, labels in text if ("run", "digits") in labels]
    assert classic == len(written) + 1
    inside = sum(name in ("resmon_block_activation_magnitude_bucket", "resmon_block_activation_magnitude_sum") for name in written)
    assert native == classic - inside


def test_the_page_says_by_how_much_the_series_fall() -> None:
    view = views.agent(views.run(blocks := sites(206), [Training(blocks).step()]))
    classic = len(samples(Prometheus().render(view, "text/plain")[0], "text"))
    native = sum(len(family.metric) for family in rendered(view).values())
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert f"Of a model of 206 blocks that is {native:,} series instead of {classic:,}." in page


def histogram(of: Exponential, labels: Mapping[str, str] | None = None, edges: Sequence[tuple[int, float]] = ()) -> Any:
    content = protobuf.family("h", "", "histogram", [protobuf.histogram(protobuf.labels(labels or {}), of, edges)])
    ((metric,),) = (family.metric for family in families(content))
    return metric.histogram


@given(
    st.lists(st.sampled_from([0, 0, 0, 1, 2, 300, 2**40]), max_size=45),
    st.integers(-1100, 1100),
    st.integers(0, 2**60),
    st.floats(),
)
def test_spans_and_deltas_say_the_counts(counts: list[int], first: int, zero: int, total: float) -> None:
    found = histogram(Exponential(total, 0.25, zero, first, counts))
    assert {index: count for index, count in buckets(found).items() if count} == {
        index: count for index, count in enumerate(counts, first) if count
    }
    assert found.sample_count == sum(counts) + zero
    assert found.sample_sum == total or (math.isnan(total) and math.isnan(found.sample_sum))
    assert (found.schema, found.zero_threshold, found.zero_count) == (0, 0.25, zero)


def test_step_durations_are_classic_for_the_rules_that_read_them() -> None:
    (metric,) = rendered(full_view())["resmon_step_duration_seconds"].metric
    assert not metric.histogram.HasField("zero_threshold")
    assert len(metric.histogram.bucket) == len(DURATION_EDGES)


def test_what_is_empty_is_not_written() -> None:
    found = histogram(Exponential(9.0, 0.25, 0, -19, [0] * 10 + [5] + [0] * 20 + [7, 0, 8] + [0] * 6))
    assert [(span.offset, span.length) for span in found.positive_span] == [(-9, 1), (20, 3)]
    assert list(found.positive_delta) == [5, 2, -7, 8]
    assert histogram(Exponential(0.0, 0.25, 0, -19, [0] * 10)).HasField("zero_threshold"), "else it is no native histogram"


def test_the_magnitude_histogram() -> None:
    """Native buckets are those of the flight; the zero bucket has zeros and what is below its lowest edge."""
    blocks = sites(1)
    table = np.zeros((1, MAGNITUDE_COLUMNS), np.int64)
    given_ = {0: 5, 1: 7, 18: 11, MAGNITUDE_LOW: 19}
    for power, count in given_.items():
        table[0, power - MAGNITUDE_LOW] = count
    table[0, MAGNITUDE_LARGER], table[0, MAGNITUDE_ZERO], table[0, MAGNITUDE_NONFINITE] = 13, 17, 1000
    record = replace(Training(blocks).step(), magnitude_buckets=table, magnitude_sum=np.array([99.5]))
    found = rendered(views.agent(views.run(blocks, [record])))
    (metric,) = found["resmon_block_activation_magnitude"].metric
    filled = {index: count for index, count in buckets(metric.histogram).items() if count}
    assert filled == {0: 5, 1: 7, 18: 11, MAGNITUDE_HIGH + 1: 13}
    assert (metric.histogram.zero_count, metric.histogram.zero_threshold) == (17 + 19, 2.0**MAGNITUDE_LOW)
    assert (metric.histogram.sample_count, metric.histogram.sample_sum) == (72, 99.5)


def test_nan_is_a_value_and_absence_is_none() -> None:
    blocks = sites(3)
    values = {("branch_square", 0): math.nan, ("gradient_square", 0): math.inf, ("skip_square", 2): 0.0}
    record = Training(blocks).step(values=values, absent=[("gradient_square", 1)])
    found = rendered(views.agent(views.run(blocks, [record])))
    of = {
        name: {dict(labels)["block"]: metric.gauge.value for labels, metric in metrics(found[f"resmon_block_{name}"]).items()}
        for name in ("branch_rms", "gradient_norm", "branch_skip_ratio")
    }
    assert math.isnan(of["branch_rms"]["h.0"])
    assert of["gradient_norm"]["h.0"] == math.inf
    assert set(of["gradient_norm"]) == {"h.0", "h.2"}
    assert set(of["branch_skip_ratio"]) == {"h.0", "h.1"}


def test_hostile_names_come_back_as_they_were() -> None:
    exporter = Prometheus()
    for run, model in zip(HOSTILE, reversed(HOSTILE), strict=True):
        found = rendered(full_view(HOSTILE, run, model), exporter)
        for metric in CATALOGUE:
            if metric.labels == BLOCK:
                of = [dict(labels) for labels in metrics(found[metric.name])]
                assert {(each["run"], each["model"]) for each in of} == {(run, model)}
                assert {each["block"] for each in of} == set(HOSTILE)
    for name in UNWRITABLE:
        found = rendered(full_view([name, "h.1"], name, name))
        assert {dict(labels)["run"] for labels in metrics(found["resmon_block_skip_rms"])} == {writable(name)}


@given(st.lists(st.text(st.characters()), min_size=1, max_size=5, unique=True))
@settings(max_examples=50, deadline=None)
def test_any_names_come_back(names: list[str]) -> None:
    found = rendered(full_view(names, names[0]))
    blocks = [dict(labels)["block"] for labels in metrics(found["resmon_block_skip_rms"])]
    assert {writable(name) for name in names} <= set(blocks)


def test_labels_follow_a_change_of_sites_and_runs_share_families() -> None:
    exporter = Prometheus()
    for count in (2, 3, 1):
        runs = [views.run(sites(count), [Training(sites(count)).step()], info(run=name)) for name in ("a", "b")]
        found = rendered(views.agent(*runs), exporter)
        assert len(found["resmon_block_skip_rms"].metric) == 2 * count


def test_an_agent_without_runs() -> None:
    found = rendered(views.agent())
    assert not [name for name in found if name.startswith("resmon_block")]
    assert "resmon_step_duration_seconds" not in found, "a family without a metric is refused by servers"
    assert "resmon_runs_total" in found


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        # what Prometheus 2.42 sends with native histograms on
        (
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
                "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
                "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
            ),
            True,
        ),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", False),
        ("application/vnd.google.protobuf;encoding=delimited", False),
        ("application/vnd.google.protobuf;proto=other.Message;encoding=delimited", False),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.3,text/plain;q=0.5",
            False,
        ),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0", False),
        ("APPLICATION/VND.GOOGLE.PROTOBUF ; PROTO=io.prometheus.client.MetricFamily ; Encoding=delimited", True),
    ],
)
def test_it_is_given_to_those_who_ask_for_it(accept: str, expected: bool) -> None:
    assert (Prometheus().render(full_view(), accept)[1] == PROTOBUF) == expected
