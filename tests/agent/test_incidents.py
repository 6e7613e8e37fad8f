"""Incidents as the agent sees and makes them: in this process over real flights, and as a process over real processes."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from resmon import load
from resmon.agent import runtime
from resmon.agent.roster import Roster
from resmon.exporters.prometheus import Prometheus
from resmon.flight import journal, layout, stalls
from resmon.flight.summary import summary
from resmon.records import Checkpoint, Incident, Outcome, RunEnd, StackDump
from tests.agent.conftest import House, scrape
from tests.agent.test_roster import Writer, only, poll
from tests.agent.test_service import PACE, rank_folder
from tests.waiting import wait_for


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that say 0.25 s of themselves are missed after 0.5."""
    monkeypatch.setattr(stalls, "STEPS", 2)
    monkeypatch.setattr(stalls, "FIRST", 0.5)


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / layout.INCIDENTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def exposition(roster: Roster) -> str:
    return Prometheus().render(roster.view(0.0), "")[0].decode()


def test_who_was_killed_has_an_incident_with_its_checkpoint(roster: Roster, runs: Path, runtime_folder: Path) -> None:
    writer = Writer(runs)
    for _ in range(3):
        writer.step()
    journal.append(writer.folder / layout.CHECKPOINTS, asdict(Checkpoint(2, 5.0, "two.pt")))
    poll(roster)
    assert 'resmon_incidents_total{kind="killed",run="digits"} 0.0' in exposition(roster)
    writer.die()
    run = only(poll(roster))
    (event,) = events(writer.folder)
    assert (event["kind"], event["checkpoint"], event["runbook"]) == ("killed", "two.pt", "killed")
    assert [incident.id for incident in run.incidents] == ["killed-2"]
    assert 'resmon_incidents_total{kind="killed",run="digits"} 1.0' in exposition(roster)
    listed = summary(writer.folder.parent)
    assert "The process was killed after step 2 without a word." in listed.incident and listed.outcome == "killed"
    # A new agent reads what is there, and says nothing twice.
    after = only(poll(Roster(runtime_folder, "0", 1000.0)))
    assert len(events(writer.folder)) == 1 and len(after.incidents) == 1


@pytest.mark.parametrize("gone", [layout.INCIDENTS, layout.END])
def test_an_agent_that_was_killed_between_its_two_writes(gone: str, roster: Roster, runs: Path, runtime_folder: Path) -> None:
    writer = Writer(runs)
    writer.step()
    writer.die()
    assert only(poll(roster)).outcome == "killed"
    (writer.folder / gone).unlink()
    view = poll(Roster(runtime_folder, "0", 1000.0))
    assert only(view).outcome == "killed" and view.runs_total["killed"] == 1
    assert [event["kind"] for event in events(writer.folder)] == ["killed"]


def test_a_rank_that_is_lost_while_the_others_live(roster: Roster, runs: Path) -> None:
    writers = [Writer(runs, rank=rank, world_size=3) for rank in range(3)]
    for writer in writers:
        writer.step()
    poll(roster)
    writers[1].die()
    view = poll(roster)
    assert view.runs_active == 1
    assert only(view).outcome is None
    (event,) = events(writers[1].folder)
    assert event["rank"] == 1 and event["evidence"] == {"waiting_ranks": [0, 2]}
    assert event["summary"] == "Rank 1 was lost after step 0 without a word, while ranks 0 and 2 lived on."
    for writer in (writers[0], writers[2]):
        writer.flight.end(RunEnd("interrupted", time.time(), 0, "SIGTERM"))
    view = poll(roster)
    assert (only(view).outcome, view.runs_total["killed"], view.runs_total["interrupted"]) == ("killed", 1, 0)
    assert sorted((incident.rank, incident.kind) for incident in only(view).incidents) == [
        (0, "interrupted"),
        (1, "killed"),
        (2, "interrupted"),
    ]


def test_what_the_process_has_said_is_not_said_again(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step()
    writer.flight.incident(Incident("failed-0", "failed", 7.0, 0, "ValueError: boom", block="h.1"))
    writer.end("failed")
    run = only(poll(roster))
    assert [(each.id, each.block) for each in run.incidents] == [("failed-0", "h.1")]
    assert len(events(writer.folder)) == 1


@pytest.mark.usefixtures("impatient")
def test_a_stall_is_a_state_until_it_goes_on(roster: Roster, runs: Path, runtime_folder: Path) -> None:
    writer = Writer(runs, stall_after=0.3)
    writer.step(time=time.time())
    run = only(poll(roster))
    assert (run.is_stalled, run.outcome, events(writer.folder)) == (False, None, [])
    time.sleep(0.7)
    run = only(poll(roster))
    assert (run.is_stalled, run.outcome) == (True, None)
    assert 'resmon_run_stalled{run="digits"} 1.0' in exposition(roster)
    assert summary(writer.folder.parent).outcome == "stalled"
    time.sleep(0.2)
    poll(roster)
    assert [event["id"] for event in events(writer.folder)] == ["stalled-0"]  # once
    second = Roster(runtime_folder, "0", 1000.0)
    assert only(poll(second)).is_stalled
    assert len(events(writer.folder)) == 1
    writer.step(time=time.time())
    run = only(poll(second))
    assert not run.is_stalled
    assert [event["evidence"].get("resumed_step") for event in events(writer.folder)] == [None, 1]
    assert 'resmon_incidents_total{kind="stalled",run="digits"} 1.0' in exposition(second)
    assert 'resmon_run_stalled{run="digits"} 0.0' in exposition(second)
    writer.end()
    assert only(poll(second)).outcome == "finished"
    assert len(events(writer.folder)) == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("outcome", ["finished", "failed"])
def test_a_stall_that_an_end_closes_says_so(outcome: Outcome, roster: Roster, runs: Path) -> None:
    """A last evaluation, or a rank that has no more batches than the others: it is not said for ever that it hangs."""
    writer = Writer(runs, stall_after=0.3)
    writer.step(time=time.time())
    poll(roster)
    time.sleep(0.7)
    assert only(poll(roster)).is_stalled
    if outcome == "failed":  # as where a collective's time is up: the process says so itself
        writer.flight.incident(Incident("failed-0", "failed", time.time(), 0, "RuntimeError: timed out"))
    writer.end(outcome)
    run = only(poll(roster))
    assert (run.is_stalled, run.outcome) == (False, outcome)
    told = load(writer.folder.parent).incidents().set_index("kind")["summary"]
    how = "the run finished" if outcome == "finished" else "the run ended (failed)"
    assert told["stalled"] == f"No step came after step 0, until {how}."
    assert set(told.index) == ({"stalled"} if outcome == "finished" else {"stalled", "failed"})


@pytest.mark.usefixtures("impatient")
def test_who_never_went_on_has_stalled(roster: Roster, runs: Path, runtime_folder: Path) -> None:
    writer = Writer(runs, stall_after=0.3)
    writer.step(time=time.time())
    seen = StackDump(0, 0.6, 0.3, "forward", "model.py:7: h = slow(h)", "", "h.1", "h.1", ("model.py:7 in forward",))
    layout.write_json(writer.folder / layout.STACK, asdict(seen))
    poll(roster)
    time.sleep(0.7)
    (incident,) = only(poll(roster)).incidents
    assert "For 0.3 s at least it has been in the forward pass, in block h.1" in incident.summary
    assert (incident.block, incident.line) == ("h.1", "model.py:7: h = slow(h)")
    writer.die()
    view = poll(roster)
    assert only(view).outcome == "stalled"
    assert (view.runs_total["stalled"], view.runs_total["killed"]) == (1, 0)
    assert json.loads((writer.folder / layout.END).read_text())["outcome"] == "stalled"
    assert [event["kind"] for event in events(writer.folder)] == ["stalled", "stalled"]
    (incident,) = only(poll(Roster(runtime_folder, "0", 1000.0))).incidents
    where = "It was in the forward pass, in block h.1, at model.py:7: h = slow(h)."
    assert incident.summary == f"No step came after step 0, until the process was killed. {where}"


@pytest.mark.usefixtures("impatient")
def test_what_is_logged_is_a_sign_of_life(roster: Roster, runs: Path) -> None:
    writer = Writer(runs, stall_after=0.3)
    writer.step(time=time.time())
    for _ in range(4):
        time.sleep(0.25)
        writer.training.now = time.time()
        writer.log(val_loss=1.0)
        assert not only(poll(roster)).is_stalled


@pytest.mark.usefixtures("impatient")
def test_a_process_that_never_came_to_a_step(roster: Roster, runs: Path) -> None:
    writer = Writer(runs, stall_after=0.3)
    assert not only(poll(roster)).is_stalled
    time.sleep(0.7)
    assert only(poll(roster)).is_stalled
    assert events(writer.folder)[0]["summary"].startswith("No step for ")
    assert "since the run began" in events(writer.folder)[0]["summary"]
    writer.step(time=time.time())
    assert not only(poll(roster)).is_stalled


@pytest.mark.usefixtures("impatient")
def test_who_was_away_reads_old_steps_as_old(runs: Path, runtime_folder: Path) -> None:
    """An agent that catches up with a live flight takes what was written long ago for no sign of life now."""
    writer = Writer(runs, stall_after=0.3, started=time.time() - 100)
    for i in range(5):
        writer.step(time=time.time() - 50 + i)
    assert only(poll(Roster(runtime_folder, "0", 1000.0))).is_stalled


def test_a_folder_that_cannot_be_written_is_said_once(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step()
    (writer.folder / layout.INCIDENTS).mkdir()
    writer.die()
    view = poll(roster)
    assert (only(view).outcome, len(only(view).incidents)) == ("killed", 1)
    errors = view.errors
    assert errors == 1
    assert poll(roster).errors == errors


def test_damaged_lines_are_counted(roster: Roster, runs: Path) -> None:
    writer = Writer(runs)
    writer.step()
    (writer.folder / layout.INCIDENTS).write_bytes(b'{"id": 5}\nnot json\n')
    assert poll(roster).skipped_rows == 2


# -- processes -----------------------------------------------------------------------------------------------------------


def test_a_process_that_is_stopped_stalls_goes_on_and_is_killed(house: House, port: int) -> None:
    house.agent(port)
    trainer = house.trainer(pace=PACE, last=100_000, how="finished", stall_after=3.0)
    url = house.ready(port)
    wait_for(lambda: (scrape(url).one("resmon_steps_total") or 0) > 5)
    assert scrape(url).one("resmon_run_stalled") == 0
    os.kill(trainer.pid, signal.SIGSTOP)
    wait_for(lambda: scrape(url).one("resmon_run_stalled") == 1)
    assert sum(value for name, value in scrape(url).all("resmon_runs_total").items()) == 0
    os.kill(trainer.pid, signal.SIGCONT)
    wait_for(lambda: scrape(url).one("resmon_run_stalled") == 0)
    assert scrape(url).one("resmon_incidents_total", kind="stalled") == 1
    os.kill(trainer.pid, signal.SIGSTOP)
    wait_for(lambda: scrape(url).one("resmon_run_stalled") == 1)
    trainer.kill()
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="stalled") == 1)
    assert scrape(url).one("resmon_incidents_total", kind="stalled") == 2
    ids = [event["id"] for event in events(rank_folder(house))]
    assert len(ids) == 4 and len(set(ids)) == 2


def test_killed_while_no_agent_lived(house: House, port: int) -> None:
    first = house.agent(port)
    trainer = house.trainer(pace=PACE, last=100_000, how="finished")
    url = house.ready(port)
    wait_for(lambda: (scrape(url).one("resmon_steps_total") or 0) > 5)
    first.kill()
    first.wait()
    trainer.kill()
    trainer.wait()
    assert not (rank_folder(house) / layout.END).exists()
    house.agent(port)
    url = house.ready(port)
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="killed") == 1)
    assert scrape(url).one("resmon_incidents_total", kind="killed") == 1
    assert len(list((house.runtime / runtime.RUNS).iterdir())) == 1
