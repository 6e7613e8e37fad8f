"""What strangers may send to the agent: requests that are too long, too slow, too many, for another name, or no requests at all."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resmon.access.door import HEADERS, LARGEST_HEAD, LONGEST_PATH, MOST_HEADERS, Names
from resmon.access.listener import MOST
from tests.agent.conftest import House, wait_for
from tests.agent.serving import Agent, agent, everything

REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent(tmp_path_factory.mktemp("served"), "--served-name", "resmon.example") as made:
        yield made


@pytest.fixture(autouse=True)
def _it_lives_on(served: Agent) -> Iterator[None]:
    yield
    assert served.process.poll() is None
    assert served.status(request(b"GET /-/ready HTTP/1.1")) == 200
    assert "Traceback" not in served.said


def request(line: bytes = b"GET /metrics HTTP/1.1", *headers: bytes, host: bytes = b"localhost", body: bytes = b"") -> bytes:
    return b"\r\n".join((line, b"Host: " + host, b"Connection: close", *headers, b"", body))


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"PROPFIND"])
@pytest.mark.parametrize("path", [b"/", b"/metrics", b"/-/ready", b"/nothing"])
def test_nothing_can_be_done_but_reading(method: bytes, path: bytes, served: Agent) -> None:
    answer = served.ask(request(method + b" " + path + b" HTTP/1.1"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nallow: GET, HEAD\r\n" in answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(), 200),
        (request(b"GET /metrics?" + b"a" * 1000 + b" HTTP/1.1"), 200),
        (request(b"GET /" + b"a" * (LONGEST_PATH - 1) + b" HTTP/1.1"), 404),
        (request(b"GET /" + b"a" * LONGEST_PATH + b" HTTP/1.1"), 414),
        (request(b"GET /?" + b"a" * LONGEST_PATH + b" HTTP/1.1"), 414),
        (request(b"GET /metrics HTTP/1.1", b"X: " + b"a" * (LARGEST_HEAD - 100)), 200),
        (request(b"GET /metrics HTTP/1.1", b"X: " + b"a" * LARGEST_HEAD), 431),
        (request(b"GET /metrics HTTP/1.1", *(b"X%d: a" % i for i in range(MOST_HEADERS - 2))), 200),
        (request(b"GET /metrics HTTP/1.1", *(b"X%d: a" % i for i in range(MOST_HEADERS - 1))), 431),
        (request(b"GET /metrics HTTP/1.1", b"Content-Length: 0"), 200),
        (request(b"GET /metrics HTTP/1.1", b"Content-Length: 3", body=b"abc"), 413),
        (request(b"GET /metrics HTTP/1.1", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 413),
        (request(b"GET /metrics HTTP/1.1", b"Content-Length: 99999999999"), 413),
        (request(b"GET /metrics HTTP/1.1", b"Content-Length: -1"), 400),
        (request(b"GET /metrics HTTP/1.1", b"Host: other"), 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"GET /metrics\r\n\r\n", 400),
        (request(b"GET http://localhost/metrics HTTP/1.1"), 404),
        (request(b"GET * HTTP/1.1"), 404),
    ],
    ids=range(20),
)
def test_a_request_has_its_bounds(sent: bytes, status: int, served: Agent) -> None:
    assert served.status(sent) == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LocalHost.:9699", 200),
        (b"box.localhost", 200),
        (b"127.0.0.1:1", 200),
        (b"[::1]:9699", 200),
        (b"10.1.2.3", 200),  # nobody's name server can lead from there to here
        (b"resmon.example:9699", 200),
        (b"evil.example", 421),
        (b"localhost.evil.example", 421),
        (b"127.0.0.1.evil.example:9699", 421),
        (b"resmon.example.evil.example", 421),
        (b"[evil.example]", 421),
        (b"evil.example@localhost", 421),
        (b"localhost@evil.example", 421),
        (b"127.0.0.1:80@evil.example", 421),
        (b"[::1].evil.example", 421),
        (b"[::1]evil.example:80", 421),
        (b"", 421),
    ],
)
def test_a_page_elsewhere_cannot_have_its_own_name_lead_here(host: bytes, status: int, served: Agent) -> None:
    answer = served.ask(request(host=host))
    assert int(answer.split()[1]) == status
    if status == 421:
        assert b"name it in the setting served_names" in answer
        assert b"resmon_" not in answer


def test_an_agent_that_listens_beyond_this_machine_answers_to_any_name_unless_some_are_given() -> None:
    assert Names.of((), "0.0.0.0:9699", is_loopback=False).have("box.example")
    given = Names.of(("Box.example",), "0.0.0.0:9699", is_loopback=False)
    assert [given.have(host) for host in ("box.example", "box.example.:80", "10.0.0.7:9699", "other.example")] == [
        True,
        True,
        True,
        False,
    ]
    own = Names.of((), "box.example:9699", is_loopback=True)
    assert [own.have(host) for host in ("box.example:9699", "other.example")] == [True, False]


@pytest.mark.parametrize(
    "sent",
    [
        request(),
        request(b"GET / HTTP/1.1"),
        request(b"HEAD / HTTP/1.1"),
        request(b"GET /-/healthy HTTP/1.1"),
        request(b"GET /nothing HTTP/1.1"),
        request(b"POST / HTTP/1.1"),
        request(host=b"evil.example"),
        request(b"GET /" + b"a" * LONGEST_PATH + b" HTTP/1.1"),
    ],
    ids=range(8),
)
def test_every_answer_tells_a_browser_what_it_may_do(sent: bytes, served: Agent) -> None:
    head = served.ask(sent.replace(b"\r\n\r\n", b"\r\nOrigin: http://evil.example\r\n\r\n", 1)).partition(b"\r\n\r\n")[0].lower()
    names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
    assert len(names) == len(set(names))
    for name, value in HEADERS:
        if name == b"content-security-policy":  # which a page may set for itself, but never to load from elsewhere
            policy = next(line for line in head.split(b"\r\n") if line.startswith(name))
            assert b"default-src 'none'" in policy or b"default-src 'self'" in policy
            assert b"unsafe-eval" not in policy
            assert b"http" not in policy
            assert b"*" not in policy
            assert b"frame-ancestors 'none'" in policy
        elif name != b"cache-control":  # what never changes may be kept
            assert name + b": " + value in head
    assert not any(name.startswith(b"access-control") for name in names)
    assert b"server" not in names


# Of everything but the times, which are short here.
QUICK = """
import resmon.access.connection as connection
connection.REQUEST, connection.ANSWER, connection.IDLE = 1.0, 2.0, 1.5
from resmon.cli import main
main()
"""


def test_what_crawls_is_ended(house: House, port: int) -> None:
    """And holds up nobody: neither who sends a byte now and then, nor who says nothing, nor who does not take the answer."""
    house.start(sys.executable, "-c", QUICK, "agent", "--listen", f"127.0.0.1:{port}", "--linger", "60")
    house.trainer("wide", sites=250, pace=0.05, last=3)
    url = house.ready(port)
    wait_for(lambda: len(httpx.get(url + "/metrics").content) > 500_000)
    with ExitStack() as stack:

        def connected() -> socket.socket:
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.connect(("127.0.0.1", port))
            made.settimeout(10)
            return stack.enter_context(made)

        begun = time.monotonic()
        silent, crawling, body, deaf, idle = ([connected() for _ in range(20)] for _ in range(5))
        for each in body:
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
        for each in deaf:
            each.sendall(request() * 3)
        for each in idle:
            each.sendall(b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
        alive = set(crawling)
        letters = iter(REQUEST * 100)
        worst = 0.0
        while alive and time.monotonic() - begun < 8:
            letter = bytes([next(letters)])
            for each in list(alive):
                try:
                    each.sendall(b"X" if letter == b"\n" else letter)  # so that no request ever ends
                except OSError:
                    alive.discard(each)
            asked = time.monotonic()
            assert httpx.get(url + "/-/healthy").status_code == 200
            worst = max(worst, time.monotonic() - asked)
            time.sleep(0.1)
        assert not alive
        assert time.monotonic() - begun < 6
        assert worst < 1
        assert all(everything(each) == b"" for each in silent)
        assert all(everything(each).startswith(b"HTTP/1.1 413 ") for each in body)
        assert all(everything(each).startswith(b"HTTP/1.1 200 ") for each in idle)
        wait_for(lambda: time.monotonic() - begun > 4)
        # What was on the way still comes; not three whole answers, and then it is over.
        assert all(len(everything(each)) < 1_600_000 for each in deaf)
        assert httpx.get(url + "/metrics").status_code == 200


def descriptors(made: Agent) -> int:
    return len(list(Path(f"/proc/{made.process.pid}/fd").iterdir()))


def test_a_crowd_leaves_the_agent_its_descriptors(served: Agent) -> None:
    before = descriptors(served)
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.socket()) for _ in range(MOST + 100)]
        for each in crowd:
            each.settimeout(10)
            each.connect(("127.0.0.1", served.port))
        wait_for(lambda: descriptors(served) > MOST)
        assert descriptors(served) <= before + MOST + 2
        assert everything(crowd[-1]) == b""  # hung up on
        crowd[0].sendall(REQUEST)
        assert everything(crowd[0]).startswith(b"HTTP/1.1 503 ")  # nor is one answered where so many are here
    wait_for(lambda: descriptors(served) < before + 5)
    assert served.status(REQUEST) == 200


def test_bad_requests_do_not_fill_the_log(served: Agent) -> None:
    before = len(served.said)
    for _ in range(50):
        served.ask(b"\x16\x03\x01 nonsense\r\n\r\n")
        served.ask(request(host=b"evil.example"))
        served.ask(request(b"GET / HTTP/1.1", b"Upgrade: websocket", b"Connection: upgrade"))
    assert len(served.said) - before < 1000


LINES = st.sampled_from([
    b"GET /metrics HTTP/1.1", b"GET / HTTP/1.1", b"HEAD /-/ready HTTP/1.1", b"GET /../x HTTP/1.1", b"GET /%2e%2e/%00 HTTP/1.0",
    b"Host: localhost", b"Accept: application/openmetrics-text;q=1", b"Accept-Encoding: gzip;q=x,*", b"Connection: keep-alive",
    b"Content-Length: 4", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: h2c", b"Authorization: Basic Og==",
    b"", b"4",
    b"Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
])  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=st.lists(LINES | st.binary(max_size=20), min_size=1, max_size=8), data=st.data())
def test_whatever_is_sent_gets_an_answer_or_an_end(lines: list[bytes], data: st.DataObject, served: Agent) -> None:
    """Requests cut and flipped anywhere: never a fault of the agent's, never silence."""
    sent = bytearray(b"\r\n".join(lines) + b"\r\n\r\n")
    for _ in range(data.draw(st.integers(0, 3))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    del sent[data.draw(st.integers(1, len(sent))) :]
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = everything(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert not answer.startswith(b"HTTP/1.1 5")
