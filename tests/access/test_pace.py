"""However fast readers ask, answering takes its share of the machine and no more; nobody waits for long, and health never."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resmon.access import pace as pace_
from resmon.access.connection import KEY
from resmon.access.door import PROBES, Door, Names
from resmon.access.pace import BURST, CROWD, CROWDED, LONGEST, SHARE, Drowsy, Pace
from resmon.access.web_config import WebConfig
from tests.agent.conftest import House, scrape


class Machine:
    """Its clocks, which stand still unless they are moved."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.used, self.idle, self.cores = 100.0, 0.0, 0.0, 2
        patch.setattr(pace_, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.pace = Pace(lambda: self.used, lambda: self.idle, self.cores)

    def passes(self, seconds: float, idle: float = 0.0) -> None:
        """`idle` is the share of the machine that nobody uses."""
        self.now += seconds
        self.idle += idle * seconds * self.cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def owing() -> Pace:
    """One that has taken so much that it rests as long as it may."""
    used = iter((0.0,))
    return Pace(lambda: next(used, 1000.0), lambda: 0.0, 2)


def test_a_crowd_that_never_stops_gets_a_share_of_a_machine_that_is_busy(machine: Machine) -> None:
    begun = machine.now
    while machine.now - begun < 600:
        if machine.pace.owes():
            machine.passes(0.01)
        else:
            machine.used += 0.005  # fifty answers or so
            machine.passes(0.005)
    allowed = BURST + SHARE * machine.cores * 600
    assert 0.95 * allowed < machine.used < allowed + 0.005


@pytest.mark.parametrize(("idle", "taken"), [(0.05, 0.0), (0.1, 0.0), (0.5, 0.4), (0.9, 0.8)])
def test_of_what_nobody_uses_it_may_take_half(idle: float, taken: float, machine: Machine) -> None:
    """Above a tenth: trainings that take all cores leave some of them unused, too."""
    begun = machine.now
    while machine.now - begun < 600:
        if machine.pace.owes():
            machine.passes(0.01, idle)
        else:
            machine.used += 0.01
            machine.passes(0.01, idle)
    share = (machine.used - BURST) / 600
    assert share == pytest.approx(SHARE * machine.cores + taken, rel=0.05)


def test_who_comes_after_a_crowd_does_not_pay_for_it(machine: Machine) -> None:
    machine.used += 1000.0
    assert machine.pace.owes() == pytest.approx(CROWDED)
    machine.passes(1.001 * CROWDED)
    assert machine.pace.owes() == 0.0
    machine.passes(10 * BURST / (SHARE * machine.cores))
    machine.used += BURST  # there is no more than that to spend, however long nobody came
    assert machine.pace.owes() == 0.0
    machine.used += 0.001
    assert machine.pace.owes() > 0


def test_nobody_waits_where_nothing_is_owed() -> None:
    pace = Pace(lambda: 0.0, lambda: 0.0, 2)
    asyncio.run(pace.turn())
    assert pace.held_seconds == 0.0


def test_all_who_wait_go_on_at_once_and_what_they_waited_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_, "CROWDED", 0.2)
    pace = owing()
    woken: list[float] = []

    async def one() -> None:
        await pace.turn()
        woken.append(time.monotonic())

    async def all_of_them() -> None:
        # One of them gives up, which is no matter of the others'.
        tasks = [asyncio.ensure_future(one()) for _ in range(50)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in done] == [asyncio.CancelledError] + [type(None)] * 49

    asyncio.run(all_of_them())
    assert len(woken) == 49
    assert pace.held_seconds >= 49 * 0.19


@pytest.mark.parametrize("many", [1, CROWD - 1, CROWD, 50])
def test_a_crowd_is_held_for_longer_than_one_who_asks_alone(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_, "LONGEST", 0.1)
    monkeypatch.setattr(pace_, "CROWDED", 0.4)
    pace = owing()

    async def held() -> float:
        before = time.monotonic()
        await asyncio.gather(*(pace.turn() for _ in range(many)))
        return time.monotonic() - before

    taken = asyncio.run(held())
    assert taken >= (0.4 if many >= CROWD else 0.1)
    assert pace.is_crowded == (many >= CROWD)


def test_a_crowd_is_none_any_more_once_somebody_is_answered_at_once(machine: Machine) -> None:
    async def all_of_them() -> None:
        machine.used += 1000.0
        waiting = [asyncio.ensure_future(machine.pace.turn()) for _ in range(CROWD)]
        await asyncio.sleep(0)
        assert machine.pace.is_crowded
        machine.passes(LONGEST + 0.1)
        machine.pace._look()
        assert not any(each.done() for each in waiting)
        machine.passes(CROWDED - LONGEST)
        machine.pace._look()
        await asyncio.gather(*waiting)
        assert machine.pace.is_crowded
        await machine.pace.turn()
        assert not machine.pace.is_crowded

    asyncio.run(all_of_them())


def test_an_agent_that_leaves_holds_nobody_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_, "LONGEST", 1e6)
    pace = owing()

    async def leave() -> None:
        waiting = asyncio.ensure_future(pace.turn())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        pace.end()
        await waiting
        await pace.turn()

    asyncio.run(leave())


class Asked:
    """A door before an application that notes what reaches it."""

    def __init__(self, pace: Pace, config: WebConfig | None = None) -> None:
        self.reached: list[str] = []
        self.door = Door(self._application, Names(any=True), lambda: config or WebConfig(), pace)

    async def _application(self, scope: Any, _receive: Any, send: Any) -> None:
        self.reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def status(self, path: str, connection: Any = None) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}
        scope["state"] = {} if connection is None else {KEY: connection}
        await self.door(scope, lambda: asyncio.sleep(0, {}), send)
        return sent[0]["status"] if sent else 0


@pytest.mark.parametrize("config", [WebConfig(), WebConfig(users={"somebody": "$2b$04$" + "a" * 53})], ids=["open", "closed"])
def test_health_and_readiness_never_wait(config: WebConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All else does, before anything else is done about it: to be turned away is no way round."""
    monkeypatch.setattr(pace_, "LONGEST", 1e6)
    asked = Asked(owing(), config)

    async def ask() -> None:
        others = [asyncio.ensure_future(asked.status(path)) for path in ("/metrics", "/", "/none")]
        for probe in PROBES:
            assert await asked.status(probe) == 200
        assert asked.reached == list(PROBES)
        assert not any(other.done() for other in others)
        asked.door.pace.end()
        assert await asyncio.gather(*others) == [401 if config.users else 200] * 3

    asyncio.run(ask())
    asked.door.passwords.close()


def test_nothing_is_done_for_who_has_gone_meanwhile() -> None:
    asked = Asked(Pace(lambda: 0.0, lambda: 0.0, 2))

    async def ask() -> None:
        assert await asked.status("/metrics", SimpleNamespace(is_gone=True, neighbours=1)) == 0
        assert await asked.status("/metrics", SimpleNamespace(is_gone=False, neighbours=1)) == 200

    asyncio.run(ask())
    assert asked.reached == ["/metrics"]


def looks(pace: Pace) -> int:
    """How often a loop comes to read what trickles in for half a second."""
    count = 0

    async def read() -> None:
        nonlocal count
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            loop = asyncio.get_running_loop()

            def trickle() -> None:
                for _ in range(100):
                    there.send(b"x")
                    time.sleep(0.005)
                there.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=trickle)
            thread.start()
            while await loop.sock_recv(here, 1000):
                count += 1
            assert await asyncio.to_thread(thread.join) is None  # a thread that ends is noticed all the same

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Drowsy(pace))) as runner:
        runner.run(read())
    return count


def test_a_loop_that_owes_looks_at_its_connections_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_, "LONGEST", 1e6)
    monkeypatch.setattr(pace_, "NAP", 0.2)
    begun = time.monotonic()
    few = looks(owing())  # of a hundred times that something came
    assert few <= (time.monotonic() - begun) / 0.2 + 1


@contextmanager
def _spinning(count: int) -> Iterator[None]:
    """Processes that take a core each."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def _cpu(pid: int) -> float:
    """Seconds that a process has taken, all of its threads."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) > 16, reason="the share that answering may take is more there than one process can")
def test_readers_who_never_stop_get_little_of_a_busy_machine(house: House, port: int) -> None:
    """Fifty who ask again as soon as they are answered would have a core; health is told at once meanwhile."""
    agent = house.agent(port)
    url = house.ready(port)
    heard: list[bytes] = []
    over = threading.Event()

    def read(path: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            file = connection.makefile("rb")
            while not over.is_set():
                connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
                heard.append(file.readline())
                length = 0
                while (line := file.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                file.read(length)

    cores, seconds = os.cpu_count() or 1, 15.0
    with _spinning(cores):
        readers = [threading.Thread(target=read, args=(path,)) for path in (b"/metrics", b"/api/runs") for _ in range(25)]
        before, begun = _cpu(agent.pid), time.monotonic()
        for reader in readers:
            reader.start()
        while time.monotonic() - begun < seconds:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as probe:
                probe.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert probe.recv(12) == b"HTTP/1.1 200"
            time.sleep(0.5)
        took, lasted = _cpu(agent.pid) - before, time.monotonic() - begun
        over.set()
        for reader in readers:
            reader.join()
    assert set(heard) == {b"HTTP/1.1 200 OK\r\n"}
    assert len(heard) > 2 * len(readers)
    # What it reads and writes while nobody asks is in it, and an answer's cost on a slow machine.
    assert took < BURST + 3 * SHARE * cores * lasted + 0.05 * lasted
    held = scrape(url).one("resmon_agent_held_seconds_total")
    assert held is not None and held > len(readers)
