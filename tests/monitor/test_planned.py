"""`resmon.maintenance` in a process that goes on, ends, forks or is killed, beside a real Alertmanager, up or down or slow."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

import resmon
import resmon.monitor.planned
from resmon.servers.alertmanager import Alertmanager, Matcher, Silence, default_author, keeper
from tests.ports import free_port
from tests.servers.alertmanager.servers import Server, answering, forward, reply, running
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resmon.monitor.planned, "_said", set())
    monkeypatch.setattr(resmon.monitor.planned, "_watched_run", lambda: None)


def silences(client: Alertmanager, run: str) -> tuple[Silence, ...]:
    return client.silences(Matcher("run", run))


def active(client: Alertmanager, run: str) -> list[Silence]:
    return [each for each in silences(client, run) if each.state == "active"]


def test_the_silence_begins_and_ends_with_the_window(alertmanager: Server, client: Alertmanager) -> None:
    began = time.monotonic()
    with resmon.maintenance(
        "replanned learning rate", run="window", block="h.0", for_="2h", alertmanager=alertmanager.url
    ) as window:
        assert time.monotonic() - began < 0.5
        (silence,) = wait_for(lambda: active(client, "window"))
        assert {str(each) for each in silence.matchers} == {'run="window"', 'block="h.0"'}
        assert silence.comment.startswith("replanned learning rate [resmon.maintenance ") and silence.author == default_author()
        # A short life: were this machine lost now, the silence would be over in minutes.
        assert silence.ends - datetime.now(UTC) <= timedelta(seconds=keeper.LIFE)
        assert wait_for(lambda: window.silence) == silence.id
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 0.5
    wait_for(lambda: not active(client, "window"), 5)
    assert len(silences(client, "window")) == 1


def test_it_is_kept_alive_and_never_outlives_what_was_planned(
    alertmanager: Server, client: Alertmanager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "LIFE", 3.0)
    monkeypatch.setattr(keeper, "BEAT", 0.5)
    caplog.set_level(logging.INFO, "resmon")
    planned = datetime.now(UTC) + timedelta(seconds=8)
    with resmon.maintenance("longer than planned", run="planned", for_=8.0, alertmanager=alertmanager.url) as window:
        (first,) = wait_for(lambda: active(client, "planned"))
        assert first.ends < planned - timedelta(seconds=1)
        ends = []
        while not ends or ends[-1].state == "active":
            ends.append(silences(client, "planned")[-1])
            time.sleep(0.1)
        assert datetime.now(UTC) <= planned + timedelta(seconds=1)
        wait_for(lambda: "longer than planned" in caplog.text and "alerts notify again" in caplog.text, 5)
        assert {each.id for each in ends} == {window.silence}
    assert first.ends + timedelta(seconds=1) < ends[-1].ends <= planned
    assert len(silences(client, "planned")) == 1


WINDOW = """
import os, signal, sys, time, resmon
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job would have inherited as ignored
with resmon.maintenance("why", run=sys.argv[2], for_="1h", alertmanager=sys.argv[1]) as window:
    while window.silence is None:
        time.sleep(0.02)
    print(window.silence, flush=True)
    {body}
"""


def script(alertmanager: Server, run: str, body: str, path: Path) -> subprocess.Popen[str]:
    """A process that is in a window and has said so."""
    file = path / "train.py"
    file.write_text(WINDOW.format(body=body))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(file), alertmanager.url, run], env=environment, stdout=subprocess.PIPE, text=True, cwd=path
    )
    assert process.stdout is not None and len(process.stdout.readline()) > 30
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_seconds_when_the_process_is_killed(
    how: signal.Signals, alertmanager: Server, client: Alertmanager, tmp_path: Path
) -> None:
    process = script(alertmanager, f"killed-{how}", "time.sleep(60)", tmp_path)
    assert len(active(client, f"killed-{how}")) == 1
    began = time.monotonic()
    process.send_signal(how)
    process.wait()
    wait_for(lambda: not active(client, f"killed-{how}"), 10)
    assert time.monotonic() - began < 5


def test_it_ends_by_itself_when_its_keeper_is_killed_too(
    alertmanager: Server, client: Alertmanager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LIFE", 3.0)
    with resmon.maintenance("why", run="both", for_="1h", alertmanager=alertmanager.url) as window:
        wait_for(lambda: active(client, "both"))
        assert window._process is not None
        window._process.kill()
        wait_for(lambda: not active(client, "both"), 8)


def test_the_end_of_the_program_ends_it_and_is_not_held_up(alertmanager: Server, client: Alertmanager, tmp_path: Path) -> None:
    process = script(alertmanager, "exits", "began = time.monotonic()", tmp_path)
    assert process.wait(10) == 0
    wait_for(lambda: not active(client, "exits"), 5)
    process = script(alertmanager, "raises", "raise ValueError('the error that ended it')", tmp_path)
    assert process.wait(10) == 1
    wait_for(lambda: not active(client, "raises"), 5)


def test_a_forked_child_neither_keeps_nor_ends_it(alertmanager: Server, client: Alertmanager, tmp_path: Path) -> None:
    """One leaves the window's block, another outlives its parent with copies of all its pipes."""
    body = """
    if os.fork() == 0:
        window.__exit__(None, None, None)
        os._exit(0)
    os.wait()
    if os.fork() == 0:
        os.close(1)
        time.sleep(30)
        os._exit(0)
    time.sleep(30)
"""
    process = script(alertmanager, "forked", body, tmp_path)
    time.sleep(1.5)
    assert len(active(client, "forked")) == 1
    process.kill()
    process.wait()
    wait_for(lambda: not active(client, "forked"), 5)


def test_an_alertmanager_that_is_down_is_told_once_and_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "server") as server:
        server.stop()
        began = time.monotonic()
        with resmon.maintenance("why", run="down", alertmanager=server.url) as window:
            assert time.monotonic() - began < 0.5
            wait_for(lambda: "cannot be reached" in caplog.text)
            server.start()
            with Alertmanager.of([server.url]) as client:
                wait_for(lambda: active(client, "down"), 30)
                wait_for(lambda: window.silence)
        with Alertmanager.of([server.url]) as client:
            wait_for(lambda: not active(client, "down"))
        server.stop()
        with resmon.maintenance("why", run="down", alertmanager=server.url) as window:
            time.sleep(1.5)
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "It is tried again while the window lasts" in warnings[0], warnings


def test_a_program_that_ends_does_not_wait_for_an_alertmanager_that_hangs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        code = f"import time, resmon\nwith resmon.maintenance('why', run='a', alertmanager={url!r}): time.sleep(1)"
        began = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        # Also whoever reads what it prints sees the end of it: the keeper has no part of its pipes.
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, check=False, timeout=30
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("ends_at_once", [False, True])
def test_a_silence_whose_answer_was_lost_is_found_again(alertmanager: Server, client: Alertmanager, ends_at_once: bool) -> None:
    """The connection breaks off when it has been made, and the server has faults for a while."""
    run = f"doubt-{ends_at_once}"
    faults = [0]

    def handle(handler: BaseHTTPRequestHandler, _: int) -> None:
        status, body = forward(handler, alertmanager.url)
        if handler.command == "POST" and not faults[0]:
            faults[0] = 6
            handler.close_connection = True
        elif faults[0] > 1:
            faults[0] -= 1
            reply(handler, 503)
        else:
            reply(handler, status, body)

    with answering(handle) as (url, _):
        with resmon.maintenance("why", run=run, alertmanager=url) as window:
            wait_for(lambda: faults[0])
            if not ends_at_once:
                assert wait_for(lambda: window.silence) == silences(client, run)[0].id
        wait_for(lambda: silences(client, run) and not active(client, run), 15)
        assert len(silences(client, run)) == 1


def test_the_keeper_asks_with_the_credentials_of_the_environment(alertmanager: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str | None] = set()

    def handle(handler: BaseHTTPRequestHandler, _: int) -> None:
        seen.add(handler.headers.get("Authorization"))
        reply(handler, *forward(handler, alertmanager.url))

    monkeypatch.setenv("RESMON_ALERTMANAGER_TOKEN", "t0ken")
    with answering(handle) as (url, _), resmon.maintenance("why", run="token", alertmanager=url) as window:
        wait_for(lambda: window.silence)
        assert b"t0ken" not in Path(f"/proc/{window._process.pid}/cmdline").read_bytes()  # type: ignore[union-attr]
    assert seen == {"Bearer t0ken"}


def test_an_alertmanager_that_hangs_delays_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        began = time.monotonic()
        for _ in range(3):
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with resmon.maintenance("why", run="hangs", alertmanager=url) as window:
                pass
        assert time.monotonic() - began < 1.5
        assert window.silence is None


def test_what_somebody_does_by_hand_is_left_so(
    alertmanager: Server, client: Alertmanager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "BEAT", 0.3)
    with resmon.maintenance("why", run="hand", alertmanager=alertmanager.url):
        (silence,) = wait_for(lambda: active(client, "hand"))
        client.expire(silence.id)
        wait_for(lambda: "was changed by hand" in caplog.text)
        time.sleep(1.0)
        assert not active(client, "hand")
    caplog.clear()
    resmon.monitor.planned._said.clear()
    with resmon.maintenance("why", run="longer", alertmanager=alertmanager.url):
        (silence,) = wait_for(lambda: active(client, "longer"))
        client.extend(silence.id, "3h")
        wait_for(lambda: "was changed by hand" in caplog.text)
    time.sleep(1.5)
    assert active(client, "longer")[0].ends - datetime.now(UTC) > timedelta(hours=2)


def test_a_server_that_has_lost_it_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "BEAT", 0.3)
    with running(tmp_path / "server") as server:
        with resmon.maintenance("why", run="lost", alertmanager=server.url):
            with Alertmanager.of([server.url]) as client:
                (first,) = wait_for(lambda: active(client, "lost"))
            server.stop()  # killed: it had not written its silences down
            server.start()
            with Alertmanager.of([server.url]) as client:
                (second,) = wait_for(lambda: active(client, "lost"))
        assert first.id != second.id
        with Alertmanager.of([server.url]) as client:
            wait_for(lambda: not active(client, "lost"), 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "names nothing, so it would match every alert"),
        ({"run": "a", "for_": "2 hours"}, "the time of a silence must be a duration such as 30m, 2h or 1d12h (got '2 hours')"),
        ({"run": "a", "for_": "60d"}, "at most 30d"),
        ({"run": "a", "alertmanager": "here"}, "must be http://HOST:PORT"),
        ({"run": "a", "comment": "  "}, "it has no comment"),
        ({"run": "a", "comment": None}, "it has no comment"),
        ({"run": "a", "alertmanager": None}, "no Alertmanager is named"),
    ],
)
def test_what_cannot_be_silenced_is_logged_and_the_training_goes_on(
    arguments: dict[str, Any], said: str, alertmanager: Server, caplog: pytest.LogCaptureFixture
) -> None:
    done = False
    given = {"comment": "why", "alertmanager": alertmanager.url} | arguments
    with resmon.maintenance(given.pop("comment"), **given) as window:
        done = True
        wait_for(lambda: said in caplog.text, 5)
    assert done and window.silence is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_of_several_ranks_the_first_alone_silences(
    alertmanager: Server, client: Alertmanager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resmon.monitor.planned, "_rank", lambda: 1)
    with resmon.maintenance("why", run="ranks", alertmanager=alertmanager.url) as window:
        time.sleep(1.0)
        assert window._process is None
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "resmon.capture.host.process", raising=False)
    monkeypatch.setenv("RANK", "3")
    assert resmon.monitor.planned._rank() == 3


WATCHED = """
import os, sys, time, torch, resmon
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
    def forward(self, x):
        return x + self.linear(x)
model = nn.Sequential(Block(), Block())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with resmon.watch(model, optimizer, run=sys.argv[1], agent="off") as monitor:
    assert monitor.run == sys.argv[1]
    for step in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        if step == 2:
            with resmon.maintenance("other weights", for_="10m") as window:
                optimizer.step()
                while window.silence is None:
                    time.sleep(0.02)
        else:
            optimizer.step()
    assert "httpx" not in sys.modules
"""


def test_the_run_that_is_watched_is_what_is_silenced(alertmanager: Server, client: Alertmanager, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESMON_ALERTMANAGER": alertmanager.url}
    command = [sys.executable, "-c", WATCHED, "watched"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (silence,) = silences(client, "watched")
    assert silence.comment.startswith("other weights") and [str(each) for each in silence.matchers] == ['run="watched"']
    wait_for(lambda: not active(client, "watched"), 5)
    assert resmon.load(tmp_path / "runs" / "watched").outcome == "finished"
