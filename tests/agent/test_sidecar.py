"""The agent in a container beside the training's, as deploy/kubernetes has it: folders in common, process namespaces of their own.

Each process here is the first of a namespace, as a container's is, so that no number of a process means anything to the other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.catalogue import CATALOGUE
from resmon.flight import layout
from tests import forkserver
from tests.agent.conftest import ROOT, House, get, scrape
from tests.programs import program
from tests.prometheus import configuration, serving
from tests.waiting import wait_for

FIGURES = [metric.name for metric in CATALOGUE if metric.name.startswith("resmon_process_")]


@pytest.fixture(scope="module")
def container() -> list[str]:
    """What is put before a command."""
    user = [] if os.getuid() == 0 else ["--user", "--map-current-user"]
    command = [program("unshare"), *user, "--pid", "--fork", "--kill-child", "--mount-proc"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        assert not (os.environ.get("CI") and os.getuid() == 0), tried.stderr
        pytest.skip(f"process namespaces cannot be made here: {tried.stderr.strip()}")
    return command


def agent(house: House, container: list[str], port: int, *options: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "resmon", "agent", "--listen", f"127.0.0.1:{port}", *options)
    return house.start(*container, *command)


def trainer(house: House, container: list[str], run: str, last: int, pace: float = 0.05) -> subprocess.Popen[str]:
    what = (str(house.runs), run, "0", "1", "3", str(pace), str(last), "finished")
    return house.start(*container, sys.executable, "-m", "tests.agent.trainer", *what)


def first(process: subprocess.Popen[str]) -> int:
    """The first process in the container, by its number outside."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def test_an_agent_tells_how_runs_in_another_container_end(house: House, container: list[str], port: int) -> None:
    agent(house, container, port)
    url = house.ready(port)
    serves = runtime.serving(house.runtime)
    assert serves is not None and (serves.pid, serves.url) == (1, url)  # the seat is seen from outside, its number is not ours
    dies = trainer(house, container, "dies", 100_000)
    now = wait_for(lambda: (page := scrape(url)).one("resmon_steps_total", run="dies") and page)
    assert now.one("resmon_runs_active") == 1
    assert not any(now.all(name) for name in FIGURES)  # whose they would be cannot be seen from there
    assert trainer(house, container, "ends", 20).wait(30) == 0
    wait_for(lambda: scrape(url).one("resmon_run_outcome", run="ends", outcome="finished") == 1)
    assert scrape(url).one("resmon_steps_total", run="ends") == 21
    assert not scrape(url).all("resmon_run_outcome", run="dies")
    os.kill(first(dies), signal.SIGKILL)
    dies.wait(30)
    wait_for(lambda: scrape(url).one("resmon_run_outcome", run="dies", outcome="killed") == 1)
    assert scrape(url).one("resmon_agent_errors_total") == 0


def test_only_one_agent_serves_though_they_are_in_two_containers(house: House, container: list[str], port: int) -> None:
    agent(house, container, port)
    url = house.ready(port)
    second = agent(house, container, port)
    assert second.wait(30) == 0
    assert f"another one serves already, at {url}/metrics" in house.output(second)


WATCHED = """
import logging, sys, resmon, torch
from torch import nn
logging.basicConfig(level=logging.INFO)
model = nn.Sequential(nn.Linear(4, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with resmon.watch(model, optimizer, run="beside", directory=sys.argv[1]):
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
"""


def test_a_training_beside_an_agent_starts_none_and_is_taken_up_by_it(house: House, port: int) -> None:
    def train() -> str:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RESMON_AGENT": "sidecar", "RESMON_LISTEN": f"127.0.0.1:{port}"}
        done = forkserver.run("-c", WATCHED, house.runs, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert f"to be served by the next agent whose runtime folder is {house.runtime}" in train()
    assert runtime.serving(house.runtime) is None and not (house.runtime / runtime.LOG).exists()
    house.agent(port)
    url = house.ready(port)
    wait_for(lambda: scrape(url).one("resmon_run_outcome", run="beside", outcome="finished") == 1)
    assert f"seen at {url}/?run=" in train()
    wait_for(lambda: scrape(url).one("resmon_run_info", run="beside", attempt="2") == 1)


def test_of_a_port_that_the_system_chooses_the_log_tells(house: House) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESMON_AGENT": "auto", "RESMON_LISTEN": "127.0.0.1:0"}
    done = forkserver.run("-c", WATCHED, house.runs, env=environment)
    assert done.returncode == 0, done.stderr
    log = house.runtime / runtime.LOG
    assert f"to be seen where {log} says" in done.stderr and ":0/" not in done.stderr
    wait_for(lambda: "serving http://127.0.0.1:" in log.read_text())


def test_the_runtime_folder_may_lie_in_a_volume_that_all_may_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an emptyDir with an fsGroup: what is made in it belongs to its group too."""
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o2777)
    monkeypatch.setenv("RESMON_RUNTIME_DIR", str(volume / "agent"))
    folder = runtime.folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    layout.release(layout.hold(folder / runtime.LOCK))


def test_an_agent_that_was_asked_to_leave_stays_while_a_run_is_not_over(house: House, port: int) -> None:
    leaving = house.agent(port, 2.0, "--grace", "60")
    training = house.trainer(pace=0.02, last=100_000, how="finished")
    url = house.ready(port)
    wait_for(lambda: scrape(url).one("resmon_steps_total"))
    leaving.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert leaving.poll() is None and get(url + "/-/ready")[0] == 200
    training.kill()
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="killed") == 1)
    wait_for(lambda: leaving.poll() is not None or not scrape(url).all("resmon_run_info"))
    assert leaving.wait(20) == 0
    assert list((house.runtime / runtime.RUNS).iterdir()) == []


@pytest.mark.parametrize("how", ["its time is up", "it is told twice"])
def test_an_agent_stays_no_longer_than_it_may(how: str, house: House, port: int) -> None:
    leaving = house.agent(port, 60.0, "--grace", "1" if how == "its time is up" else "60")
    house.trainer(last=3)
    url = house.ready(port)
    wait_for(lambda: scrape(url).all("resmon_run_info"))
    asked = time.monotonic()
    leaving.send_signal(signal.SIGTERM)
    if how == "it is told twice":
        leaving.send_signal(signal.SIGINT)
    assert leaving.wait(20) == 0
    assert how == "it is told twice" or time.monotonic() - asked > 0.9
    assert len(list((house.runtime / runtime.RUNS).iterdir())) == 1  # for the next one


@pytest.mark.slow
@pytest.mark.parametrize("how", ["finished", "killed"])
def test_the_end_of_a_pod_is_scraped(how: str, house: House, container: list[str], tmp_path: Path, port: int) -> None:
    """As a Job's pod ends: the training is over, and the agent, which would have stayed for days, is asked to leave at once."""
    beside = agent(house, container, port, "--linger", "86400", "--grace", "90")
    house.ready(port)
    with serving(tmp_path / "prometheus", configuration(targets=f"127.0.0.1:{port}")) as prometheus:
        training = trainer(house, container, "digits", 30 if how == "finished" else 100_000)
        if how == "killed":
            wait_for(lambda: prometheus.query("resmon_steps_total"))
            os.kill(first(training), signal.SIGKILL)
        training.wait(60)
        os.kill(first(beside), signal.SIGTERM)
        asked = time.monotonic()
        assert beside.wait(90) == 0
        print(f"the agent left {time.monotonic() - asked:.1f} s after it was asked to")
        ever = f'max_over_time(resmon_run_outcome{{run="digits",outcome="{how}"}}[5m])'
        wait_for(lambda: prometheus.query("absent(resmon_agent_info)"))
        assert [value for _, value in prometheus.query(ever)] == [1]
        # The count is there too, as an increase: Prometheus had seen it at 0.
        assert [value for _, value in prometheus.query(f'max_over_time(resmon_runs_total{{outcome="{how}"}}[5m])')] == [1]
        assert prometheus.query(f'increase(resmon_runs_total{{outcome="{how}"}}[5m])')[0][1] > 0
