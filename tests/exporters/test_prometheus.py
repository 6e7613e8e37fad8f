from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from resmon.catalogue import BLOCK, BY_NAME, CATALOGUE, EXPORTED_MAGNITUDE_EXPONENTS
from resmon.exporters.names import writable
from resmon.exporters.prometheus import OPENMETRICS, TEXT, Prometheus, negotiate
from resmon.exporters.view import AgentView
from resmon.records import (
    DURATION_EDGES,
    MAGNITUDE_COLUMNS,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    MAGNITUDE_NONFINITE,
    MAGNITUDE_ZERO,
    OUTCOMES,
    Finding,
    ResidualSite,
)
from tests.exporters import views
from tests.programs import program
from tests.synthetic import Training, info, sites

ASKS = {"text": "text/plain", "openmetrics": "application/openmetrics-text; version=1.0.0"}
PARSERS: dict[str, Callable[[str], Iterable[Family]]] = {"text": parse_text, "openmetrics": parse_openmetrics}
formats = pytest.mark.parametrize("kind", ASKS)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

HOSTILE = [
    'quote"',
    "back\\slash",
    "new\nline",
    "\\n is no newline",
    'all\\"\n"\\',
    "{}=,# HELP x",
    "%d %s %%",
    "日本語 ü 🤖",
    "\x01\x7f\r\t\x85\u2028",
    "",
    " ",
    "x" * 10_000,
]
UNWRITABLE = ["\ud800 half", "\udcff byte", "nul \x00"]


def samples(content: bytes, kind: str) -> Samples:
    found: Samples = {}
    for family in PARSERS[kind](content.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def of(found: Samples, name: str, **labels: str) -> dict[frozenset[tuple[str, str]], float]:
    wanted = set(labels.items())
    return {key: value for (other, key), value in found.items() if other == name and wanted <= key}


def one(found: Samples, name: str, **labels: str) -> float:
    (value,) = of(found, name, **labels).values()
    return value


def full_view(block_names: Iterable[str] = ("h.0", "h.1"), run: str = "digits", model: str = "Net") -> AgentView:
    blocks = tuple(ResidualSite(name, name, "identity", (), (), ()) for name in block_names)
    training = Training(blocks, groups=("decay", "rest"), drops=True)
    finding = Finding("i", "opened", "nonfinite", "page", "", blocks[0].name, 1, 1.0, 1, 1.0, "s", "e", "s", 0.9, "nonfinite")
    about = info(run=run, models={"": model}, host=run, git_commit=model, targets=(views.REACHED, views.MISSED))
    scores = {"loss": 1.5, "accuracy": 0.5, "epoch": 3.0}
    shown = views.run(blocks, [training.step() for _ in range(3)], about, scores, ((finding, True),))
    dropped = {"metrics": 3, "logs": 1}
    return replace(views.agent(replace(shown, outcome="failed", ended=1012.0)), last_error=1013.0, otlp_dropped=dropped)


@formats
def test_every_metric_of_the_catalogue_is_exported_and_no_other(kind: str) -> None:
    content, _ = Prometheus().render(full_view(), ASKS[kind])
    families = {family.name: family for family in PARSERS[kind](content.decode())}
    expected = {metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name for metric in CATALOGUE}
    assert set(families) == expected
    for metric in CATALOGUE:
        family = families[metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert family.samples, metric.name
        assert all(set(sample.labels) - {"le"} == set(metric.labels) for sample in family.samples)
        if kind == "openmetrics":
            assert family.unit == metric.unit
        else:
            assert f"# TYPE {metric.name} {metric.kind}\n" in content.decode()


@formats
def test_the_tables_hold_the_views_numbers(kind: str) -> None:
    view = full_view()
    content, _ = Prometheus().render(view, ASKS[kind])
    found = samples(content, kind)
    blocks = view.runs[0].blocks
    assert blocks is not None
    for name, (values, _) in blocks.gauges.items():
        metric = f"resmon_block_{name}"
        for site, value in zip(blocks.rows, values, strict=True):
            if metric in BY_NAME:
                assert one(found, metric, run="digits", model="Net", block=site.name) == value
            else:  # the flight has it
                assert not of(found, metric)
    assert one(found, "resmon_loss", run="digits") == 1.5
    assert one(found, "resmon_score", run="digits", score="accuracy") == 0.5
    assert not of(found, "resmon_score", score="loss") and not of(found, "resmon_score", score="epoch")
    assert one(found, "resmon_epoch", run="digits") == 3
    assert one(found, "resmon_score_gap", run="digits", score="loss") == 0.25
    assert one(found, "resmon_target_reached", run="digits", target=views.REACHED) == 1
    assert one(found, "resmon_target_reached", run="digits", target=views.MISSED) == 0
    assert {dict(key)["target"]: value for key, value in of(found, "resmon_target_seconds").items()} == {views.REACHED: 9.5}
    assert one(found, "resmon_checkpoint_step", run="digits") == 7
    assert one(found, "resmon_checkpoint_timestamp_seconds", run="digits") == 1011
    figures = {"cpu_seconds_total": 12.5, "threads": 4, "open_fds": 32, "read_bytes_total": 1024, "written_bytes_total": 2048}
    for name, value in figures.items():
        assert one(found, f"resmon_process_{name}", run="digits", rank="0") == value
    assert one(found, "resmon_gpu_utilization_ratio", gpu="0") == 0.5
    assert one(found, "resmon_finding_active", block="h.0", finding="nonfinite", severity="page") == 1
    assert one(found, "resmon_gradient_clip_factor", run="digits") == 0.5
    assert one(found, "resmon_loss_scale", run="digits") == 1024
    assert one(found, "resmon_steps_total", run="digits", rank="0") == 3
    assert one(found, "resmon_clipped_steps_total", run="digits", rank="0") == 3
    assert one(found, "resmon_skipped_steps_total", run="digits", rank="0") == 0
    assert one(found, "resmon_nonfinite_steps_total", run="digits", rank="0") == 2
    assert one(found, "resmon_step_duration_seconds_count", run="digits", rank="0") == 3
    assert one(found, "resmon_step_duration_seconds_sum", run="digits", rank="0") == 0.75
    assert one(found, "resmon_step_duration_seconds_bucket", le="0.125") == 0
    assert one(found, "resmon_step_duration_seconds_bucket", le="0.25") == 3
    assert len(of(found, "resmon_step_duration_seconds_bucket")) == len(DURATION_EDGES) + 1
    assert {one(found, "resmon_runs_total", outcome=outcome) for outcome in OUTCOMES} == {0, 1}


@formats
def test_the_magnitude_histogram(kind: str) -> None:
    """Zeros are below every edge, larger than the last edge is in +Inf only, what is not finite is nowhere."""
    blocks = sites(1)
    record = Training(blocks).step()
    buckets = np.zeros((1, MAGNITUDE_COLUMNS), np.int64)
    buckets[0, 0 - MAGNITUDE_LOW] = 5  # (0.5, 1]
    buckets[0, 1 - MAGNITUDE_LOW] = 7  # (1, 2]
    buckets[0, 18 - MAGNITUDE_LOW] = 11  # beyond the last exported edge, 2^16
    buckets[0, MAGNITUDE_LARGER] = 13
    buckets[0, MAGNITUDE_ZERO] = 17
    buckets[0, MAGNITUDE_NONFINITE] = 1000
    record = replace(record, magnitude_buckets=buckets, magnitude_sum=np.array([99.5]))
    content, _ = Prometheus().render(views.agent(views.run(blocks, [record])), ASKS[kind])
    found = samples(content, kind)
    name = "resmon_block_activation_magnitude"
    edges = [dict(key)["le"] for key in of(found, f"{name}_bucket")]
    assert [float(edge) for edge in edges] == [2.0**e for e in EXPORTED_MAGNITUDE_EXPONENTS] + [math.inf]
    assert 'le="1.0"' in content.decode()
    expected = {"0.25": 17, "1.0": 22, "4.0": 29, "65536.0": 29, "+Inf": 53, repr(2.0**-14): 17}
    assert {edge: one(found, f"{name}_bucket", le=edge) for edge in expected} == expected
    assert one(found, f"{name}_count") == 53
    assert one(found, f"{name}_sum") == 99.5


@formats
def test_nan_is_a_sample_and_absence_is_none(kind: str) -> None:
    blocks = sites(3)
    values = {("branch_square", 0): math.nan, ("gradient_square", 0): math.inf, ("skip_square", 2): 0.0}
    record = Training(blocks).step(values=values, absent=[("gradient_square", 1)])
    content, _ = Prometheus().render(views.agent(views.run(blocks, [record])), ASKS[kind])
    found = samples(content, kind)
    assert math.isnan(one(found, "resmon_block_branch_rms", block="h.0"))
    assert one(found, "resmon_block_gradient_norm", block="h.0") == math.inf
    assert not of(found, "resmon_block_gradient_norm", block="h.1")
    assert one(found, "resmon_block_skip_rms", block="h.2") == 0
    assert not of(found, "resmon_block_branch_skip_ratio", block="h.2")
    assert len(of(found, "resmon_block_nonfinite_steps_total")) == 3
    assert b"} nan" not in content
    assert b"} inf" not in content


@formats
def test_hostile_names_come_back_as_they_were(kind: str) -> None:
    exporter = Prometheus()
    for run, model in zip(HOSTILE, reversed(HOSTILE), strict=True):
        content, _ = exporter.render(full_view(HOSTILE, run, model), ASKS[kind])
        found = samples(content, kind)
        for metric in CATALOGUE:
            if metric.labels == BLOCK and metric.kind == "gauge":
                keys = of(found, metric.name, run=run, model=model)
                assert {dict(key)["block"] for key in keys} == set(HOSTILE)
        assert one(found, "resmon_run_info", run=run, model=model, host=run) == 1


@formats
def test_what_no_exposition_can_carry_is_replaced(kind: str) -> None:
    for name in UNWRITABLE:
        content, _ = Prometheus().render(full_view([name, "h.1"], name, name), ASKS[kind])
        clean = writable(name)
        assert "\ufffd" in clean
        assert one(samples(content, kind), "resmon_block_skip_rms", run=clean, model=clean, block=clean) > 0


@formats
@given(st.lists(st.text(st.characters()), min_size=1, max_size=5, unique=True))
@settings(max_examples=50, deadline=None)
def test_any_names_round_trip(kind: str, names: list[str]) -> None:
    content, _ = Prometheus().render(full_view(names, names[0]), ASKS[kind])
    blocks = [dict(key)["block"] for key in of(samples(content, kind), "resmon_block_skip_rms", run=writable(names[0]))]
    assert len(blocks) == len(names)
    assert {writable(name) for name in names} <= set(blocks)  # distinct names that became the same are numbered


def test_one_label_set_is_never_written_twice() -> None:
    """Two models under one label value would make Prometheus refuse the whole scrape."""
    blocks = (*sites(2, "a"), *sites(2, "b"))
    run = views.run(blocks, [Training(blocks).step()], info(models={"a": "Net", "b": "Net"}))
    for kind, ask in ASKS.items():
        content, _ = Prometheus().render(views.agent(run), ask)
        names = {dict(key)["block"] for key in of(samples(content, kind), "resmon_block_skip_rms")}
        assert names == {"h.0", "h.1", "h.0#2", "h.1#2"}


@formats
def test_runs_share_families(kind: str) -> None:
    runs = [views.run(sites(2), [Training(sites(2)).step()], info(run=name)) for name in ("a", "b")]
    content, _ = Prometheus().render(views.agent(*runs), ASKS[kind])
    assert {dict(key)["run"] for key in of(samples(content, kind), "resmon_block_skip_rms")} == {"a", "b"}
    assert content.count(b"# TYPE resmon_block_skip_rms ") == 1


@formats
def test_an_agent_without_runs(kind: str) -> None:
    content, _ = Prometheus().render(views.agent(), ASKS[kind])
    found = samples(content, kind)
    assert {dict(key)["outcome"] for key in of(found, "resmon_runs_total")} == set(OUTCOMES)
    assert not [name for name, _ in found if name.startswith("resmon_block")]


def test_labels_follow_a_change_of_sites() -> None:
    exporter = Prometheus()
    for count in (2, 3, 1):
        blocks = sites(count)
        content, _ = exporter.render(views.agent(views.run(blocks, [Training(blocks).step()])), "")
        assert len(of(samples(content, "text"), "resmon_block_skip_rms")) == count


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", OPENMETRICS),
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.9", TEXT),
        ("application/openmetrics-text;q=nonsense", TEXT),
        (
            # what Prometheus 2.42 sends
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5,*/*;q=0.1",
            OPENMETRICS,
        ),
        (";;;,,,=;q=,\x00", TEXT),
    ],
)
def test_the_format_is_what_was_asked_for(accept: str, expected: str) -> None:
    assert negotiate(accept) == expected
    content, kind = Prometheus().render(full_view(), accept)
    assert kind == expected
    assert content.endswith(b"# EOF\n") == (expected == OPENMETRICS)


def test_promtool_finds_nothing_to_say() -> None:
    promtool = program("promtool")
    content, _ = Prometheus().render(full_view(HOSTILE, HOSTILE[4], HOSTILE[7]), "")
    result = subprocess.run([promtool, "check", "metrics"], input=content, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_nothing_is_in_the_clients_global_registry() -> None:
    Prometheus().render(full_view(), "")
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("resmon")]
    assert set(BY_NAME) == {metric.name for metric in CATALOGUE}
