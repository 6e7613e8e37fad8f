"""An agent as a process of its own that pushes: to a receiver, through a collector, and to one that is of no use."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

import resmon
from resmon.agent import find_or_start
from resmon.exporters.conventions import CONVENTIONS
from resmon.flight.reader import Follower
from resmon.records import StepRecord
from resmon.settings import Settings
from resmon.statistics import STATISTICS
from tests.agent.conftest import House, scrape
from tests.otlp import Receiver, Refusal, plain, receiving
from tests.ports import free_port
from tests.waiting import wait_for


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def last_record(folder: Path) -> StepRecord:
    (rank,) = folder.glob("attempt-0001/rank-*")
    follower = Follower(rank)
    records: list[Any] = [item for items in iter(follower.poll, []) for item in items if isinstance(item, StepRecord)]
    follower.close()
    newest: StepRecord = records[-1]
    return newest


def agrees(receiver: Receiver, run: Path) -> None:
    """What the receiver has of a run that is over is what its flight says, to the last bit."""
    flight = resmon.load(run)
    step = flight.steps()["step"].max()
    record = last_record(run)
    blocks = flight.blocks()
    last = blocks[blocks["step"] == step].set_index("block")
    compared = 0
    for name in STATISTICS:
        convention = CONVENTIONS.get(f"resmon_block_{name}")
        if convention is None:
            continue
        found = {dict(key)["block"]: value for key, value in receiver.numbers(convention.name, run=run.name).items()}
        expected = last[name].dropna().to_dict()
        assert found == expected, name
        compared += len(expected)
    assert compared > 20
    assert receiver.one("resmon.steps", run=run.name) == record.steps_total
    assert receiver.one("resmon.loss", run=run.name) == flight.steps()["loss"].iloc[-1]
    (durations,) = receiver.found("resmon.step.duration").values()
    assert list(durations.bucket_counts) == record.duration_buckets.tolist()
    magnitudes = {dict(key)["block"]: point for key, point in receiver.found("resmon.block.activation_magnitude").items()}
    for i, block in enumerate(last.index):
        assert magnitudes[block].sum == record.magnitude_sum[i]
        assert magnitudes[block].count == record.magnitude_buckets[i, :-1].sum()


def test_what_arrives_is_what_the_flight_says(house: House, receiver: Receiver, port: int) -> None:
    house.agent(port, 60.0, "--otlp", receiver.url, "--otlp-interval", "600")
    trainer = house.trainer("digits", last=40, pace=0.0, how="nonfinite")
    assert trainer.wait(60) == 0
    wait_for(lambda: receiver.events("resmon.run.ended"))
    wait_for(lambda: receiver.one("resmon.run.outcome", outcome="nonfinite") == 1.0)
    (opened,) = receiver.events("resmon.finding.opened")
    finding = resmon.load(house.runs / "digits").findings().iloc[0]
    attributes = plain(opened.attributes)
    assert attributes["resmon.finding.id"] == finding["id"]
    assert finding["summary"].startswith(opened.body.string_value.rstrip("."))
    assert opened.time_unix_nano == round(finding["opened_time"] * 1e9) <= opened.observed_time_unix_nano
    (closed,) = receiver.events("resmon.finding.closed")
    assert closed.body.string_value == finding["summary"]
    (incident,) = receiver.events("resmon.incident")
    assert plain(incident.attributes)["kind"] == "nonfinite"
    record = last_record(house.runs / "digits")
    nonfinite = {dict(key)["block"]: value for key, value in receiver.numbers("resmon.block.nonfinite_steps").items()}
    assert [nonfinite[f"h.{i}"] for i in range(3)] == record.nonfinite_steps.tolist()
    ratios = {dict(key)["block"]: value for key, value in receiver.numbers("resmon.block.branch_skip_ratio").items()}
    assert ratios["h.2"] != ratios["h.2"], "NaN is pushed as NaN"


def test_numbers_of_a_healthy_run_agree_in_float64(house: House, receiver: Receiver, port: int) -> None:
    house.agent(port, 60.0, "--otlp", receiver.url, "--otlp-interval", "600")
    assert house.trainer("digits", last=20, pace=0.0, how="finished").wait(60) == 0
    wait_for(lambda: receiver.one("resmon.run.outcome", outcome="finished") == 1.0)
    agrees(receiver, house.runs / "digits")


@pytest.mark.slow
def test_a_receiver_that_hangs_holds_up_neither_scrapes_nor_reading(house: House, receiver: Receiver, port: int) -> None:
    receiver.always = Refusal(hang=threading.Event())
    process = house.agent(port, 60.0, "--otlp", receiver.url, "--otlp-interval", "1")
    url = house.ready(port)
    wait_for(lambda: receiver.asked)  # from here on it hangs in a push
    trainer = house.trainer("digits", last=30, pace=0.0, how="finished")
    assert trainer.wait(60) == 0
    wait_for(lambda: scrape(url).one("resmon_steps_total", run="digits") == 31)
    wait_for(lambda: scrape(url).one("resmon_run_outcome", run="digits", outcome="finished") == 1)
    assert not receiver.metrics  # all of it while nothing was taken
    assert scrape(url).all("resmon_agent_otlp_dropped_total").keys() == {
        frozenset({("signal", "metrics")}),
        frozenset({("signal", "logs")}),
    }
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert time.monotonic() - started < 20
    assert "have not reached the OTLP receiver" in house.output(process)


@pytest.mark.slow
def test_a_receiver_that_is_not_there_is_told_once_and_counted(
    house: House, receiver: Receiver, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    receiver.close()
    process = house.agent(port, 60.0, "--otlp", receiver.url, "--otlp-interval", "1")
    url = house.ready(port)
    wait_for(lambda: (scrape(url).one("resmon_agent_otlp_dropped_total", signal="metrics") or 0) > 60)
    wait_for(lambda: (scrape(url).one("resmon_agent_errors_total") or 0) >= 1)
    assert house.output(process).count(receiver.url) == 2, house.output(process)  # where it pushes, and that it cannot


@pytest.mark.slow
def test_nothing_is_pushed_unless_asked_for(house: House, receiver: Receiver, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables say where to, and not whether."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    process = house.agent(port)
    url = house.ready(port)
    assert house.trainer("digits", last=3, pace=0.0, how="finished").wait(60) == 0
    wait_for(lambda: scrape(url).one("resmon_run_outcome", run="digits", outcome="finished") == 1)
    assert not scrape(url).all("resmon_agent_otlp_dropped_total")
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert not receiver.asked


@pytest.mark.slow
def test_an_agent_that_a_training_starts_pushes_where_the_settings_say(
    house: House, receiver: Receiver, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.of(listen=f"127.0.0.1:{port}", otlp=receiver.url, otlp_interval=1)
    find_or_start(settings)
    house.ready(port)
    wait_for(lambda: receiver.numbers("resmon.runs_active"))
    find_or_start(settings)
    assert "OTLP" not in caplog.text
    find_or_start(Settings.of(listen=f"127.0.0.1:{port}", otlp="http://127.0.0.1:1"))
    assert f"pushes to {receiver.url}, and not to the OTLP receiver http://127.0.0.1:1" in caplog.text


TRACED = """
import sys
import torch, resmon
from opentelemetry.sdk.trace import TracerProvider
from tests.integrations.networks import batch, network
tracer = TracerProvider().get_tracer("training")
model = network()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with resmon.watch(model, optimizer, run="traced", directory=sys.argv[1], agent="sidecar") as monitor:
    for epoch in range(3):
        with tracer.start_as_current_span(f"epoch {epoch}") as span:
            for step in range(10):
                x, y = batch(step)
                if (epoch, step) == (1, 5):
                    with torch.no_grad():
                        model[2].branch[3].weight.fill_(float("nan"))
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
        context = span.get_span_context()
        print(f"{context.trace_id:032x} {context.span_id:016x}", flush=True)
"""


@pytest.mark.slow
def test_findings_and_incidents_carry_the_span_of_their_step(house: House, receiver: Receiver, port: int) -> None:
    house.agent(port, 60.0, "--otlp", receiver.url, "--otlp-interval", "600")
    trainer = house.start(sys.executable, "-c", TRACED, str(house.runs))
    assert trainer.wait(120) == 0, house.output(trainer)
    printed = [line.split() for line in house.output(trainer).splitlines() if re.fullmatch("[0-9a-f]{32} [0-9a-f]{16}", line)]
    assert len(printed) == 3
    wait_for(lambda: receiver.events("resmon.run.ended"))

    def span(record: LogRecord) -> list[str]:
        return [record.trace_id.hex(), record.span_id.hex()]

    (incident, *_) = receiver.events("resmon.incident")
    assert (plain(incident.attributes)["resmon.step"], span(incident)) == (15, printed[1])
    opened = [event for event in receiver.events("resmon.finding.opened") if plain(event.attributes)["finding"] == "nonfinite"]
    assert opened and all(span(event) == printed[1] for event in opened)


@pytest.fixture
def collector(tmp_path: Path, receiver: Receiver) -> Iterator[str]:
    """rotel, a collector: takes OTLP over HTTP, decodes it, and passes on what it understood."""
    found = find_spec("rotel")
    if found is None or found.origin is None:
        has_wheel = sys.version_info < (3, 14) and (sys.platform, platform.machine()) == ("linux", "x86_64")
        assert not (has_wheel and os.environ.get("CI")), "rotel is missing; on CI it must be there"
        pytest.skip("rotel is not installed (it has no wheel for this machine)")
    port = free_port()
    command = (
        str(Path(found.origin).with_name("rotel-agent")),
        "start",
        *("--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"),
        *("--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", receiver.url),
        *("--pid-file", str(tmp_path / "rotel.pid"), "--log-file", str(tmp_path / "rotel.log")),
    )
    with (tmp_path / "rotel.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()


@pytest.mark.slow
def test_through_a_collector_everything_is_the_same(house: House, receiver: Receiver, collector: str, port: int) -> None:
    house.agent(port, 60.0, "--otlp", collector, "--otlp-interval", "1")
    assert house.trainer("digits", last=20, pace=0.0, how="finished").wait(60) == 0
    wait_for(lambda: receiver.one("resmon.run.outcome", outcome="finished") == 1.0)
    there = len(receiver.metrics)
    wait_for(lambda: len(receiver.metrics) > there + 2)  # it may cut what it passes on
    agrees(receiver, house.runs / "digits")
    assert house.trainer("spoilt", last=40, pace=0.0, how="nonfinite").wait(60) == 0
    wait_for(lambda: receiver.one("resmon.run.outcome", run="spoilt", outcome="nonfinite") == 1.0)
    ratios = {dict(key)["block"]: value for key, value in receiver.numbers("resmon.block.branch_skip_ratio", run="spoilt").items()}
    assert ratios["h.2"] != ratios["h.2"], "NaN came through"
    wait_for(lambda: receiver.events("resmon.finding.opened") and len(receiver.events("resmon.run.ended")) == 2)
