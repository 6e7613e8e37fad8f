"""Answers to scrapes that many share."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from resmon.agent import scrapes
from resmon.agent.roster import Roster
from resmon.agent.scrapes import Scrapes
from resmon.exporters.prometheus import Prometheus
from resmon.exporters.view import AgentView
from tests.agent.conftest import House, Scrape, wait_for
from tests.agent.serving import everything
from tests.agent.test_roster import Writer


class Counted(Prometheus):
    """Knows how often it has written."""

    written = 0

    def render(self, view: AgentView, accept: str) -> tuple[bytes, str]:
        self.written += 1
        return super().render(view, accept)


@pytest.fixture
def roster(runtime_folder: Path, tmp_path: Path) -> Roster:
    writer = Writer(tmp_path / "runs", sites=40)
    for _ in range(5):
        writer.step()
    return Roster(runtime_folder, "0", linger=1000.0)


@pytest.fixture
def served(roster: Roster) -> Scrapes:
    made = Scrapes(roster, threading.Lock(), lambda: ())
    made._exporter = Counted()
    return made


def ask(served: Scrapes, times: int = 1, method: str = "GET", client: str = "127.0.0.1", **headers: str) -> list[Response]:
    """Answers to as many requests at once."""

    def request() -> Request:
        scope: dict[str, Any] = {"type": "http", "method": method, "path": "/metrics", "query_string": b""}
        scope |= {"client": (client, 1), "server": ("10.0.0.1", 9699)}
        scope["headers"] = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        return Request(scope)

    async def all_of_them() -> list[Response]:
        return await asyncio.gather(*(served.answer(request()) for _ in range(times)))

    return asyncio.run(all_of_them())


def count(served: Scrapes) -> int:
    assert isinstance(served._exporter, Counted)
    return served._exporter.written


def spend_all(served: Scrapes) -> None:
    served._allowance, served._allowed_at = -scrapes.BURST, time.monotonic()


def test_those_who_come_at_once_have_one_exposition(served: Scrapes, roster: Roster) -> None:
    answers = ask(served, 50)
    assert count(served) == 1
    assert len({bytes(answer.body) for answer in answers}) == 1
    assert Scrape(bytes(answers[0].body).decode()).one("resmon_steps_total") == 5
    assert roster._scrapes == 50  # all of them have had everything that there was
    ask(served, 3, accept="application/openmetrics-text")
    assert count(served) == 2


def test_few_have_each_one_of_that_very_moment(served: Scrapes, roster: Roster, tmp_path: Path) -> None:
    for i in range(1, 6):
        ask(served)
        assert count(served) == i
    assert roster._scrapes == 5


def test_many_share_one_until_the_flights_are_read_again(served: Scrapes, roster: Roster) -> None:
    spend_all(served)
    first = ask(served)[0].body
    assert all(answer.body is first for _ in range(5) for answer in ask(served, 10))
    assert count(served) == 1
    assert roster._scrapes == 51
    roster.poll()  # the reader's turn
    assert ask(served)[0].body is not first
    assert count(served) == 2
    with served._lock:
        served.forget()  # likewise
    ask(served)
    assert count(served) == 3


def test_writing_is_allowed_a_share_of_the_time(served: Scrapes) -> None:
    spend_all(served)
    ask(served)
    served._allowed_at -= (scrapes.BURST + 1) / scrapes.SHARE  # so long ago
    ask(served)
    assert count(served) == 2


def test_only_who_has_had_everything_counts(served: Scrapes, roster: Roster) -> None:
    """HEAD has had nothing; and what was written before a turn of the reader is not everything after it."""
    ask(served, method="HEAD")
    assert roster._scrapes == 0

    async def overtaken() -> None:
        exposition = await served._written("text/plain", counts=False)
        roster.poll()
        served._count(exposition)

    asyncio.run(overtaken())
    assert roster._scrapes == 0
    ask(served)
    assert roster._scrapes == 1


@pytest.mark.parametrize(
    ("client", "accepted", "zipped"),
    [
        ("10.9.8.7", "gzip", True),
        ("10.9.8.7", "deflate, gzip;q=0.5", True),
        ("10.9.8.7", "*", True),
        ("fe80::1%eth0", "gzip", True),
        ("10.9.8.7", "gzip;q=0", False),
        ("10.9.8.7", "", False),
        ("10.9.8.7", "br", False),
        ("127.0.0.1", "gzip", False),  # on this machine it would only take time
        ("::1", "gzip", False),
        ("10.0.0.1", "gzip", False),
    ],
)
def test_other_machines_get_it_compressed(client: str, accepted: str, zipped: bool, served: Scrapes) -> None:
    (plain,) = ask(served)
    spend_all(served)
    answers = ask(served, 5, client=client, accept_encoding=accepted)
    assert {answer.headers.get("content-encoding") for answer in answers} == {"gzip" if zipped else None}
    assert all(answer.headers["vary"] == "accept, accept-encoding" for answer in answers)
    content = bytes(answers[0].body)
    assert (gzip.decompress(content) if zipped else content) == bytes(plain.body)
    if zipped:
        assert len(content) < len(plain.body) / 5
        assert len({id(answer.body) for answer in answers}) == 1


def test_the_next_waits_until_a_large_one_is_taken_but_for_no_more_than_a_moment(
    served: Scrapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them beside each other take twice the memory."""

    class Deaf:
        since = 0.0

    deaf_one: Any = Deaf()
    monkeypatch.setattr(scrapes, "LARGE", 1000)
    monkeypatch.setattr(scrapes, "MOMENT", 1e6)

    async def taken() -> None:
        first = await served._written("text/plain", counts=True)
        first.plain.readers.add(deaf_one)
        second = asyncio.ensure_future(served._written("text/plain", counts=True))
        await asyncio.sleep(0.05)
        assert count(served) == 1
        monkeypatch.setattr(scrapes, "MOMENT", 0.01)
        first.plain.readers.clear()
        assert await second is not first

    # The pauses are a twentieth of the moment: short ones, and a moment that never ends.
    sleep = asyncio.sleep
    monkeypatch.setattr(scrapes.asyncio, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    asyncio.run(taken())
    assert count(served) == 2

    async def deaf() -> None:
        first = await served._written("text/plain", counts=True)
        first.plain.readers.add(deaf_one)
        await served._written("text/plain", counts=True)

    asyncio.run(deaf())
    assert count(served) == 4


def test_fifty_at_once_over_http(house: House, port: int) -> None:
    """All complete, and few different ones."""
    house.agent(port)
    house.trainer("wide", sites=200, pace=0.02, last=2000)
    url = house.ready(port)
    wait_for(lambda: len(httpx.get(url + "/metrics").content) > 500_000)

    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=50)) as client:
            return await asyncio.gather(*(client.get(url + "/metrics", timeout=20) for _ in range(50)))

    answers = asyncio.run(all_at_once())
    assert {answer.status_code for answer in answers} == {200}
    different = {answer.content for answer in answers}
    assert len(different) <= 10
    for content in different:
        assert Scrape(content.decode()).all("resmon_block_skip_rms")


@pytest.mark.slow
def test_who_does_not_take_the_answer_holds_little_of_it(house: House, port: int) -> None:
    """Each second another one asks for megabytes and takes none; those who hold the oldest are hung up on."""
    agent = house.agent(port, 60.0, "--max-series", "60000")
    house.trainer("wide", sites=1500, pace=1.0, last=2000)
    url = house.ready(port)
    wait_for(lambda: len(httpx.get(url + "/metrics").content) > 4_000_000)
    size = len(httpx.get(url + "/metrics").content)

    def resident() -> int:
        status = Path(f"/proc/{agent.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) << 10

    before = resident()
    with ExitStack() as stack:
        deaf = []
        for _ in range(2 * scrapes.MOST_BYTES // size + 4):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", port))
            one.settimeout(10)
            one.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            deaf.append(one)
            time.sleep(1.1)
        # Those held, the newest, what writing it takes, and what detectors learn meanwhile.
        assert resident() - before < scrapes.MOST_BYTES + 4 * size + (30 << 20)
        assert len(everything(deaf[0])) < size
        assert len(everything(deaf[-1])) > size
    assert httpx.get(url + "/metrics").status_code == 200
