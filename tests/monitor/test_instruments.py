"""A run's figures through the program's own MeterProvider: the real SDK, its readers, and its exporter to a receiver."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from torch import nn

import resmon
from resmon.catalogue import CATALOGUE
from resmon.errors import ConfigurationError
from resmon.exporters.conventions import CONVENTIONS
from resmon.monitor import instruments
from resmon.records import RUN_VALUES
from resmon.statistics import STATISTICS
from tests import synthetic
from tests.integrations.networks import batch, network
from tests.otlp import receiving
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]

TARGET = "accuracy >= 0.2"

Found = dict[str, dict[frozenset[tuple[str, Any]], float]]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESMON_AGENT", "off")


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    made = MeterProvider([reader])
    yield made
    made.shutdown()


def collected(reader: InMemoryMetricReader) -> Found:
    data = reader.get_metrics_data()
    return {
        metric.name: {frozenset(point.attributes.items()): point.value for point in metric.data.data_points}
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def train(monitor: resmon.Monitor, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(3)) -> None:
    for step in steps:
        x, y = batch(step)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.log(loss=loss, accuracy=step / 10)


def of_blocks(found: Found, name: str) -> dict[str, float]:
    return {dict(key)["block"]: value for key, value in found.get(name, {}).items()}


def test_numbers_are_those_of_the_flight_to_the_last_bit(
    reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Path
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with resmon.watch(
        model, optimizer, run="net", directory=tmp_path, meter_provider=provider, targets="accuracy >= 0.2"
    ) as monitor:
        train(monitor, model, optimizer)
        monitor.checkpoint("last.pt")
        found = collected(reader)
    flight = resmon.load(tmp_path / "net")
    steps, blocks = flight.steps(), flight.blocks()
    last = blocks[blocks["step"] == 2].set_index("block")
    compared = 0
    for name in STATISTICS:
        convention = CONVENTIONS.get(f"resmon_block_{name}")
        if convention is not None:
            expected = last[name].dropna().to_dict()
            assert of_blocks(found, convention.name) == expected, name
            compared += len(expected)
    assert compared >= 20
    same = frozenset({("run", "net"), ("rank", "0")})
    assert found["resmon.loss"] == {same: steps["loss"].iloc[-1]}
    assert found["resmon.gradient_norm"] == {same: steps["gradient_norm"].iloc[-1]}
    assert found["resmon.steps"] == {same: 3}
    assert found["resmon.checkpoint.step"] == {same: 2}
    assert found["resmon.target_reached"] == {same | {("target", TARGET)}: 1}
    assert found["resmon.score"] == {same | {("score", "accuracy")}: 0.2}


def test_all_of_the_catalogue_is_there_but_what_is_said_to_be_elsewhere(
    reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Path
) -> None:
    assert set(instruments.ELSEWHERE) <= {metric.name for metric in CATALOGUE}
    expected = {
        CONVENTIONS[metric.name].name
        for metric in CATALOGUE
        if "run" in metric.labels and metric.kind != "histogram" and metric.name not in instruments.ELSEWHERE
    }
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = resmon.watch(model, optimizer, directory=tmp_path, meter_provider=provider)
    train(monitor, model, optimizer)
    monitor.close()
    found = set(collected(reader))
    assert found <= expected
    # Absent on a processor, without a scaler, clipping, dropped branches, 16-bit numbers, units that died, targets, checkpoints.
    seldom = ("resmon.device_memory", "resmon.target", "resmon.checkpoint")
    assert {name for name in expected - found if not name.startswith(seldom)} <= {
        "resmon.block.branch_skip_ratio_median",  # of positions, of which this model has none
        "resmon.loss_scale",
        "resmon.epoch",
        "resmon.gradient_clip_factor",
        "resmon.block.keep_ratio",
        "resmon.block.headroom",
        "resmon.block.dead_unit_ratio",
    }


def test_units_and_descriptions_are_those_of_the_table(
    reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Path
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with resmon.watch(model, optimizer, directory=tmp_path, meter_provider=provider) as monitor:
        train(monitor, model, optimizer)
        data = reader.get_metrics_data()
    conventions = {convention.name: convention for convention in CONVENTIONS.values()}
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "resmon"
    for metric in scope.metrics:
        convention = conventions[metric.name]
        assert (metric.unit, metric.description) == (convention.unit, convention.metric.help)


def test_nan_and_infinite_values_are_absent_and_counted(
    reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK takes none, and would complain of each."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with resmon.watch(model, optimizer, directory=tmp_path, meter_provider=provider) as monitor:
        train(monitor, model, optimizer, range(1))
        with torch.no_grad():
            model[1].branch[3].bias[0] = math.nan  # type: ignore[index,union-attr]
        train(monitor, model, optimizer, range(1, 2))
        monitor.log(loss=math.inf)
        found = collected(reader)
    assert "resmon.loss" not in found and "1" not in of_blocks(found, "resmon.block.branch_rms")
    assert of_blocks(found, "resmon.block.nonfinite_steps")["1"] == 1
    assert {dict(key)["kind"]: value for key, value in found["resmon.incidents"].items()}["nonfinite"] == 1
    assert "non-finite value" not in caplog.text


def test_the_provider_that_the_program_sets_later_is_used_too(tmp_path: Path) -> None:
    """In a process of its own: a program sets it once."""
    script = """
import sys
import torch, resmon
from tests.integrations.networks import batch, network
model = network()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
assert not [name for name in sys.modules if name.startswith("opentelemetry")], "importing and watching imports none of it"
monitor = resmon.watch(model, optimizer, run="net", agent="off")
x, y = batch()
def step():
    model(x).square().mean().backward()
    optimizer.step()
step()
monitor.close()
assert not [name for name in sys.modules if name.startswith("opentelemetry")], "training imports none of it"
monitor = resmon.watch(model, optimizer, run="net", agent="off", opentelemetry=True)
assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")], "the API is all that is taken"
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
set_meter_provider(MeterProvider([reader]))
step()
def points(name):
    return [
        point
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]
(point,) = points("resmon.steps")
assert point.value == 1 and point.attributes == {"run": "net", "rank": "0"}, point
monitor.close()
other = resmon.watch(model, optimizer, run="net", agent="off", opentelemetry=True)
step(); step()
(point,) = points("resmon.steps")  # of the run as it was begun again
assert point.value == 2, point
print("well")
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "well\n", result.stderr
    assert "already been created" not in result.stderr and "Traceback" not in result.stderr, result.stderr


@pytest.mark.slow
def test_training_is_the_same_to_the_last_bit_while_a_reader_collects(tmp_path: Path) -> None:
    def weights(**settings: Any) -> list[torch.Tensor]:
        model = network(4)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        with resmon.watch(model, optimizer, directory=tmp_path, **settings) as monitor:
            train(monitor, model, optimizer, range(30))
        return [parameter.detach().clone() for parameter in model.parameters()]

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    over = threading.Event()
    seen: list[Found] = []

    def collect() -> None:
        while not over.is_set():
            seen.append(collected(reader))

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        shown = weights(meter_provider=provider)
    finally:
        over.set()
        thread.join()
    assert "resmon.block.skip_rms" in collected(reader) and seen
    provider.shutdown()
    for one, other in zip(shown, weights(), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_computed_until_somebody_collects(
    reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    view = instruments.Shown.view
    monkeypatch.setattr(instruments.Shown, "view", lambda shown: asked.append(shown) or view(shown))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with resmon.watch(model, optimizer, directory=tmp_path, meter_provider=provider) as monitor:
        train(monitor, model, optimizer)
        assert not asked
        assert collected(reader)
        assert len(asked) == 1  # for all instruments
        assert collected(reader)
        assert len(asked) == 1  # for nothing is new
        train(monitor, model, optimizer, range(3, 4))
        assert list(collected(reader)["resmon.steps"].values()) == [4]
        assert len(asked) == 2


def test_the_sdks_exporter_brings_them_to_a_receiver(tmp_path: Path) -> None:
    with receiving() as receiver:
        exporter = OTLPMetricExporter(f"{receiver.url}/v1/metrics")
        provider = MeterProvider([PeriodicExportingMetricReader(exporter, 600_000)])
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        monitor = resmon.watch(model, optimizer, run="net", directory=tmp_path, meter_provider=provider)
        train(monitor, model, optimizer)
        monitor.close()
        provider.shutdown()  # as the interpreter's exit does it: what the run was at its end is still given
        wait_for(lambda: receiver.metrics)
        assert receiver.one("resmon.run.outcome", outcome="finished") == 1.0
        loss = resmon.load(tmp_path / "net").steps()["loss"].iloc[-1]
        assert receiver.one("resmon.loss", run="net", rank="0") == loss


def test_long_after_its_end_a_run_is_shown_no_more(
    reader: InMemoryMetricReader, provider: MeterProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with resmon.watch(model, optimizer, directory=tmp_path, meter_provider=provider) as monitor:
        train(monitor, model, optimizer)
    assert collected(reader)
    monkeypatch.setattr(instruments, "LINGER", 0.0)
    assert not collected(reader)


def test_a_reader_whose_collection_fails_harms_nobody(
    reader: InMemoryMetricReader,
    provider: MeterProvider,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(shown: instruments.Shown) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(instruments.Shown, "view", fails)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with resmon.watch(model, optimizer, run="net", directory=tmp_path, meter_provider=provider) as monitor:
        train(monitor, model, optimizer)
        assert not collected(reader)
        assert not collected(reader)
    assert caplog.text.count("could not be observed") == 1
    assert resmon.load(tmp_path / "net").outcome == "finished"


def test_of_several_ranks_a_norm_is_there_where_one_of_them_tells_it() -> None:
    def norm(replicas: float) -> float | None:
        blocks = synthetic.sites(2)
        shown = instruments.Shown()
        shown.info = synthetic.info(world_size=4, rank=3)
        shown.sites(blocks, ())
        shown.step(synthetic.Training(blocks).step())
        _, record = shown._newest or (None, None)
        assert record is not None
        record.run[RUN_VALUES.index("replicas")] = replicas
        view = shown.view()
        assert view is not None
        (run,) = view.runs
        assert run.blocks is not None
        assert run.blocks.gauges["gradient_norm"].present.all() == (replicas == 4)
        assert run.blocks.gauges["branch_rms"].present.all()
        return run.gradient_norm

    assert norm(4.0) == math.sqrt(4.0 * 4)  # the share's square is 4
    assert norm(1.0) is None


@pytest.mark.parametrize("provider", [True, "http://127.0.0.1:4318", InMemoryMetricReader()])
def test_what_is_no_provider_is_refused_before_anything_is_written(provider: Any, tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ConfigurationError, match="not a MeterProvider"):
        resmon.watch(model, torch.optim.SGD(model.parameters(), 0.1), directory=tmp_path, meter_provider=provider)
    assert not list(tmp_path.iterdir())


def test_without_the_api_it_is_said_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    model = network()
    with pytest.raises(ConfigurationError, match=r"resmon\[otel\]"):
        resmon.watch(model, torch.optim.SGD(model.parameters(), 0.1), directory=tmp_path, opentelemetry=True)
    assert not list(tmp_path.iterdir())
