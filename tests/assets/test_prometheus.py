"""The rules on the real server: a real agent is scraped, runs really fail, and what fires is what should."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from resmon.agent import runtime
from tests.agent.conftest import House, wait_for
from tests.ports import free_port
from tests.programs import program

ROOT = Path(__file__).parent.parent.parent

CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: resmon
    file_sd_configs: [{{files: ["{targets}"], refresh_interval: 1s}}]
"""

Alert = dict[str, Any]


class Server:
    """A Prometheus that scrapes and evaluates once a second, with the rules as they are committed."""

    def __init__(self, house: House, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        configuration = folder / "prometheus.yml"
        targets = house.runtime / runtime.TARGETS
        configuration.write_text(CONFIGURATION.format(targets=targets, rules=ROOT / "alerts" / "resmon.yaml"))
        house.start(
            program("prometheus"),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        )
        wait_for(lambda: urllib.request.urlopen(self.url + "/-/ready", timeout=5).status == 200)

    def get(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]

    def alerts(self) -> list[Alert]:
        """What fires, or is about to."""
        return list(self.get("alerts")["alerts"])

    def firing(self, name: str) -> list[Alert]:
        return [alert for alert in self.alerts() if alert["labels"]["alertname"] == name and alert["state"] == "firing"]

    def fired(self) -> set[str]:
        """The names of all alerts that ever fired."""
        found = self.get("query", query='count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1h]))')
        return {series["metric"]["alertname"] for series in found["result"]}

    def assert_rules_evaluate(self) -> None:
        for group in self.get("rules")["groups"]:
            for rule in group["rules"]:
                assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))


@pytest.fixture
def prometheus(house: House, tmp_path: Path) -> Server:
    return Server(house, tmp_path)


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
    recorded = prometheus.get("query", query='ALERTS{alertname="ResmonNonfinite", alertstate="firing"}')["result"]
    assert [series["metric"]["block"] for series in recorded] == ["h.2"]
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
    wait_for(lambda: prometheus.get("query", query=gone)["result"], 40)  # its series are over
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
    wait_for(lambda: prometheus.get("query", query='resmon_run_outcome{outcome="finished"} == 1')["result"])
    assert agent.wait(60) == 0
    wait_for(lambda: prometheus.get("query", query="absent(resmon_runs_active)")["result"])
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
    wait_for(lambda: prometheus.get("query", query='resmon_run_outcome{run="over"}')["result"])
    wait_for(lambda: prometheus.get("query", query='resmon_steps_total{run="digits"} > 10')["result"])
    agent.kill()
    agent.wait()
    alerts = wait_for(lambda: prometheus.firing("ResmonAgentGone"), 100)
    (alert,) = alerts  # not for the run that was over
    labels = {"run": "digits", "model": "Net", "job": "resmon", "instance": f"127.0.0.1:{port}", "severity": "page"}
    assert alert["labels"] == {"alertname": "ResmonAgentGone"} | labels
    house.agent(port)
    wait_for(lambda: not prometheus.firing("ResmonAgentGone"), 40)
    assert prometheus.fired() == {"ResmonAgentGone"}
