"""on_incident's command, really started."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.agent.reaction import MOST, REPLACED, Reaction
from resmon.agent.roster import Roster
from resmon.errors import AgentError, ConfigurationError
from resmon.flight import layout
from resmon.records import Incident
from resmon.settings import Settings
from tests import forkserver, synthetic
from tests.agent.conftest import ROOT, House
from tests.agent.test_roster import Writer, poll
from tests.agent.test_service import rank_folder
from tests.waiting import wait_for

# Writes what it is given into the file that is its argument.
NOTES = """
import json, os, sys
given = {"incident": json.loads(sys.stdin.read()), "cwd": os.getcwd(), "environment": dict(os.environ), "session": os.getsid(0)}
with open(sys.argv[1] + ".part", "w") as file:
    json.dump(given, file)
os.replace(sys.argv[1] + ".part", sys.argv[1])
print("noted")
"""


@pytest.fixture
def rank(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "digits" / "attempt-0001" / "rank-00000"
    folder.mkdir(parents=True)
    return folder


def noting(tmp_path: Path, timeout: float = 30.0) -> tuple[Reaction, Path]:
    """A command that notes what it is given, and the file where it does."""
    script = tmp_path / "notes.py"
    script.write_text(NOTES)
    return Reaction((sys.executable, str(script), str(tmp_path / "noted.json")), timeout, str(tmp_path)), tmp_path / "noted.json"


def incident(step: int = 7, **more: object) -> Incident:
    return Incident(f"nonfinite-{step}", "nonfinite", 5.0, step, "h.3 made NaN", **more)  # type: ignore[arg-type]


def log_of(rank: Path) -> str:
    path = rank.parent / layout.REACTIONS_LOG
    return path.read_text() if path.exists() else ""


def test_the_command_is_given_the_incident(tmp_path: Path, rank: Path) -> None:
    reaction, noted = noting(tmp_path)
    info = synthetic.info(attempt=3)
    begun = time.monotonic()
    reaction.to(incident(evidence={"norm": float("nan"), "blocks": [1.5]}), info, rank)
    assert time.monotonic() - begun < 2  # whatever the command takes
    given = json.loads(wait_for(noted.read_text))
    assert given["incident"]["summary"] == "h.3 made NaN"
    assert given["incident"]["evidence"] == {"norm": "nan", "blocks": [1.5]}  # strict JSON
    assert (given["incident"]["run"], given["incident"]["attempt"]) == ("digits", 3)
    assert given["cwd"] == str(tmp_path)
    names = ("RESMON_RUN", "RESMON_DIRECTORY", "RESMON_ATTEMPT", "RESMON_RANK", "RESMON_INCIDENT")
    assert [given["environment"][name] for name in names] == ["digits", str(tmp_path / "runs"), "3", "0", "nonfinite"]
    assert given["session"] != os.getsid(0)
    wait_for(lambda: "nonfinite-7: exit status 0" in log_of(rank))
    assert "noted\n" in log_of(rank)
    assert (rank.parent / layout.REACTIONS_LOG).stat().st_mode & 0o077 == 0


def test_its_variables_do_not_break_what_it_starts(tmp_path: Path, rank: Path) -> None:
    """A command that trains again: its environment must be one that resmon takes settings from."""
    script = "from resmon.settings import Settings; s = Settings.of(); print(s.run, s.directory.name, flush=True)"
    reaction = Reaction((sys.executable, "-c", script), 60.0, str(ROOT))
    reaction.to(incident(), synthetic.info(), rank)
    wait_for(lambda: "exit status" in log_of(rank))
    assert "digits runs\n" in log_of(rank)


def test_once_for_each_incident_whoever_asks(tmp_path: Path, rank: Path) -> None:
    reaction = Reaction(("/bin/sh", "-c", "cat >/dev/null; echo called"), 30.0, "/")
    for _ in range(3):
        reaction.to(incident(), synthetic.info(), rank)
    reaction.to(incident(8), synthetic.info(), rank)
    wait_for(lambda: log_of(rank).count("exit status 0") == 2)
    time.sleep(0.3)
    assert log_of(rank).count("called\n") == 2


def test_a_flood_starts_it_a_bounded_number_of_times(rank: Path) -> None:
    reaction = Reaction(("/bin/true",), 30.0, "/")
    for step in range(3 * MOST):
        reaction.to(incident(step), synthetic.info(), rank)
    wait_for(lambda: log_of(rank).count("exit status 0") == MOST)
    assert len((rank / layout.REACTIONS).read_text().splitlines()) == MOST


def test_one_that_hangs_is_ended_with_all_that_it_started(rank: Path) -> None:
    reaction = Reaction(("/bin/sh", "-c", "trap '' TERM; sleep 1000 & echo child $!; wait"), 0.5, "/")
    begun = time.monotonic()
    reaction.to(incident(), synthetic.info(), rank)
    assert time.monotonic() - begun < 2
    wait_for(lambda: "ended after 0.5 s" in log_of(rank))
    child = int(log_of(rank).split("\nchild ")[1].split()[0])
    assert not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(f"/proc/{child}/status").read_text()


def test_what_cannot_be_started_is_in_the_log(tmp_path: Path, rank: Path) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o700)
    Reaction((str(tmp_path / "text"),), 30.0, str(tmp_path / "gone")).to(incident(), synthetic.info(), rank)
    wait_for(lambda: "could not be started" in log_of(rank))
    assert "Traceback" not in log_of(rank)


def test_a_start_that_fails_is_told_to_who_asked(rank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(AgentError, match="own executable"):
        Reaction(("/bin/true",), 30.0, "/").to(incident(), synthetic.info(), rank)
    rank.parent.joinpath("rank-00001").mkdir()
    monkeypatch.undo()
    (rank.parent / "rank-00001" / layout.REACTIONS).mkdir()
    with pytest.raises(OSError, match="directory"):
        Reaction(("/bin/true",), 30.0, "/").to(incident(), synthetic.info(), rank.parent / "rank-00001")


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Reaction.of(Settings.of()) is None
    made = Reaction.of(Settings.of(on_incident="sh -c 'echo \"$1\"; cat' name"))
    assert made is not None
    assert made.command == (made.command[0], "-c", 'echo "$1"; cat', "name") and made.command[0].endswith("/sh")
    (tmp_path / "page").write_text("#!/bin/sh\n")
    (tmp_path / "page").chmod(0o700)
    monkeypatch.chdir(tmp_path)
    found = Reaction.of(Settings.of(on_incident=["./page", "a b"]))
    assert found is not None and found.command == (str(tmp_path / "page"), "a b")
    with pytest.raises(ConfigurationError, match="no-such-command' is no command that can be run"):
        Reaction.of(Settings.of(on_incident="no-such-command"))
    with pytest.raises(ConfigurationError, match="on_incident: No closing quotation"):
        Settings.of(on_incident="echo 'x")


def test_what_the_agent_was_given_for_itself_is_taken_back(tmp_path: Path, rank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(REPLACED, json.dumps({"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": None}))
    reaction, noted = noting(tmp_path)
    reaction.to(incident(), synthetic.info(), rank)
    environment = json.loads(wait_for(noted.read_text))["environment"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert "OMP_NUM_THREADS" not in environment and REPLACED not in environment


def test_a_flight_names_no_command(runtime_folder: Path, tmp_path: Path) -> None:
    """What stands in a run's folder, wherever it came from, is never run."""
    assert not {"on_incident", "command_on_incident"} & set(synthetic.info().__dataclass_fields__)
    for damage in (None, [], {"command": 5}, {"command": ["x"], "timeout": "soon", "working_directory": "/"}):
        assert Reaction.of_json(damage) is None


def test_the_agent_reacts_to_what_it_concludes_and_a_second_one_does_not_again(runtime_folder: Path, tmp_path: Path) -> None:
    reaction, noted = noting(tmp_path)
    writer = Writer(tmp_path / "runs")
    runtime.register(writer.folder, {"command": reaction.command, "timeout": 30.0, "working_directory": str(tmp_path)})
    writer.step()
    roster = Roster(runtime_folder, "0", 1000.0)
    poll(roster)
    writer.die()
    poll(roster)
    assert json.loads(wait_for(noted.read_text))["incident"]["id"] == "killed-0"
    noted.unlink()
    poll(Roster(runtime_folder, "0", 1000.0))
    time.sleep(0.5)
    assert not noted.exists()


TRAINING = """
import os, signal, sys, time
import torch, resmon
from torch import nn
from tests.capture import models

model = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = resmon.watch(model, optimizer, run="r", directory=sys.argv[1], on_incident=sys.argv[3:])
for i in range(3):
    optimizer.zero_grad()
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
if sys.argv[2] == "raise":
    raise ValueError("boom")
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("how", "agent", "kind"), [("raise", "off", "failed"), ("term", "auto", "interrupted")])
def test_from_a_training_script(how: str, agent: str, kind: str, house: House, port: int, tmp_path: Path) -> None:
    """An exception is reacted to by the process itself; a signal by the agent, which writes that incident."""
    if agent == "auto":
        house.agent(port)
        house.ready(port)
    reaction, noted = noting(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESMON_AGENT": agent, "RESMON_LISTEN": f"127.0.0.1:{port}"}
    command = ["-c", textwrap.dedent(TRAINING), str(tmp_path / "runs"), how, *reaction.command]
    result = forkserver.run(*command, env=environment, timeout=60, cwd=tmp_path)
    assert result.returncode == (1 if how == "raise" else -signal.SIGTERM), result.stderr
    given = json.loads(wait_for(noted.read_text))
    assert (given["incident"]["kind"], given["environment"]["RESMON_INCIDENT"]) == (kind, kind)
    folder = rank_folder(house, "r")
    assert len((folder / layout.REACTIONS).read_text().splitlines()) == 1
