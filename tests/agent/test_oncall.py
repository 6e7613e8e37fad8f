"""From a bad step to the pager, for real: a training process, the agent, Prometheus, Alertmanager, and a webhook at the end.

The rules are the shipped ones, as they are. Of Alertmanager's configuration the addresses are those of the test, and the minutes
between two notifications about one group are seconds; how long a page waits for its group is as shipped.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import resmon
from resmon.agent import runtime
from tests.agent.conftest import House
from tests.prometheus import RULES, configuration, serving
from tests.prometheus import Server as Prometheus
from tests.servers.alertmanager.servers import Heard, receiver, running
from tests.servers.alertmanager.servers import Server as Alertmanager
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent.parent
SCRAPE = EVALUATION = 1.0  # seconds, of tests.prometheus
GROUP_WAIT = 5.0  # of pages, as shipped
GROUP_INTERVAL = 4.0  # of the test's configuration
BAD_STEP = 30  # of tests.agent.trainer


def routes(url: str) -> str:
    """The shipped one, for this test's receiver."""
    text = (ROOT / "alerts" / "alertmanager.yml").read_text().replace("http://127.0.0.1:9095", url)
    assert url in text
    return re.sub(r"group_interval: \w+", f"group_interval: {GROUP_INTERVAL:.0f}s", text)


class Chain:
    """All of it, and what arrived at the end, and when."""

    def __init__(self, house: House, heard: Heard, alertmanager: Alertmanager, prometheus: Prometheus, port: int) -> None:
        self.house, self.heard, self.alertmanager, self.prometheus = house, heard, alertmanager, prometheus
        self.port = port
        self.agent = house.agent(port)
        wait_for(lambda: self.query("resmon_agent_info"))

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return self.prometheus.query(expression)

    def pages(self, alert: str, status: str = "firing") -> list[dict[str, Any]]:
        """Notifications at the pager that are about that alert."""
        found = [each for each in self.heard.of("/page") if each["status"] == status]
        return [each for each in found if alert in {one["labels"]["alertname"] for one in each["alerts"]}]

    def bad_step(self, run: str) -> float:
        """When the first bad step was made."""
        steps = resmon.load(self.house.runs / run).steps()
        return float(steps.loc[steps["step"] == BAD_STEP, "time"].iloc[0].timestamp())

    def resmon(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "resmon", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def chain(house: House, tmp_path: Path, port: int) -> Iterator[Chain]:
    targets = house.runtime / runtime.TARGETS
    with receiver() as heard, running(tmp_path / "alertmanager", routes(heard.url)) as alertmanager:
        given = configuration(RULES, targets=targets, alertmanager=f"127.0.0.1:{alertmanager.port}")
        with serving(tmp_path / "prometheus", given) as prometheus:
            yield Chain(house, heard, alertmanager, prometheus, port)


def runs_of(notification: dict[str, Any]) -> set[str]:
    return {alert["labels"]["run"] for alert in notification["alerts"]}


def test_a_bad_step_becomes_one_page(chain: Chain) -> None:
    chain.house.trainer("first", pace=0.05, last=100_000, how="nonfinite")
    (page,) = wait_for(lambda: chain.pages("ResmonNonfinite"), 40.0)
    arrived = time.time()
    (alert,) = page["alerts"]
    assert alert["labels"] == {
        "alertname": "ResmonNonfinite",
        "severity": "page",
        "finding": "nonfinite",
        "run": "first",
        "model": "Net",
        "block": "h.2",
    }
    assert all(word in alert["annotations"]["summary"] for word in ("first", "Net", "h.2"))
    assert re.search(r"non-finite in [1-9]\d* steps", alert["annotations"]["description"])
    assert alert["annotations"]["runbook_url"].endswith("/runbooks/nonfinite.md")
    latency = arrived - chain.bad_step("first")
    print(f"from the bad step to the page: {latency:.1f} s")
    assert latency <= SCRAPE + EVALUATION + GROUP_WAIT + 5.0

    # Another run of the same model breaks likewise: it joins the page that is there, whose key a pager knows.
    chain.house.trainer("second", pace=0.05, last=100_000, how="nonfinite")
    wait_for(lambda: any(runs_of(each) == {"first", "second"} for each in chain.pages("ResmonNonfinite")), 40.0)
    assert len({each["groupKey"] for each in chain.pages("ResmonNonfinite")}) == 1
    assert not chain.heard.of("/ticket")


def test_a_silenced_run_pages_nobody(chain: Chain) -> None:
    said = chain.resmon(
        *("silence", "--run", "quiet", "--for", "1h", "--comment", "we know", "--alertmanager", chain.alertmanager.url)
    )
    assert "quiet" in said
    chain.house.trainer("quiet", pace=0.05, last=100_000, how="nonfinite")
    chain.house.trainer("loud", pace=0.05, last=100_000, how="nonfinite")
    wait_for(lambda: chain.pages("ResmonNonfinite"), 40.0)
    wait_for(lambda: chain.query('ALERTS{alertname="ResmonNonfinite",alertstate="firing",run="quiet"}'))
    time.sleep(GROUP_WAIT + 2 * GROUP_INTERVAL)
    assert {run for each in chain.heard.of("/page") for run in runs_of(each)} == {"loud"}


def test_a_run_that_dies_within_seconds_pages_and_lowers_the_success_rate(chain: Chain) -> None:
    trainer = chain.house.trainer("brief", pace=0.0, last=BAD_STEP + 5, how="nonfinite")
    assert trainer.wait(20) == 0
    alerts = ("ResmonRunNonfinite", "ResmonNonfinite")
    wait_for(lambda: any(runs_of(page) == {"brief"} for alert in alerts for page in chain.pages(alert)), 40.0)
    wait_for(lambda: any(value > 0 for _, value in chain.query('increase(resmon_runs_total{outcome="nonfinite"}[5m])')), 60.0)


@pytest.mark.slow
def test_an_agent_that_is_killed_is_noticed_and_the_end_of_it_too(chain: Chain) -> None:
    chain.house.trainer("orphan", pace=0.2, last=100_000, how="sleep")
    wait_for(lambda: chain.query('resmon_steps_total{run="orphan"}'))
    chain.agent.kill()
    chain.agent.wait()
    (page,) = wait_for(lambda: chain.pages("ResmonAgentGone"), 120.0)
    assert page["alerts"][0]["labels"]["run"] == "orphan"
    assert page["alerts"][0]["annotations"]["runbook_url"].endswith("/runbooks/agent-gone.md")
    chain.house.agent(chain.port)
    resolved = wait_for(lambda: chain.pages("ResmonAgentGone", "resolved"), 120.0)[0]
    ended = datetime.fromisoformat(resolved["alerts"][0]["endsAt"])
    assert ended.timestamp() <= time.time() + 1


@pytest.mark.slow
def test_the_resolved_notice_comes(chain: Chain) -> None:
    trainer = chain.house.trainer("over", pace=0.05, last=100_000, how="nonfinite")
    wait_for(lambda: chain.pages("ResmonNonfinite"))
    trainer.kill()
    wait_for(lambda: chain.pages("ResmonNonfinite", "resolved"), 240.0)
