"""The rules on the real server: a real agent is scraped, runs really fail, and what fires is what should."""

from __future__ import annotations

import re
import sys
import time
import urllib.parse
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from resmon.agent import register, runtime
from tests.agent.conftest import House
from tests.prometheus import RULES, Server, configuration, serving
from tests.waiting import wait_for


@pytest.fixture
def prometheus(house: House, tmp_path: Path) -> Iterator[Server]:
    """With the rules as they are committed."""
    with serving(tmp_path / "prometheus", configuration(RULES, targets=house.runtime / runtime.TARGETS)) as server:
        yield server


def test_a_block_that_goes_non_finite_is_paged_with_its_value(house: House, prometheus: Server, port: int) -> None:
    house.agent(port)
    house.trainer("digits", pace=0.05, last=100_000, how="nonfinite")
    (alert,) = wait_for(lambda: prometheus.firing("ResmonNonfinite"), 40)
    labels = {"run": "digits", "model": "Net", "block": "h.2", "finding": "nonfinite", "severity": "page"}
    assert alert["labels"] == {"alertname": "ResmonNonfinite"} | labels
    assert alert["annotations"]["summary"] == "Non-finite values: run digits, model Net, block h.2"
    assert "The block was non-finite in " in alert["annotations"]["description"]
    assert alert["annotations"]["runbook_url"].endswith("/nonfinite.md")
    assert "/resmon-block?var-run=digits&var-model=Net&var-block=h.2&from=" in alert["annotations"]["dashboard_url"]
    recorded = prometheus.query('ALERTS{alertname="ResmonNonfinite", alertstate="firing"}')
    assert [labels["block"] for labels, _ in recorded] == ["h.2"]
    prometheus.assert_rules_evaluate()
    assert prometheus.fired() == {"ResmonNonfinite"}


def test_a_run_that_is_killed_after_two_seconds_is_paged_and_taken_up_it_is_not(
    house: House, prometheus: Server, port: int
) -> None:
    """Nobody had started an agent before, and the run was over before the first scrape."""
    trainer = house.trainer("brief", pace=0.05, last=100_000, how="finished")
    wait_for(lambda: "\n20\n" in house.output(trainer))
    trainer.kill()
    trainer.wait()
    house.agent(port)
    (alert,) = wait_for(lambda: prometheus.firing("ResmonRunKilled"), 40)
    labels = {"run": "brief", "model": "Net", "outcome": "killed", "severity": "page"}
    assert alert["labels"] == {"alertname": "ResmonRunKilled"} | labels
    # It was killed while it went on, so the step that was under way may be on file.
    assert " It made 2" in alert["annotations"]["description"]
    gone = 'absent(resmon_run_outcome{run="brief"})'
    wait_for(lambda: prometheus.query(gone), 40)  # its series are over
    assert prometheus.firing("ResmonRunKilled")
    house.trainer("brief", pace=0.05, last=100_000, how="finished", launch="again")
    wait_for(lambda: not prometheus.firing("ResmonRunKilled"), 40)
    prometheus.assert_rules_evaluate()  # with two attempts in what they look back on
    assert prometheus.fired() == {"ResmonRunKilled"}


def test_nothing_fires_for_a_healthy_run_that_finishes_and_an_agent_that_leaves(
    house: House, prometheus: Server, port: int
) -> None:
    agent = house.agent(port, linger=3.0)
    assert house.trainer("digits", pace=0.02, last=150, how="finished").wait(40) == 0
    wait_for(lambda: prometheus.query('resmon_run_outcome{outcome="finished"} == 1'))
    assert agent.wait(60) == 0
    wait_for(lambda: prometheus.query("absent(resmon_runs_active)"))
    pending: set[str] = set()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pending |= {alert["labels"]["alertname"] for alert in prometheus.alerts()}
        time.sleep(0.5)
    assert pending == set()  # not even about to
    assert prometheus.fired() == set()
    prometheus.assert_rules_evaluate()


def test_a_run_of_any_name_is_paged_with_its_value(house: House, prometheus: Server, port: int) -> None:
    """What is asked for as the alert fires has the name in a query, and so have the addresses."""
    hostile = 'a"b\\c\nd{}=,é🤖/../%s %q {{ .x }}\x01\u2028&var-run=x#'
    house.agent(port)
    house.trainer(hostile, pace=0.05, last=100_000, how="nonfinite")
    (alert,) = wait_for(lambda: prometheus.firing("ResmonNonfinite"), 40)
    assert alert["labels"]["run"] == hostile
    annotations = alert["annotations"]
    assert annotations["summary"] == f"Non-finite values: run {hostile}, model Net, block h.2"
    assert "The block was non-finite in " in annotations["description"]
    parameters = urllib.parse.parse_qs(urllib.parse.urlsplit(annotations["dashboard_url"]).query)
    (since,) = parameters.pop("from")
    assert parameters == {"var-run": [hostile], "var-model": ["Net"], "var-block": ["h.2"], "to": ["now"]}
    # An hour before it began, and the same at each later evaluation.
    began = datetime.fromisoformat(alert["activeAt"]).timestamp()
    assert int(since) == pytest.approx(1000 * (began - 3600), abs=1500)
    time.sleep(3)
    (later,) = prometheus.firing("ResmonNonfinite")
    assert later["annotations"]["dashboard_url"] == annotations["dashboard_url"]


@pytest.mark.slow
def test_an_agent_that_is_killed_while_a_run_is_under_way_is_missed_until_another_comes(
    house: House, prometheus: Server, port: int
) -> None:
    agent = house.agent(port)
    house.trainer("digits", pace=0.1, last=100_000, how="finished")
    house.trainer("over", pace=0.02, last=20, how="finished")
    wait_for(lambda: prometheus.query('resmon_run_outcome{run="over"}'))
    wait_for(lambda: prometheus.query('resmon_steps_total{run="digits"} > 10'))
    agent.kill()
    agent.wait()
    alerts = wait_for(lambda: prometheus.firing("ResmonAgentGone"), 100)
    (alert,) = alerts  # not for the run that was over
    labels = {"run": "digits", "model": "Net", "job": "resmon", "instance": f"127.0.0.1:{port}", "severity": "page"}
    assert alert["labels"] == {"alertname": "ResmonAgentGone"} | labels
    house.agent(port)
    wait_for(lambda: not prometheus.firing("ResmonAgentGone"), 40)
    assert prometheus.fired() == {"ResmonAgentGone"}


# Minutes of rules that look at what goes on for long, in seconds; no threshold is another.
SHORTER = {
    "for: 5m": "for: 1s",
    "for: 10m": "for: 1s",
    "offset 30m": "offset 8s",  # of a stale run
    "resmon_step_duration_seconds_sum[5m]": "resmon_step_duration_seconds_sum[5s]",
    "resmon_step_duration_seconds_count[5m]": "resmon_step_duration_seconds_count[5s]",
    "[30m] offset 15m": "[10s] offset 8s",
    "mean5m offset 45m": "mean5m offset 12s",
}

# Each is a training of its own, in a process of its own. What is put in is the machine's fault or resmon's, and not the model's.
SCENES = {
    "ResmonMonitorErrors": "FAILURES['monitor-errors'](folder)",
    "ResmonSeriesBudget": "FAILURES['series-budget'](folder)",
    "ResmonRunStale": "FAILURES['stale-run'](folder)",
    "ResmonSlowSteps": """
training = Training("slow-steps", folder)
began = time.monotonic()
while True:
    time.sleep(0.02 if time.monotonic() - began < 25 else 0.1)
    training.step(*training.batch())
""",
    "ResmonMemoryHeadroom": """
training = Training("memory-headroom", folder)
training.train()
status = open("/proc/self/status").read()
used = int(status.split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (4 << 20), resource.RLIM_INFINITY))  # what is left is less than 5 % of it all
while True:
    time.sleep(0.1)
    training.step(*training.batch())
""",
}
SCRIPT = """
import resource, sys, time, torch
from tests.failing import FAILURES, Training
torch.set_num_threads(1)
torch.manual_seed(0)
folder = sys.argv[1]
{scene}
"""


@pytest.mark.slow
def test_what_no_detector_tells_is_told_of_real_runs(house: House, tmp_path: Path, port: int) -> None:
    rules = RULES.read_text()
    for usual, shorter in SHORTER.items():
        assert usual in rules
        rules = rules.replace(usual, shorter)
    (tmp_path / "rules.yaml").write_text(rules)
    house.agent(port, 600.0, "--max-series", "1200")
    house.ready(port)
    register(tmp_path / "no-flight")  # an error of the agent's own
    with serving(tmp_path / "prometheus", configuration(tmp_path / "rules.yaml", targets=f"127.0.0.1:{port}")) as prometheus:
        found: dict[str, Any] = {}

        def all_fire() -> bool:
            for alert in prometheus.alerts():
                if alert["state"] == "firing":
                    found[alert["labels"]["alertname"]] = alert
            return found.keys() >= {*SCENES, "ResmonAgentErrors"}

        for scene in SCENES.values():
            environment = {"RESMON_AGENT": "sidecar", "OMP_NUM_THREADS": "1"}
            house.start(sys.executable, "-c", SCRIPT.format(scene=scene), str(house.runs), environment=environment)
        wait_for(all_fire, 120, said=lambda: f"only {sorted(found)}")
        prometheus.assert_rules_evaluate()
    runs = {"ResmonMonitorErrors": "monitor-errors", "ResmonSeriesBudget": "series-budget", "ResmonRunStale": "stale-run"}
    runs |= {"ResmonSlowSteps": "slow-steps", "ResmonMemoryHeadroom": "memory-headroom"}
    says = {name: alert["annotations"]["description"] for name, alert in found.items()}
    for name, run in runs.items():
        labels = {"alertname": name, "severity": "ticket", "run": run, "model": "Sequential"}
        labels |= {"memory": "main"} if name == "ResmonMemoryHeadroom" else {}
        assert found[name]["labels"] == labels
        assert found[name]["annotations"]["runbook_url"].endswith(f"/{run}.md")
    where = {"job": "resmon", "instance": f"127.0.0.1:{port}"}
    assert found["ResmonAgentErrors"]["labels"] == {"alertname": "ResmonAgentErrors", "severity": "ticket"} | where
    assert "It has counted 1 so far." in says["ResmonAgentErrors"]
    assert "in this attempt, " in says["ResmonMonitorErrors"]
    assert re.search(r"[1-9]\d* blocks have no series .* The run may export 1200 series\.", says["ResmonSeriesBudget"])
    assert re.search(r"its newest step is (8|9|[1-9]\d)[.\d]*s old", says["ResmonRunStale"])
    assert re.search(r"A step takes [\d.]+ms .* Usual was [\d.]+ms\.", says["ResmonSlowSteps"])
    assert re.search(r"Of the main memory .* has or could have [0-4][.\d]*% is left", says["ResmonMemoryHeadroom"])
