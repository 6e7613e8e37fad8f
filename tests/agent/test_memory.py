"""A process that the kernel killed for want of memory, as the agent concludes it from a control group's files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.agent.roster import Roster
from resmon.flight import incidents, layout
from resmon.flight.reader import read_end
from resmon.memory.kills import memory_group
from resmon.records import BLOCK_VALUES, Incident, Outcome
from tests.agent.test_roster import Writer, poll
from tests.ranks import ROOT


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
    assert incident.summary.endswith("counts 1 more process killed so since it was last seen alive.")
    assert [each["block"] for each in incident.evidence["blocks"]] == ["h.2", "h.1", "h.0"]
    assert incident.evidence["blocks"][0]["activation_bytes"] == 3000
    assert len(incident.evidence["memory"]) == 5


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of this machine's, with little memory."""
    mine = memory_group()
    if mine is None or os.geteuid() != 0:
        pytest.skip("no control group can be made: that takes root, and a hierarchy that counts memory")
    old = (mine / "memory.limit_in_bytes").exists()
    folder = (mine if old else Path("/sys/fs/cgroup")) / f"resmon-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(1 << 30))
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    yield folder
    for _ in range(100):  # its processes are on their way out
        try:
            folder.rmdir()
            break
        except OSError:
            time.sleep(0.05)


TRAINING = """
import sys, time
from pathlib import Path
Path(sys.argv[2], "cgroup.procs").write_text("0")  # before any memory is taken
import torch, resmon
from torch import nn
from tests.capture import models

model = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8))
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
monitor = resmon.watch(model, optimizer, run="eater", directory=sys.argv[1])
for i in range(100):
    optimizer.zero_grad()
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    time.sleep(0.03)
print("now", flush=True)
sys.stdin.readline()
torch.ones(1 << 29)
"""


def test_the_kernel_really_kills_a_training(roster: Roster, runs: Path, real_group: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESMON_AGENT": "off"}
    command = [sys.executable, "-c", TRAINING, str(runs), str(real_group)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "now\n"
        (folder,) = layout.ranks(runs / "eater" / "attempt-0001").values()
        runtime.register(folder)
        poll(roster)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(60) == -signal.SIGKILL
    (run,) = poll(roster).runs
    assert run.outcome == "out_of_memory"
    (incident,), _ = incidents.read(folder)
    assert str(real_group) in incident.summary and "counts 1 more process killed so" in incident.summary
    assert len(incident.evidence["blocks"]) == 2


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
