"""Processes, ports and pages for the agent's tests. Every test has a runtime folder of its own and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from prometheus_client.parser import text_string_to_metric_families

from resmon.agent import runtime
from resmon.agent.roster import Roster
from resmon.flight import layout
from tests.ports import free_port
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent.parent

Labels = frozenset[tuple[str, str]]


@pytest.fixture
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runtime"
    monkeypatch.setenv("RESMON_RUNTIME_DIR", str(folder))
    monkeypatch.delenv("LAUNCH", raising=False)
    return runtime.folder()


@pytest.fixture
def roster(runtime_folder: Path) -> Roster:
    return Roster(runtime_folder, "0", linger=1000.0)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def port() -> int:
    return free_port()


def get(url: str, accept: str = "", method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Accept": accept}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Scrape:
    """What a page of metrics says."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, Labels], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def all(self, name: str, **labels: str) -> dict[Labels, float]:
        wanted = set(labels.items())
        return {key: value for (other, key), value in self.samples.items() if other == name and wanted <= key}

    def one(self, name: str, **labels: str) -> float | None:
        found = self.all(name, **labels)
        assert len(found) <= 1, found
        return next(iter(found.values()), None)


def scrape(url: str) -> Scrape:
    status, text = get(url + "/metrics")
    assert status == 200, text
    return Scrape(text)


class House:
    """Starts what a test needs, and stops all of it."""

    def __init__(self, tmp_path: Path, runtime_folder: Path) -> None:
        self.runs = tmp_path / "runs"
        self.runtime = runtime_folder
        self._tmp_path = tmp_path
        self._processes: list[subprocess.Popen[str]] = []
        self._files: list[IO[str]] = []

    def start(self, *command: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        output = (self._tmp_path / f"output-{len(self._processes)}.txt").open("w+")
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | (environment or {}),
        )
        self._processes.append(process)
        self._files.append(output)
        return process

    def output(self, process: subprocess.Popen[str]) -> str:
        return Path(self._files[self._processes.index(process)].name).read_text()

    def agent(self, port: int, linger: float = 60.0, *options: str) -> subprocess.Popen[str]:
        listen = f"127.0.0.1:{port}"
        return self.start(sys.executable, "-m", "resmon", "agent", "--listen", listen, "--linger", str(linger), *options)

    def ready(self, port: int) -> str:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: get(url + "/-/ready")[0] == 200)
        return url

    def trainer(
        self,
        run: str = "digits",
        rank: int = 0,
        world: int = 1,
        sites: int = 3,
        pace: float = 0.05,
        last: int = 10,
        how: str = "sleep",
        launch: str | None = None,
        stall_after: float = 300.0,
    ) -> subprocess.Popen[str]:
        what = (str(self.runs), run, str(rank), str(world), str(sites), str(pace), str(last), how)
        environment = {"STALL_AFTER": str(stall_after)} | ({"LAUNCH": launch} if launch else {})
        return self.start(sys.executable, "-m", "tests.agent.trainer", *what, environment=environment)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for file in self._files:
            file.close()
        agent = layout.holder(self.runtime / runtime.LOCK)  # the one that find_or_start has started is nobody's child
        if agent is not None:
            os.kill(agent, signal.SIGKILL)


@pytest.fixture
def house(tmp_path: Path, runtime_folder: Path) -> Iterator[House]:
    house = House(tmp_path, runtime_folder)
    yield house
    house.stop()
