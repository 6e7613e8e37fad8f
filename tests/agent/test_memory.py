"""A process that the kernel killed for want of memory, as the agent concludes it from a control group's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from resmon.agent.roster import Roster
from resmon.flight import incidents
from resmon.flight.reader import read_end
from resmon.records import BLOCK_VALUES, Incident, Outcome
from tests.agent.test_roster import Writer, poll


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def roster(runtime_folder: Path) -> Roster:
    return Roster(runtime_folder, "0", linger=1000.0)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    folder = tmp_path / "group"
    folder.mkdir()
    count(folder, 4)
    return folder


def count(group: Path, kills: int) -> None:
    (group / "memory.events").write_text(f"low 0\nhigh 0\nmax 9\noom {kills}\noom_kill {kills}\noom_group_kill 0\n")


def ended(writer: Writer) -> tuple[Outcome, list[Incident]]:
    end = read_end(writer.folder)
    assert end is not None
    found, skips = incidents.read(writer.folder)
    assert not skips
    return end.outcome, found


def train(writer: Writer, steps: int = 5) -> None:
    for _ in range(steps):
        held = {("activation_bytes", i): float(1000 * (i + 1)) for i in range(3)}
        writer.step(values=held | {("checkpoint_bytes", i): 500.0 for i in range(3)})


def test_the_counter_rose_while_the_process_died(roster: Roster, runs: Path, group: Path) -> None:
    writer = Writer(runs, memory_group=str(group), group_kills=4)
    train(writer)
    poll(roster)
    count(group, 5)
    writer.die()
    (run,) = poll(roster).runs
    assert run.outcome == "out_of_memory"
    outcome, (incident,) = ended(writer)
    assert outcome == incident.kind == "out_of_memory"
    assert incident.step == 4
    assert incident.summary.startswith("The kernel killed the process for want of main memory: its control group")
    assert incident.summary.endswith("counts 1 more processes killed so since it was last seen alive.")
    assert [each["block"] for each in incident.evidence["blocks"]] == ["h.2", "h.1", "h.0"]
    assert incident.evidence["blocks"][0]["activation_bytes"] == 3000
    assert len(incident.evidence["memory"]) == 5


def test_killed_for_another_reason(roster: Roster, runs: Path, group: Path) -> None:
    writer = Writer(runs, memory_group=str(group), group_kills=3)  # it rose to 4 while the process lived: another's
    train(writer)
    poll(roster)
    writer.die()
    (run,) = poll(roster).runs
    assert run.outcome == "killed"
    assert "out_of_memory" not in {incident.kind for incident in ended(writer)[1]}


def test_an_agent_that_came_too_late_says_so(roster: Roster, runs: Path, group: Path) -> None:
    writer = Writer(runs, memory_group=str(group), group_kills=3)
    train(writer)
    writer.die()
    poll(roster)
    outcome, (incident,) = ended(writer)
    assert outcome == "out_of_memory"
    assert ", as it seems, " in incident.summary and "since the run began" in incident.summary


def test_a_flight_without_a_step(roster: Roster, runs: Path, group: Path) -> None:
    writer = Writer(runs, memory_group=str(group), group_kills=4)
    poll(roster)
    count(group, 5)
    writer.die()
    poll(roster)
    outcome, (incident,) = ended(writer)
    assert (outcome, incident.step, incident.evidence["blocks"]) == ("out_of_memory", None, [])


def test_values_that_are_no_numbers_do_no_harm(roster: Roster, runs: Path, group: Path) -> None:
    writer = Writer(runs, memory_group=str(group), group_kills=4)
    names = [name for name in BLOCK_VALUES if name.endswith("_bytes")]
    writer.step(values={(name, i): float(value) for name in names for i, value in enumerate(("nan", "inf", "-5"))})
    poll(roster)
    count(group, 5)
    writer.die()
    poll(roster)
    assert ended(writer)[0] == "out_of_memory"
