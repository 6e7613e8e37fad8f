"""The agent as a process, over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.catalogue import CATALOGUE
from resmon.flight import layout
from tests.agent.conftest import House, get, scrape
from tests.ports import free_port
from tests.waiting import wait_for

PACE = 0.02


def rank_folder(house: House, run: str = "digits", rank: int = 0, attempt: int = 1) -> Path:
    return house.runs / run / f"attempt-{attempt:04d}" / f"rank-{rank:05d}"


def test_pages(house: House, port: int) -> None:
    house.agent(port)
    house.trainer('<script>alert("x")</script>', last=3)
    url = house.ready(port)
    wait_for(lambda: scrape(url).all("resmon_run_blocks"))
    assert get(url + "/-/healthy")[0] == 200
    status, page = get(url + "/")
    assert status == 200
    assert "alert(" not in page, "the page has no word of a run in it"
    assert 'href="/metrics"' in page
    runs = json.loads(get(url + "/api/runs")[1])
    assert [(run["name"], run["outcome"]) for run in runs["runs"]] == [('<script>alert("x")</script>', "running")]
    assert get(url + "/metrics", "application/openmetrics-text")[1].endswith("# EOF\n")
    assert get(url + "/nothing")[0] == 404
    assert get(url + "/metrics", method="DELETE")[0] == 405
    assert scrape(url).one("resmon_agent_info") == 1


def test_hostile_requests_do_no_harm(house: House, port: int) -> None:
    agent = house.agent(port)
    url = house.ready(port)
    attacks = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
        b"GET " + b"/" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(20_000)) + b"\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nx",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: \xff\xfe\r\n\r\n",
        b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
        b"\r\n" * 100_000,
        b"GET /metrics HTTP/1.1\r\n",
    ]
    sockets = []
    for attack in attacks:
        victim = socket.create_connection(("127.0.0.1", port), timeout=10)
        sockets.append(victim)
        try:
            victim.sendall(attack)
        except OSError:
            pass  # it hung up on us, which is right
    assert get(url + "/-/healthy")[0] == 200
    assert scrape(url).one("resmon_runs_active") == 0
    for victim in sockets:
        victim.close()
    assert agent.poll() is None
    status = Path(f"/proc/{agent.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 300_000


def test_a_port_in_use(house: House, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        agent = house.agent(port)
        targets = house.runtime / runtime.TARGETS
        (target,) = wait_for(lambda: json.loads(targets.read_text()))[0]["targets"]
        assert target != f"127.0.0.1:{port}"
        wait_for(lambda: get(f"http://{target}/-/ready")[0] == 200)
        assert f"127.0.0.1:{port} is taken by another program" in house.output(agent)
        now = runtime.serving(house.runtime)
        assert now is not None
        assert now.url == f"http://{target}"


def test_a_second_agent_says_where_the_first_serves(house: House, port: int) -> None:
    house.agent(port)
    url = house.ready(port)
    second = house.agent(port)
    assert second.wait(20) == 0
    assert f"another one serves already, at {url}/metrics" in house.output(second)


def test_an_agent_without_work_leaves_and_cleans_up(house: House, port: int) -> None:
    agent = house.agent(port, linger=1.0)
    trainer = house.trainer(last=5, pace=PACE, how="finished")
    url = house.ready(port)
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="finished") == 1)
    assert trainer.wait(20) == 0
    wait_for(lambda: not scrape(url).all("resmon_run_info"))  # `linger` seconds after the end
    assert agent.wait(20) == 0  # and one more scrape, which the last line made
    assert json.loads((house.runtime / runtime.TARGETS).read_text()) == []
    assert (house.runtime / runtime.LOCK).read_bytes() == b""
    assert runtime.serving(house.runtime) is None
    assert list((house.runtime / runtime.RUNS).iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_agent_that_is_told_to_leave_leaves_the_runs_to_the_next(number: int, house: House, port: int) -> None:
    agent = house.agent(port)
    house.trainer(last=3, pace=PACE)
    url = house.ready(port)
    wait_for(lambda: scrape(url).all("resmon_run_info"))
    agent.send_signal(number)
    assert agent.wait(10) == 0
    assert json.loads((house.runtime / runtime.TARGETS).read_text()) == []
    assert len(list((house.runtime / runtime.RUNS).iterdir())) == 1


def test_a_trainer_that_is_killed(house: House, port: int) -> None:
    house.agent(port)
    trainer = house.trainer(pace=PACE, last=100_000, how="finished")
    url = house.ready(port)
    wait_for(lambda: (scrape(url).one("resmon_steps_total") or 0) > 5)
    assert scrape(url).one("resmon_runs_total", outcome="killed") == 0  # at 0 from the start
    trainer.kill()
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="killed") == 1)
    end = json.loads((rank_folder(house) / layout.END).read_text())
    assert end["outcome"] == "killed"
    assert end["step"] == int(house.output(trainer).split()[-1])  # every step that it had said to be on file
    assert scrape(url).one("resmon_steps_total") == end["step"] + 1


def test_the_figures_of_a_process_are_live(house: House, port: int) -> None:
    """Of the process that holds the flight's lock, and gone with it, though its run is still shown."""
    house.agent(port)
    trainer = house.trainer(pace=PACE, last=100_000, how="finished")
    url = house.ready(port)
    names = [metric.name for metric in CATALOGUE if metric.name.startswith("resmon_process_")]
    now = wait_for(lambda: (page := scrape(url)).all(names[0]) and page)
    assert all(now.one(name, run="digits", rank="0") is not None for name in names)
    threads = len(list(Path(f"/proc/{trainer.pid}/task").iterdir()))
    assert now.one("resmon_process_threads") == threads
    wait_for(lambda: (scrape(url).one(names[0]) or 0) > (now.one(names[0]) or 0))
    trainer.kill()
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="killed") == 1)
    after = scrape(url)
    assert after.all("resmon_steps_total")
    assert not any(after.all(name) for name in names)
    assert not any(name.startswith("resmon_gpu_") for name, _ in after.samples) or Path("/dev/nvidiactl").exists()


def test_ranks_of_one_launch(house: House, port: int) -> None:
    house.agent(port)
    ranks = [house.trainer(rank=rank, world=2, pace=PACE, last=20, how="finished", launch="one") for rank in range(2)]
    url = house.ready(port)
    assert [rank.wait(30) for rank in ranks] == [0, 0]
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="finished") == 1)
    now = scrape(url)
    assert len(now.all("resmon_steps_total")) == 2
    assert len(now.all("resmon_block_skip_rms")) == 3


def test_killing_the_agent_disturbs_nothing_and_the_next_one_goes_on(house: House, port: int) -> None:
    first = house.agent(port)
    ended = house.trainer("ended", pace=PACE, last=3, how="failed")
    live = house.trainer("live", pace=PACE, last=100_000, how="nonfinite")
    url = house.ready(port)
    ended.wait(20)
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="failed") == 1)
    wait_for(lambda: scrape(url).one("resmon_finding_active", run="live"))
    before = scrape(url)
    first.kill()
    first.wait()
    written = len(house.output(live).split())
    second = house.agent(port)
    house.ready(port)
    assert second.poll() is None
    after = scrape(url)
    counters = [key for key in before.samples if key[0].endswith(("_total", "_bucket", "_count", "_sum"))]
    assert len(counters) > 50
    for key in counters:
        assert after.samples[key] >= before.samples[key], key
    wait_for(lambda: scrape(url).one("resmon_runs_total", outcome="failed") == 1)  # once its scrapers are known
    assert after.one("resmon_finding_active", run="live") == 1
    assert live.poll() is None
    wait_for(lambda: len(house.output(live).split()) > written + 10)
    events = [json.loads(line) for line in (rank_folder(house, "live").parent / layout.FINDINGS).read_text().splitlines()]
    assert [event["state"] for event in events] == ["opened"]  # three blocks: none is left that it could spread to
    assert events[0]["block"] == "h.2"


def test_an_agent_outlives_its_runtime_folder(house: House, port: int) -> None:
    """The end of a login session takes it away, and trainings in tmux go on."""
    first = house.agent(port)
    ended = house.trainer("ended", pace=PACE, last=3, how="finished")
    house.trainer("live", pace=PACE, last=100_000)
    url = house.ready(port)
    assert ended.wait(20) == 0
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="finished") == 1)
    house.runtime.rename(house.runtime.with_name("away"))
    wait_for(lambda: (now := runtime.serving(house.runtime)) is not None and now.pid == first.pid and now.url == url)
    wait_for((house.runtime / runtime.STATE).exists)
    assert rank_folder(house, "live") in runtime.registrations(house.runtime).values()
    steps = scrape(url).one("resmon_steps_total", run="live")
    first.kill()
    first.wait()
    house.agent(port)
    house.ready(port)
    wait_for(lambda: (scrape(url).one("resmon_steps_total", run="live") or 0) > (steps or 0) > 0)
    assert json.loads((house.runtime / runtime.STATE).read_text())["runs_total"]["finished"] == 1
    assert scrape(url).one("resmon_agent_errors_total") == 0


def test_of_two_agents_the_one_that_is_found_goes_on(house: House, port: int) -> None:
    """One was begun after the runtime folder of the other had been removed, before that could make it anew."""
    first = house.agent(port)
    house.trainer("old", pace=PACE, last=100_000)
    url = house.ready(port)
    wait_for(lambda: scrape(url).one("resmon_steps_total", run="old"))
    first.send_signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    house.runtime.rename(house.runtime.with_name("away"))
    other = free_port()
    house.agent(other)
    house.trainer("new", pace=PACE, last=100_000)
    elsewhere = house.ready(other)
    first.send_signal(signal.SIGCONT)
    assert first.wait(20) == 0
    assert "another agent has come since" in house.output(first)
    now = runtime.serving(house.runtime)
    assert now is not None and now.url == elsewhere
    assert json.loads((house.runtime / runtime.TARGETS).read_text()) == [{"targets": [f"127.0.0.1:{other}"], "labels": {}}]
    wait_for(lambda: {dict(key)["run"] for key in scrape(elsewhere).all("resmon_steps_total")} == {"old", "new"})


def test_at_rest_it_takes_next_to_nothing(house: House, port: int) -> None:
    """CPU time of all its threads over some seconds, with one run that lives and is silent."""
    agent = house.agent(port)
    house.trainer(sites=48, pace=0.0, last=50)
    url = house.ready(port)
    wait_for(lambda: scrape(url).one("resmon_steps_total") == 51)
    time.sleep(5)  # until the bookmark of these steps is written

    def seconds() -> float:
        tasks = Path(f"/proc/{agent.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    started, before = time.monotonic(), seconds()
    time.sleep(8)
    share = (seconds() - before) / (time.monotonic() - started)
    assert share < 0.005, f"{share:.2%} of a core"
