"""An agent that goes on from where another was: in this process after every kind of interruption, and after a real SIGKILL."""

from __future__ import annotations

import json
import logging
import random
import re
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resmon.agent import attempt as attempt_module
from resmon.agent import bookmark, runtime
from resmon.agent.roster import SCRAPES, Roster
from resmon.detectors import Bank
from resmon.exporters.prometheus import Prometheus
from resmon.flight import findings
from resmon.flight.layout import boot_id
from resmon.records import Finding, RunEnd, StepRecord
from resmon.replay.detection import replay
from tests.agent.conftest import House, scrape
from tests.agent.test_roster import only, poll
from tests.detectors.course import Item, course
from tests.flight.flights import BUDGET, begin, record
from tests.waiting import wait_for

STEPS = 1500


def troubled(seed: int = 0, steps: int = STEPS) -> list[Item]:
    """Branches that die and come back, non-finite blocks, a loss that diverges: something is open nearly all the time."""
    branch, broken, at = np.full((steps, 6), 0.3), np.zeros((steps, 6)), np.arange(steps)
    for begins in range(150, steps, 400):
        branch[begins : begins + 260, begins % 6] = 0.0
    broken[700:712, 2:], broken[730, 1:] = 5, 5
    loss = np.where(at < 800, 0.999**at, 40.0)
    return course(steps, seed=seed, branch_rms=branch, nonfinite_forward=broken, scalars={"loss": loss, "accuracy": at / steps})


class Run:
    """A run that is written a few items at a time; `budget` says how much of it stays."""

    def __init__(self, folder: Path, story: list[Item], budget: int = BUDGET, register: bool = True, **info: Any) -> None:
        info = {"boot_id": boot_id(), "started": time.time()} | info
        self.folder, self.writer = begin(folder, budget=budget, **info)
        self.story = iter(story)
        self.written = 0  # steps
        if register:
            runtime.register(self.folder)

    def goes_on(self, items: int) -> bool:
        there = list(islice(self.story, items))
        record(self.writer, there)
        self.written += sum(isinstance(item, StepRecord) for item in there)
        return bool(there)

    def ends(self) -> None:
        self.writer.end(RunEnd("finished", 5000.0, STEPS - 1))

    @property
    def findings(self) -> list[Finding]:
        return findings.read(self.folder.parent)[0]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bookmark after every turn."""
    monkeypatch.setattr(attempt_module, "SAVE_AFTER", 0.0)
    monkeypatch.setattr(attempt_module, "SAVE_COST", 0)


def whole(folder: Path, story: list[Item], **info: Any) -> list[Finding]:
    """What an agent writes that nothing has interrupted, as a replay of all steps says it (tests/replay/test_replay.py)."""
    run = Run(folder, story, register=False, **info)
    while run.goes_on(500):
        pass
    run.ends()
    return list(replay(run.folder.parent, [{}]).events[0])


def exposition(roster: Roster) -> list[str]:
    """What is exported of the run, without what is of the agent itself and of this moment."""
    text = Prometheus().render(roster.view(0.0), "")[0].decode()
    return [line for line in text.splitlines() if re.match(r"resmon_(?!agent|process)", line)]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("budget", [BUDGET, 1 << 20], ids=["whole", "thinned"])
@pytest.mark.parametrize("seed", range(3))
def test_agents_that_follow_on_each_other_say_what_one_would_have_said(
    seed: int, budget: int, tmp_path: Path, runtime_folder: Path
) -> None:
    expected = whole(tmp_path / "twin", troubled(seed))
    run, chance = Run(tmp_path / "runs", troubled(seed), budget), random.Random(seed)
    roster = Roster(runtime_folder, "0", linger=1000.0)
    agents = 1
    while run.goes_on(chance.randint(1, 120)):
        poll(roster)
        if chance.random() < 0.3:
            roster = Roster(runtime_folder, "0", linger=1000.0)  # the one before was killed, without a word
            agents += 1
    run.ends()
    poll(roster)
    assert agents > 4 and len(expected) > 6
    assert run.findings == expected
    assert not roster._said
    assert (replay(run.folder.parent, [{}]).steps < STEPS) == (budget < BUDGET)


@pytest.mark.usefixtures("eager")
def test_every_rank_has_its_bookmark(tmp_path: Path, runtime_folder: Path) -> None:
    """Two ranks that are written and read in the same turns, followed by one agent and by some that are killed."""

    def findings_of(name: str, killed: float) -> tuple[list[Finding], int]:
        ranks = [Run(tmp_path / name, troubled(seed, 900), rank=seed, world_size=2) for seed in range(2)]
        chance, deaths = random.Random(5), random.Random(6)
        roster, agents = Roster(runtime_folder, "0", linger=1000.0), 1
        while sum(rank.goes_on(chance.randint(1, 120)) for rank in ranks):
            poll(roster)
            if deaths.random() < killed:
                roster, agents = Roster(runtime_folder, "0", linger=1000.0), agents + 1
                poll(roster)
                followed = roster._followed[ranks[0].folder.parent]
                assert all(rank.resumed is not None for rank in followed.attempt.ranks.values())
        for rank in ranks:
            rank.ends()
        poll(roster)
        assert not roster._said
        return ranks[0].findings, agents

    expected, _ = findings_of("twin", 0.0)
    found, agents = findings_of("runs", 0.3)
    assert agents > 4 and {event.evidence["rank"] for event in expected} == {0, 1}
    assert found == expected


def scraped(roster: Roster) -> None:
    """By as many as have to see a finding that is over at once."""
    poll(roster)
    for _ in range(SCRAPES):
        roster.scraped()


@pytest.mark.usefixtures("eager")
def test_what_is_exported_goes_on_too(tmp_path: Path, runtime_folder: Path) -> None:
    """Counters, gauges, the maxima and the largest loss of the last minute, scores, gaps, findings: as of who was there."""
    run = Run(tmp_path / "runs", troubled())
    first = Roster(runtime_folder, "0", linger=1000.0)
    for _ in range(20):
        run.goes_on(80)
        scraped(first)
    second = Roster(runtime_folder, "0", linger=1000.0)
    poll(second)
    (followed,) = second._followed.values()
    assert followed.attempt.ranks[0].resumed is not None
    assert only(second.view(0.0)).findings == only(first.view(0.0)).findings
    for _ in range(3):
        assert exposition(second) == exposition(first) != []
        assert 'resmon_nonfinite_steps_total{rank="0",run="digits"} 13.0' in exposition(second)  # 12 in a row, and one
        run.goes_on(60)
        scraped(first)
        scraped(second)


def test_it_begins_reading_a_minute_before_and_not_at_the_first_step(
    tmp_path: Path, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "runs", troubled())
    first = Roster(runtime_folder, "0", linger=1000.0)
    while run.goes_on(100):
        poll(first)
    first.leave()
    told: list[int] = []
    step = Bank.step
    monkeypatch.setattr(Bank, "step", lambda bank, record, sites: told.append(record.step) or step(bank, record, sites))
    second = Roster(runtime_folder, "0", linger=1000.0)
    poll(second)
    assert told == []
    assert only(second.view(0.0)).blocks is not None


@pytest.fixture
def left(tmp_path: Path, runtime_folder: Path) -> tuple[Run, Path]:
    """A run in its middle, and the bookmark that an agent left."""
    run = Run(tmp_path / "runs", troubled())
    run.goes_on(1800)
    first = Roster(runtime_folder, "0", linger=1000.0)
    poll(first)
    first.leave()
    (kept,) = (runtime_folder / runtime.BOOKMARKS).iterdir()
    return run, kept


def changed(content: dict[str, Any], **more: Any) -> str:
    return json.dumps(content | more)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda _: "", "cannot be read"),
        (lambda _: "[" * 9000, "cannot be read"),
        (lambda _: "[]", "damaged"),
        (lambda text: changed(json.loads(text), step="x"), "damaged"),
        (lambda text: changed(json.loads(text), nonfinite=None), "damaged"),
        (lambda text: changed(json.loads(text), steps=[1]), "damaged"),
        (lambda text: changed(json.loads(text), bank={}), "no such part"),
        (lambda text: changed(json.loads(text), gaps={"objects": [], "attributes": {}}), "another version's"),
        (lambda text: text.replace('"resmon": "', '"resmon": "9'), "of another resmon"),
        (lambda text: text.replace('"detectors": {}', '"detectors": {"dead_branch": {"ratio": 0.5}}'), "of another detectors"),
        (lambda text: text.replace('"launch": "launch"', '"launch": "b"'), "of another launch"),
        (lambda text: text.replace("resmon.detectors.divergence", "subprocess"), "a class of subprocess"),
    ],
)
def test_a_bookmark_that_is_of_no_use_is_said_once_and_the_flight_read_again(
    damage: Any, why: str, left: tuple[Run, Path], runtime_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, kept = left
    kept.write_text(damage(kept.read_text()))
    with caplog.at_level(logging.WARNING):
        second = Roster(runtime_folder, "0", linger=1000.0)
        poll(second)
        run.goes_on(10_000)
        run.ends()
        poll(second)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "its bookmark is of no use" in message and why in message
    assert run.findings == whole(tmp_path / "twin", troubled())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bookmark_with_flipped_bytes_never_stops_an_agent(
    data: st.DataObject, left: tuple[Run, Path], runtime_folder: Path
) -> None:
    _, kept = left
    before = kept.read_bytes()
    made = bytearray(before)
    for _ in range(data.draw(st.integers(1, 5))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(32, 126))
    kept.write_bytes(made)
    try:
        run = only(poll(Roster(runtime_folder, "0", linger=1000.0)))
        assert run.outcome is None
    finally:
        kept.write_bytes(before)


def test_a_bookmark_that_is_too_large_is_not_kept(
    tmp_path: Path, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bookmark, "LARGEST", 1000)
    run = Run(tmp_path / "runs", troubled())
    run.goes_on(200)
    roster = Roster(runtime_folder, "0", linger=1000.0)
    poll(roster)
    roster.leave()
    assert list((runtime_folder / runtime.BOOKMARKS).iterdir()) == []
    assert "no bookmark can be written: what the detectors have learnt takes" in caplog.text


def test_it_goes_with_its_registration(tmp_path: Path, runtime_folder: Path) -> None:
    run = Run(tmp_path / "runs", troubled())
    run.goes_on(200)
    roster = Roster(runtime_folder, "0", linger=0.0)
    poll(roster)
    folder = runtime_folder / runtime.BOOKMARKS
    assert len(list(folder.iterdir())) == 1
    assert next(folder.iterdir()).stat().st_mode & 0o077 == 0
    run.ends()
    poll(roster)
    wait_for(lambda: (poll(roster), not list(folder.iterdir()))[1])
    (folder / "of-nobody.json").write_text("{}")
    Roster(runtime_folder, "0", linger=0.0)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("budget", [BUDGET, 1 << 20], ids=["whole", "thinned"])
def test_a_real_agent_is_killed_and_the_next_one_says_the_rest(budget: int, tmp_path: Path, house: House, port: int) -> None:
    expected = whole(tmp_path / "twin", troubled())
    run = Run(tmp_path / "runs", troubled(), budget)
    agents = [house.agent(port)]
    url = house.ready(port)
    kept = house.runtime / runtime.BOOKMARKS

    def taken() -> int:
        """The step that the newest bookmark is of."""
        return max((json.loads(path.read_bytes())["step"] for path in kept.glob("*.json")), default=-1)

    for number, until in ((signal.SIGKILL, 400), (signal.SIGTERM, 800), (signal.SIGKILL, 1200)):
        while run.written < until:
            run.goes_on(60)
            scrape(url)  # for which it reads what there is
        wait_for(lambda: taken() > until - 50)  # noqa: B023
        run.goes_on(60)  # of which no bookmark tells, where it is killed at once
        agents[-1].send_signal(number)
        agents[-1].wait(10)
        agents.append(house.agent(port))
        house.ready(port)
    while run.goes_on(60):
        scrape(url)
    run.ends()
    wait_for(lambda: len(run.findings) >= len(expected))
    assert run.findings == expected
    assert "no use" not in "".join(map(house.output, agents))
