from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resmon.agent import find_or_start, runtime
from resmon.settings import Settings
from tests.agent.conftest import ROOT, House, get
from tests.waiting import wait_for

FIND = """
import sys, time
from resmon.agent import find_or_start
from resmon.settings import Settings
settings = Settings.of(listen=sys.argv[1])
started = time.perf_counter()
url = find_or_start(settings)
print(url, time.perf_counter() - started, "torch" in sys.modules, "uvicorn" in sys.modules)
"""


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def serving(folder: Path) -> runtime.Serving | None:
    now = runtime.serving(folder)
    return now if now is not None and now.url else None


def test_many_trainers_at_once_start_one_agent(house: House, port: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    trainers = [
        subprocess.Popen([sys.executable, "-c", FIND, f"127.0.0.1:{port}"], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for trainer in trainers:
        output, _ = trainer.communicate(timeout=60)
        url, seconds, torch, uvicorn = output.split()
        assert url == f"http://127.0.0.1:{port}"
        assert float(seconds) < 0.25
        assert (torch, uvicorn) == ("False", "False")
    house.ready(port)
    log = (house.runtime / runtime.LOG).read_text()
    assert log.count("resmon agent: serving") == 1
    assert "another one serves" not in log  # none was started in vain


def test_the_agent_is_nobodys_child_and_has_nothing_of_ours(house: House, port: int, tmp_path: Path) -> None:
    settings = Settings.of(listen=f"127.0.0.1:{port}", max_series=321)
    with (tmp_path / "held open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        before = children(os.getpid())
        assert find_or_start(settings) == f"http://127.0.0.1:{port}"
        assert children(os.getpid()) == before
        house.ready(port)
        now = serving(house.runtime)
        assert now is not None
        process = Path(f"/proc/{now.pid}")
        open_files = [str((process / "fd" / fd.name).readlink()) for fd in (process / "fd").iterdir()]
        assert str(tmp_path / "held open") not in open_files
    assert os.getsid(now.pid) != os.getsid(0)
    assert "at most 321 series of a run" in (house.runtime / runtime.LOG).read_text()
    assert b"CUDA_VISIBLE_DEVICES=\0" in (process / "environ").read_bytes()
    assert "torch" not in (process / "maps").read_text()
    assert (process / "cwd").readlink() == Path("/")
    assert find_or_start(settings) == now.url
    os.kill(now.pid, signal.SIGTERM)
    wait_for(lambda: not process.exists())  # gone, not a zombie of ours
    assert json.loads((house.runtime / runtime.TARGETS).read_text()) == []
    assert (house.runtime / runtime.LOCK).read_bytes() == b""


def test_an_agent_that_was_killed_is_started_again(house: House, port: int) -> None:
    settings = Settings.of(listen=f"127.0.0.1:{port}")
    find_or_start(settings)
    house.ready(port)
    first = serving(house.runtime)
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: runtime.serving(house.runtime) is None)
    find_or_start(settings)
    wait_for(lambda: get(f"http://127.0.0.1:{port}/-/ready")[0] == 200)
    second = serving(house.runtime)
    assert second is not None
    assert second.pid != first.pid


def test_an_agent_that_leaves_is_replaced(house: House, port: int) -> None:
    """From the moment that it says so, a training process starts the next one, which waits for the seat."""
    code = (
        "import time; from resmon.agent import runtime; from resmon.agent.runtime import Seat; f = runtime.folder()\n"
        "seat = Seat.take(f, 1); seat.announce('http://127.0.0.1:9', '0'); seat.mark_leaving(); print('leaving', flush=True)\n"
        "time.sleep(2); seat.leave(); time.sleep(60)"
    )
    leaving = house.start(sys.executable, "-c", code)
    wait_for(lambda: "leaving" in house.output(leaving))
    assert find_or_start(Settings.of(listen=f"127.0.0.1:{port}")) == f"http://127.0.0.1:{port}"
    house.ready(port)


def test_a_start_that_fails_says_so_in_the_log(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_or_start(Settings.of(listen="203.0.113.1:9"))  # an address that is not ours: the agent finds out
    log = wait_for(
        lambda: "203.0.113.1:9" in (house.runtime / runtime.LOG).read_text() and (house.runtime / runtime.LOG).read_text()
    )
    assert re.search("cannot listen on 203.0.113.1:9.*--listen", re.sub(r"[\s│]+", " ", str(log)))
