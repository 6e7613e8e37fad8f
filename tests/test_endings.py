"""Every way in which a watched script can end, really done, and what stands on file after it."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import resmon
from tests import forkserver

ROOT = Path(__file__).parent.parent

# In the case's process: `step(i)` trains a step, `monitor` watches.
BEGIN = """
import os, signal, sys, threading, time
import torch, resmon
from torch import nn
from tests.capture import models

case, folder = sys.argv[1:]

def watch(**more):
    global model, optimizer, monitor
    model = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8), models.TwoAdds(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = resmon.watch(model, optimizer, run=case, directory=folder, agent="off", **more)

def step(i):
    optimizer.zero_grad()
    loss = model(torch.ones(2, 8)).square().mean()
    loss.backward()
    optimizer.step()
    monitor.log(loss=loss)

watch(); step(0); step(1)
"""


@dataclass(frozen=True)
class Case:
    script: str
    status: int  # as a shell's: of a signal its number with a minus
    outcome: str
    reason: str = ""
    incident: str = ""  # in its summary; none where empty
    mark: bool = True  # whether the process itself left one


CASES = {
    "close": Case("monitor.close()", 0, "finished"),
    "nothing": Case("pass", 0, "finished"),
    "exit-0": Case("sys.exit()", 0, "finished"),
    "exit-3": Case("sys.exit(3)", 3, "failed", "exit status 3", "The process left with exit status 3 after step 1"),
    "raise-exit": Case("raise SystemExit(4)", 4, "failed", "exit status 4", "exit status 4 after step 1"),
    "exit-text": Case("sys.exit('no data')", 1, "failed", "exit status 1", "exit status 1"),
    "exit-143": Case("sys.exit(143)", 143, "interrupted", "SIGTERM", "SIGTERM ended the run after step 1"),
    "raise": Case("raise ValueError('boom')", 1, "failed", "ValueError: boom", "ValueError: boom, at <string>:{line}"),
    "with-exit": Case("with monitor: sys.exit(3)", 3, "failed", "SystemExit: 3", "SystemExit: 3"),
    "with-caught": Case(
        """
        with monitor:
            try:
                raise ValueError('boom')
            except ValueError:
                sys.exit(1)
        """,
        1,
        "failed",
        "ValueError: boom",
        "ValueError: boom",
    ),
    "finally": Case(
        """
        try:
            raise ValueError('boom')
        finally:
            monitor.close()
        """,
        1,
        "failed",
        "ValueError: boom",
        "ValueError: boom",
    ),
    "because": Case(
        """
        monitor.close()
        try:
            import no_such_package
        except ImportError:
            watch()
            step(0); step(1)
            monitor.close()
        """,
        0,
        "finished",
    ),
    "in-thread": Case(
        """
        def train():
            step(2)
            raise ValueError('boom')
        thread = threading.Thread(target=train, name="trainer")
        thread.start()
        thread.join()
        """,
        0,
        "failed",
        "ValueError: boom in thread trainer",
        "ValueError: boom",
    ),
    "other-thread": Case(
        """
        def feed():
            raise ValueError('no more')
        thread = threading.Thread(target=feed, name="feeder")
        thread.start()
        thread.join()
        sys.exit(1)
        """,
        1,
        "failed",
        "exit status 1 after ValueError: no more in thread feeder",
        "exit status 1 after ValueError: no more in thread feeder",
    ),
    "other-thread-no-matter": Case(
        """
        def feed():
            raise ValueError('no more')
        thread = threading.Thread(target=feed)
        thread.start()
        thread.join()
        step(2)
        """,
        0,
        "finished",
    ),
    "os-exit": Case("os._exit(2)", 2, "killed", "", "The process was killed after step 1 without a word", mark=False),
    "sigkill": Case("os.kill(os.getpid(), signal.SIGKILL)", -9, "killed", "", "killed after step 1", mark=False),
    "sigterm": Case("os.kill(os.getpid(), signal.SIGTERM)", -15, "interrupted", "SIGTERM", "SIGTERM ended the run after step 1"),
    "sigterm-in-step": Case(
        """
        model[1].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        step(2)
        """,
        -15,
        "interrupted",
        "SIGTERM",
        "SIGTERM ended the run after step 1",
    ),
    "sigterm-exit": Case(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        0,
        "finished",  # the handler came after watch, and the script says that all is well
    ),
    "sigterm-later": Case(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        for i in range(2, 40):
            step(i)
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        0,
        "interrupted",
        "SIGTERM",
        "SIGTERM ended the run after step 39",
    ),
    "sigterm-before": Case(
        """
        monitor.close()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        watch()
        step(0); step(1)
        os.kill(os.getpid(), signal.SIGTERM)
        """,
        0,
        "interrupted",
        "SIGTERM",
        "SIGTERM ended the run after step 1",
    ),
    "sigterm-flag": Case(
        """
        monitor.close()
        told = []
        signal.signal(signal.SIGTERM, lambda *_: told.append(1))
        watch()
        for i in range(100):
            step(i)
            if i == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if told:
                break
        monitor.checkpoint("last.pt")
        monitor.close()
        """,
        0,
        "interrupted",
        "SIGTERM",
        "SIGTERM ended the run after step 1",
    ),
    "sigint": Case(
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -2, "interrupted", "KeyboardInterrupt: ", "SIGINT ended the run"
    ),
    "segfault": Case("import ctypes; ctypes.string_at(0)", -11, "killed", "SIGSEGV", "crashed with SIGSEGV after step 1"),
    "abort": Case("os.abort()", -6, "killed", "SIGABRT", "crashed with SIGABRT after step 1"),
}


def ended(name: str, folder: Path) -> int:
    """The status that the case's script left with; its run is in the folder, under the case's name."""
    script = BEGIN + textwrap.dedent(CASES[name].script)
    return forkserver.run("-c", script, name, folder, cwd=folder).returncode


@pytest.mark.parametrize("name", CASES)
def test_how_it_ended(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    assert ended(name, tmp_path) == case.status, "the script ended in another way than it does without resmon"
    flight = resmon.load(tmp_path / name)
    assert flight.outcome == case.outcome
    end = flight.ends.get(0)
    assert (end is not None) == case.mark
    if end is not None:
        assert (end.outcome, end.reason) == (case.outcome, case.reason)
        assert end.step == flight.steps()["step"].max() or "in-step" in name
    found = flight.incidents()
    assert len(found) == bool(case.incident), found["summary"].tolist()
    if case.incident:
        assert case.incident.format(line=BEGIN.count("\n") + 1) in found["summary"][0]
        assert found["kind"][0] == case.outcome
    complete = flight.steps().query("complete")
    assert complete["step"].tolist()[:2] == [0, 1] and complete["loss"].notna().all()


def test_the_last_checkpoint_is_named_also_where_it_is_of_the_last_step(tmp_path: Path) -> None:
    ended("sigterm-flag", tmp_path)
    (found,) = resmon.load(tmp_path / "sigterm-flag").incidents().to_dict("records")
    assert (found["checkpoint"], found["checkpoint_step"]) == ("last.pt", 1)


MEMBER = """
import os, signal, sys, time
import torch, resmon
from torch import nn
from tests.capture import models

def train(rank, folder, how, run="r"):
    model = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    resmon.watch(model, optimizer, run=run, directory=folder, agent="off")
    for i in range(10_000 if how in ("kill", "raise") else 3):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        if i == 3 and how in ("kill", "raise"):
            torch.distributed.barrier()  # all have begun
        if rank == 1 and i == 4:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("boom of rank 1")
        time.sleep(0.01)
    if how == "child":
        raise ValueError("boom of a child")

if __name__ == "__main__":
    folder, how = sys.argv[1:]
    if how in ("fork", "spawn"):
        context = torch.multiprocessing.get_context(how)
        child = context.Process(target=train, args=(0, folder, "child", how))
        child.start()
        child.join()
    else:
        torch.distributed.init_process_group("gloo")
        train(torch.distributed.get_rank(), folder, how)
"""


def member(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "member.py").write_text(MEMBER)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return forkserver.run(*command, cwd=folder, env=environment)


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_an_exception_ends_a_child_of_multiprocessing(how: str, tmp_path: Path) -> None:
    result = member(tmp_path, "member.py", str(tmp_path), how)
    assert "boom of a child" in result.stderr
    flight = resmon.load(tmp_path / how)
    assert (flight.outcome, flight.ends[0].reason) == ("failed", "ValueError: boom of a child")
    assert "boom of a child" in flight.incidents()["summary"][0]


@pytest.mark.parametrize(("how", "outcome"), [("kill", "killed"), pytest.param("raise", "failed", marks=pytest.mark.slow)])
def test_under_torchrun_the_rank_that_broke_tells(how: str, outcome: str, tmp_path: Path) -> None:
    """The launcher ends the other rank by SIGTERM, which must not hide what happened first."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    result = member(tmp_path, *launcher, "member.py", str(tmp_path), how)
    assert result.returncode != 0
    flight = resmon.load(tmp_path / "r")
    assert flight.outcome == outcome
    found: list[dict[str, Any]] = flight.incidents().to_dict("records")
    assert {row["rank"]: row["kind"] for row in found} == {0: "interrupted", 1: outcome}
    assert flight.ends[0].reason == "SIGTERM"
    assert (1 in flight.ends) == (how == "raise")


def test_the_newest_signal_is_forgotten_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on for long after a signal that it took was not ended by it."""
    from resmon.capture.host import last_words

    taken: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: taken.append(number))
    try:
        end = tmp_path / "end"
        (tmp_path / "room").write_bytes(b"")
        words = last_words.LastWords(tmp_path / "room", end)
        os.kill(os.getpid(), signal.SIGHUP)
        assert (words.signal(), taken) == ("SIGHUP", [signal.SIGHUP])
        monkeypatch.setattr(last_words, "GRACE", -1.0)
        assert words.signal() is None
        words.end()
    finally:
        signal.signal(signal.SIGHUP, before)
