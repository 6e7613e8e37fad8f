"""A real Prometheus scrapes a real agent while a run is recorded, is killed, or ends."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.catalogue import BY_NAME, CATALOGUE
from resmon.exporters.ranks import Ranks
from resmon.flight.reader import Follower
from resmon.records import MAGNITUDE_EDGES, MAGNITUDE_LOW, MAGNITUDE_NONFINITE, MAGNITUDE_ZERO, Ints, StepRecord
from resmon.statistics import STATISTICS
from tests.agent.conftest import House, scrape
from tests.programs import program
from tests.prometheus import Server, configuration, serving
from tests.waiting import wait_for


@pytest.fixture
def prometheus(house: House, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "prometheus", configuration(targets=house.runtime / runtime.TARGETS)) as server:
        yield server


def newest(house: House, run_folder: str) -> tuple[Follower, StepRecord]:
    follower = Follower(house.runs / run_folder / "attempt-0001" / "rank-00000")
    record = None
    while items := follower.poll():
        record = next((item for item in reversed(items) if isinstance(item, StepRecord)), record)
    assert record is not None
    return follower, record


def test_per_block_series_move_equal_the_flight_and_go_stale(house: House, prometheus: Server, port: int) -> None:
    agent = house.agent(port, linger=6.0)  # found by the file that the agent keeps true
    trainer = house.trainer("digits", sites=4, pace=0.05, last=160, how="finished")
    series = '{run="digits",model="Net"}'
    names = {"h.0", "h.1", "h.2", "h.3"}
    gauges = [name for name in STATISTICS if f"resmon_block_{name}" in BY_NAME]
    there = [name for name in gauges if name != "keep_ratio"]  # nothing drops samples here
    for gauge in there:
        wait_for(lambda gauge=gauge: set(prometheus.by_block(f"resmon_block_{gauge}{series}")) == names)
    wait_for(lambda: prometheus.by_block(f"changes(resmon_block_skip_rms{series}[10s])").get("h.3", 0) >= 2)
    wait_for(lambda: all(rate > 1 for rate in prometheus.by_block("rate(resmon_steps_total[5s])").values()))

    # The agent is killed; the next one goes on. Prometheus sees no counter go back.
    agent.kill()
    agent.wait()
    house.agent(port, linger=6.0)
    assert trainer.wait(60) == 0

    wait_for(lambda: prometheus.by_block('resmon_run_outcome{outcome="finished"}') == {"": 1.0})
    follower, record = newest(house, "digits")
    wait_for(lambda: prometheus.by_block("resmon_steps_total").get("0") == record.steps_total == 161)
    merged = Ranks().step([(follower.columns, record)])
    for gauge in there:
        shown = prometheus.by_block(f"resmon_block_{gauge}{series}")
        for site, value in zip(merged.sites, merged.gauges[gauge].values, strict=True):
            assert shown[site.name] == value, (gauge, site.name)
    counts = prometheus.by_block(f"resmon_block_activation_magnitude_count{series}")
    assert counts == dict(zip(sorted(names), record.magnitude_buckets[:, :-1].sum(axis=1), strict=True))
    assert prometheus.by_block(f"histogram_quantile(0.5, resmon_block_activation_magnitude_bucket{series})").keys() == names
    for metric in CATALOGUE:
        if metric.kind != "gauge" and metric.name != "resmon_agent_otlp_dropped_total":  # which an agent has that pushes
            name = metric.name if metric.kind == "counter" else f"{metric.name}_bucket"
            assert prometheus.by_block(f"max(resets({name}[2m]))") == {"": 0.0}, name

    started = time.monotonic()
    wait_for(lambda: not prometheus.by_block(f"resmon_block_skip_rms{series}"), 20)
    assert time.monotonic() - started < 15  # by the mark of staleness: without it, series stay for five minutes
    wait_for(lambda: prometheus.by_block('max_over_time(resmon_runs_total{outcome="finished"}[2m])') == {"": 1.0})
    assert prometheus.by_block(f"count_over_time(resmon_block_skip_rms{series}[2m])").keys() == names


def test_a_run_that_is_killed_and_one_with_nan_and_hostile_names(house: House, prometheus: Server, port: int) -> None:
    house.agent(port)
    hostile = 'a"b\\c\nd{}=,é🤖/../%s\x01\r\u2028'
    trainer = house.trainer(hostile, pace=0.05, last=100_000, how="nonfinite")
    wait_for(lambda: prometheus.by_block("resmon_finding_active{finding='nonfinite',severity='page'}") == {"h.2": 1.0})
    quoted = json.dumps(hostile, ensure_ascii=False).replace("\u2028", "\\u2028")
    wait_for(lambda: math.isnan(prometheus.by_block(f"resmon_block_branch_rms{{run={quoted}}}")["h.2"]))
    assert prometheus.by_block(f"resmon_block_nonfinite_steps_total{{run={quoted}}}")["h.0"] == 0
    trainer.kill()
    wait_for(lambda: prometheus.by_block("resmon_finding_active") == {"h.2": 0.0})
    wait_for(lambda: prometheus.by_block('resmon_runs_total{outcome="killed"}').get("") == 1)
    # The count was there at 0 before: the increase is seen.
    assert prometheus.by_block('increase(resmon_runs_total{outcome="killed"}[1m])')[""] > 0
    assert prometheus.by_block("up") == {"": 1.0}


def test_a_run_that_dies_before_the_first_scrape_is_seen_to_end(house: House, prometheus: Server, port: int) -> None:
    """Its agent's first run: the count was never scraped at 0 before the run was over, and the run lived for a second."""
    trainer = house.trainer("brief", pace=0.05, last=20, how="failed")
    assert trainer.wait(30) == 0
    house.agent(port)
    failed = 'resmon_run_outcome{run="brief",model="Net",outcome="failed"}'
    wait_for(lambda: prometheus.by_block(failed) == {"": 1.0})
    assert prometheus.by_block('resmon_runs_total{outcome="failed"}') == {"": 0.0}  # held back
    wait_for(lambda: prometheus.by_block('increase(resmon_runs_total{outcome="failed"}[1m])').get("", 0) > 0, 30)
    success = 'sum(increase(resmon_runs_total{outcome="finished"}[1m])) / sum(increase(resmon_runs_total[1m]))'
    assert prometheus.by_block(success) == {"": 0.0}
    wait_for(lambda: not prometheus.by_block(failed), 30)  # by the mark of staleness
    assert prometheus.by_block(f"max_over_time({failed}[5m])") == {"": 1.0}


@pytest.mark.slow
def test_a_thousand_blocks_within_the_budget(house: House, prometheus: Server, port: int) -> None:
    house.agent(port)
    trainer = house.trainer("deep", sites=1000, pace=0.2, last=100_000, how="outlier")
    wait_for(lambda: prometheus.by_block("resmon_run_series"), 60.0)
    # The one block that goes wrong is there by its name with the next scrape, a second later.
    wait_for(lambda: "\n30\n" in house.output(trainer), 60.0)
    wait_for(lambda: prometheus.by_block('resmon_block_gradient_norm{block="h.999"}') == {"h.999": 1e4}, 5.0)
    wait_for(lambda: prometheus.by_block("resmon_steps_total").get("0", 0) > 120, 90.0)
    exported = prometheus.by_block('count({run="deep"})')[""]
    assert 9_000 < exported <= 10_000
    assert prometheus.by_block("resmon_run_series_limit") == {"": 10_000}
    # Between two scrapes a gauge may come or go; here none does.
    assert prometheus.by_block("resmon_run_series") == {"": exported}
    named = {block for block in prometheus.by_block("resmon_block_skip_rms") if ".." not in block}
    assert prometheus.by_block("resmon_run_folded_blocks") == {"": 1000 - len(named)}
    assert prometheus.by_block("resmon_run_blocks") == {"": 1000}
    # The stages hold every block once: as many samples as in the flight when its newest step was scraped.
    stages = prometheus.by_block('resmon_block_skip_rms{block=~".*[.][.].*"}')
    assert len(stages) + len(named) == len(prometheus.by_block("resmon_block_skip_rms"))
    trainer.kill()
    trainer.wait()
    _, record = newest(house, "deep")
    wait_for(lambda: prometheus.by_block("resmon_steps_total").get("0") == record.steps_total)
    total = prometheus.by_block('sum(resmon_block_activation_magnitude_count{block=~".*[.][.].*"})')
    assert total == {"": record.magnitude_buckets[:, :MAGNITUDE_NONFINITE].sum()}
    # All that has ever been there: the same blocks as now.
    ever = prometheus.by_block("count_over_time(resmon_block_skip_rms[10m])")
    assert len(ever) <= len(stages) + len(named) + 5
    for metric in CATALOGUE:
        if metric.kind != "gauge" and metric.name != "resmon_agent_otlp_dropped_total":  # which an agent has that pushes
            name = metric.name if metric.kind == "counter" else f"{metric.name}_bucket"
            assert prometheus.by_block(f"max(resets({name}[10m]))") == {"": 0.0}, name
    assert prometheus.by_block("up") == {"": 1.0}


def test_what_the_agent_serves_passes_promtool(house: House, port: int) -> None:
    promtool = program("promtool")
    house.agent(port)
    house.trainer("nan", pace=0.0, last=40, how="nonfinite")
    url = house.ready(port)
    wait_for(lambda: scrape(url).all("resmon_finding_active"))
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        content = response.read()
    result = subprocess.run([promtool, "check", "metrics"], input=content, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_native_histograms_agree_with_the_flight(house: House, tmp_path: Path, port: int) -> None:
    given = configuration(targets=house.runtime / runtime.TARGETS)
    with serving(tmp_path / "prometheus", given, flags=("--enable-feature=native-histograms",)) as prometheus:
        _agree(prometheus, house, port)


def _agree(prometheus: Server, house: House, port: int) -> None:
    house.agent(port, linger=6.0)
    trainer = house.trainer("digits", sites=3, pace=0.05, last=120, how="finished")
    magnitude = 'resmon_block_activation_magnitude{run="digits"}'
    # While it trains: rates of native histograms, over blocks too, are what they are of classic ones.
    rate = f"histogram_quantile(0.5, sum(rate({magnitude}[5s])))"
    wait_for(lambda: prometheus.by_block(rate).get("", 0.0) > 0.0)
    assert trainer.wait(60) == 0
    wait_for(lambda: prometheus.by_block('resmon_run_outcome{outcome="finished"}') == {"": 1.0})
    _, record = newest(house, "digits")
    wait_for(lambda: prometheus.by_block("resmon_steps_total").get("0") == record.steps_total == 121)

    names = ["h.0", "h.1", "h.2"]
    buckets = record.magnitude_buckets[:, :MAGNITUDE_NONFINITE]
    assert prometheus.by_block(f"histogram_count({magnitude})") == dict(zip(names, buckets.sum(axis=1), strict=True))
    assert prometheus.by_block(f"histogram_sum({magnitude})") == pytest.approx(dict(zip(names, record.magnitude_sum, strict=True)))
    # Of durations there are few series, and rules read their classic buckets.
    assert prometheus.by_block("resmon_step_duration_seconds_bucket{le='+Inf'}") == {"0": record.duration_buckets.sum()}
    for quantile in (0.05, 0.5, 0.95):
        found = prometheus.by_block(f"histogram_quantile({quantile}, {magnitude})")
        for name, row in zip(names, buckets, strict=True):
            low, high = _bucket_of(quantile, row)
            assert low <= found[name] <= high, (quantile, name)
    # A flight's edges are a native histogram's, so that shares between them are exact.
    below = record.magnitude_buckets[:, : 1 - MAGNITUDE_LOW].sum(axis=1) + record.magnitude_buckets[:, MAGNITUDE_ZERO]
    assert prometheus.by_block(f"histogram_fraction(0, 1, {magnitude})") == pytest.approx(
        dict(zip(names, below / buckets.sum(axis=1), strict=True))
    )
    assert prometheus.by_block("resmon_block_activation_magnitude_bucket{run='digits'}") == {}
    stored = prometheus.by_block('count({run="digits"})')[""]
    assert prometheus.by_block('resmon_run_series{run="digits"}')[""] == stored


def _bucket_of(quantile: float, row: Ints) -> tuple[float, float]:
    """The edges of the bucket of a flight in which a quantile lies."""
    below, rank = row[MAGNITUDE_ZERO], quantile * row.sum()
    for i, count in enumerate(row[: len(MAGNITUDE_EDGES)]):
        below += count
        if below >= rank:
            return (MAGNITUDE_EDGES[i] / 2 if i else 0.0), MAGNITUDE_EDGES[i]
    return MAGNITUDE_EDGES[-1], math.inf
