"""`watch` as a training script uses it: the run's folder, its end mark, and what cannot be used."""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import resmon
from resmon.capture.host.compiler import Compiler
from resmon.flight import endings, stalls
from resmon.flight.layout import STOPPED
from resmon.flight.reader import Follower
from resmon.flight.summary import summaries, summary
from resmon.records import StepRecord
from resmon.terminal.tail import Tail, show
from tests import forkserver
from tests.capture import models

LOOP = """
import os, signal, sys
import torch, resmon
from tests.capture import models

model = models.mixed()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = resmon.watch(model, optimizer, run="r", directory=sys.argv[1], agent="off")

def step(i):
    optimizer.zero_grad()
    loss = model(models.images(4, seed=i)).square().mean()
    loss.backward()
    optimizer.step()
    monitor.log(loss=loss)
"""


def run(script: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return forkserver.run("-c", LOOP + textwrap.dedent(script), directory, env=os.environ | environment)


def end_of(directory: Path, attempt: int = 1) -> dict[str, object] | None:
    path = directory / "r" / f"attempt-{attempt:04d}" / "rank-00000" / "end.json"
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("script", "outcome", "reason"),
    [
        ("step(0); step(1); monitor.close()", "finished", ""),
        ("step(0); step(1)", "finished", ""),
        ("step(0); step(1); sys.exit(0)", "finished", ""),
        ("step(0); step(1); raise ValueError('boom')", "failed", "ValueError: boom"),
        ("step(0); step(1)\nwith monitor: raise ValueError('boom')", "failed", "ValueError: boom"),
        ("step(0); step(1)\ntry:\n  with monitor: raise ValueError('boom')\nexcept ValueError: pass", "failed", "ValueError: boom"),
        ("step(0); step(1)\nwith monitor: sys.exit(3)", "failed", "SystemExit: 3"),
        ("step(0); step(1); raise KeyboardInterrupt", "interrupted", "KeyboardInterrupt: "),
        ("step(0); step(1); os.kill(os.getpid(), signal.SIGKILL)", None, None),
    ],
)
def test_the_end_mark(script: str, outcome: str | None, reason: str | None, tmp_path: Path) -> None:
    run(script, tmp_path)
    end = end_of(tmp_path)
    if outcome is None:
        assert end is None
        assert resmon.load(tmp_path / "r").outcome == "killed"
    else:
        assert end is not None
        assert (end["outcome"], end["reason"], end["step"]) == (outcome, reason, 1)
    steps = resmon.load(tmp_path / "r").steps()
    assert steps["step"].tolist() == [0, 1]
    assert steps["loss"].notna().all()


def test_the_failing_step_is_written(tmp_path: Path) -> None:
    result = run("step(0)\nloss = model(models.images(4)).sum()\nmodel(torch.zeros(1, 5, 8, 8))", tmp_path)
    assert "RuntimeError" in result.stderr
    flight = resmon.load(tmp_path / "r")
    steps = flight.steps()
    assert steps["step"].tolist() == [0, 1]
    assert steps["complete"].tolist() == [True, False]
    failing = flight.blocks().query("step == 1")
    assert failing["skip_rms"].notna().all()
    assert failing["gradient_norm"].isna().all()


@pytest.mark.slow
def test_killed_at_random_moments_at_most_the_step_under_way_is_missing(tmp_path: Path) -> None:
    """The child says each step that is over; whatever it said must be on file, however it dies."""
    script = LOOP + textwrap.dedent("""
        import itertools
        for i in itertools.count():
            step(i)
            os.write(1, b"%d\\n" % i)
    """)
    generator = torch.Generator().manual_seed(0)
    for attempt in range(1, 11):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        said = int(process.stdout.readline())
        time.sleep(float(torch.rand((), generator=generator)) * 0.5)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")[:-1]
        process.wait()
        said = int(rest[-1]) if rest else said
        flight = resmon.load(tmp_path / "r", attempt=attempt)
        steps = flight.steps()["step"].tolist()
        assert steps == list(range(len(steps)))
        assert said <= steps[-1] <= said + 1
        assert flight.outcome == "killed"
        assert not flight.skipped or len(flight.skipped) == 1  # the row under way
        assert flight.blocks()["block"].nunique() == 8


def test_values_read_back_are_those_of_the_operands(tmp_path: Path) -> None:
    model = models.mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = []
    with resmon.watch(model, optimizer, run="values", directory=tmp_path, agent="off") as monitor:
        assert monitor.sites == ()
        for i in range(5):
            optimizer.zero_grad()
            model(models.images(4, seed=i)).square().mean().backward()
            optimizer.step()
            expected.append(models.kept(model))
        names = [site.name for site in monitor.sites]
    blocks = resmon.load(monitor.directory).blocks()
    assert blocks["block"].tolist() == names * 5
    flat = [pair for operands in expected for pair in operands]
    for column, pick in (("skip_rms", 0), ("branch_rms", 1)):
        reference = [pair[pick].double().square().mean().sqrt().item() for pair in flat]
        assert blocks[column].tolist() == pytest.approx(reference, rel=1e-5)
    assert blocks["branch_skip_ratio"].tolist() == pytest.approx((blocks["branch_rms"] / blocks["skip_rms"]).tolist())


def test_a_second_monitor_closes_the_first(tmp_path: Path) -> None:
    model = models.mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first = resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off")
    model(models.images()).sum().backward()
    optimizer.step()
    second = resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off")
    assert end_of(tmp_path, 1) is not None
    for _ in range(3):
        model(models.images()).sum().backward()
        optimizer.step()
    first.log(loss=1.0)
    first.step()
    first.close()
    second.close()
    second.close()
    assert len(resmon.load(tmp_path / "r", attempt=1).steps()) == 1
    assert len(resmon.load(tmp_path / "r", attempt=2).steps()) == 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_run_whose_monitor_was_forgotten_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_ = []
    for told in (False, True):
        model, optimizer = small()  # as a function does that is called again and again
        open_.append(resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off"))
        assert ("another monitor of the run 'r' is open in this process" in caplog.text) == told
    caplog.clear()
    for monitor in open_:
        monitor.close()
    model, optimizer = small()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off"):
        other, of_other = small()
        with resmon.watch(other, of_other, run="s", directory=tmp_path, agent="off"):
            pass
    assert not caplog.text


@pytest.mark.parametrize(
    "name", ["a/b", "../../etc", "line\nbreak", "x" * 10_000, "ünïcode ☃", ".", "-rf", 'quo"te\\', "attempt-0001", "rank-00000"]
)
def test_any_run_name_is_kept_and_stays_in_the_directory(name: str, tmp_path: Path) -> None:
    monitor = resmon.watch(nn.Linear(2, 2), run=name, directory=tmp_path, agent="off")
    monitor.close()
    assert monitor.directory.parent == tmp_path
    assert resmon.load(monitor.directory).info["run"] == name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"listen": "nowhere"}, "HOST:PORT"),
        ({"start_step": -1}, "start_step"),
        ({"no_such_setting": 1}, "no_such_setting: there is no such setting"),
        ({"exlude": "head"}, "argument exlude: there is no such setting; the nearest is exclude"),
        ({"budget": 5}, "budget"),
        ({"run": ""}, "argument run: should have at least 1 character"),
    ],
)
def test_settings_that_cannot_be_used_leave_nothing_behind(arguments: dict[str, object], says: str, tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(resmon.ConfigurationError, match=says):
        resmon.watch(model, directory=tmp_path / "runs", **{"agent": "off", **arguments})  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()
    assert not model._forward_pre_hooks


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    model = nn.Linear(2, 2)
    with pytest.raises(resmon.ConfigurationError, match="directory="):
        resmon.watch(model, run="r", directory=file / "runs", agent="off")
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("room", [0, 200, 4096])
@pytest.mark.parametrize("before", [False, True])
def test_a_watch_that_finds_no_room_leaves_no_run_behind(room: int, before: bool, tmp_path: Path) -> None:
    if before:
        resmon.watch(nn.Linear(2, 2), run="r", directory=tmp_path, agent="off").close()
    there = sorted(tmp_path.rglob("*"))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))  # for a disk that is nearly full
    try:
        with pytest.raises(resmon.ConfigurationError, match="that has room"):
            resmon.watch(nn.Linear(2, 2), run="r", directory=tmp_path, agent="off")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert sorted(tmp_path.rglob("*")) == (there or list(tmp_path.glob("r")))
    assert len(summaries(tmp_path)) == before
    monitor = resmon.watch(nn.Linear(2, 2), run="r", directory=tmp_path, agent="off")
    monitor.close()
    assert resmon.load(monitor.directory).attempt == 1 + before


def test_an_interrupt_in_the_middle_of_a_pass_leaves_no_mode_behind(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), models.FunctionalDropout(8), models.TwoAdds(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off") as monitor:
        for when in (0, 3):
            for i in range(5):
                handle = model[1].fc2.register_forward_hook(interrupt) if i == when else None
                try:
                    model(torch.randn(4, 8)).sum().backward()
                except KeyboardInterrupt:
                    pass
                optimizer.step()
                if handle is not None:
                    handle.remove()
        interrupted = model[1].fc2.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(torch.randn(4, 8))
        interrupted.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert len(monitor.sites) == 3
    blocks = resmon.load(tmp_path / "r").blocks().query("step == 9")
    assert blocks["skip_rms"].notna().all()


def test_a_watch_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def boom(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Compiler, "attach", boom)
    with pytest.raises(KeyboardInterrupt):
        resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks  # type: ignore[attr-defined]
    end = end_of(tmp_path)
    assert end is not None and end["outcome"] == "failed"


def test_a_monitor_that_is_closed_holds_the_model_no_more(tmp_path: Path) -> None:
    model = models.mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off")
    for i in range(2):
        model(models.images(4, seed=i)).square().mean().backward()
        optimizer.step()
    sites = monitor.sites
    monitor.close()
    reference = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert reference() is None
    assert monitor.sites == sites and sites
    assert monitor.last_step == 1
    monitor.log(loss=1.0)
    monitor.step()
    monitor.checkpoint("later.pt")
    monitor.close()


def test_environment_and_file_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resmon.toml").write_text('run = "file"\nagent = "off"\ndirectory = "from-file"\n')
    monitor = resmon.watch(nn.Linear(2, 2))
    monitor.close()
    assert monitor.directory == tmp_path / "from-file" / "file"
    monkeypatch.setenv("RESMON_RUN", "environment")
    monitor = resmon.watch(nn.Linear(2, 2))
    monitor.close()
    assert monitor.directory == tmp_path / "from-file" / "environment"
    monitor = resmon.watch(nn.Linear(2, 2), run="argument")
    monitor.close()
    assert monitor.directory == tmp_path / "from-file" / "argument"


def test_patterns_come_from_the_environment_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESMON_EXCLUDE", "2, head.*")
    model = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8), models.TwoAdds(8))
    with resmon.watch(model, run="r", directory=tmp_path, agent="off") as monitor:
        model(torch.randn(4, 8)).sum().backward()
        monitor.step()
        assert {site.module for site in monitor.sites} == {"1"}


def test_what_is_written_is_the_users_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        monitor = resmon.watch(nn.Linear(2, 2), run="r", directory=tmp_path / "runs", agent="off")
        monitor.close()
    finally:
        os.umask(previous)
    for path in (tmp_path / "runs").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def loop(monitor: resmon.Monitor, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, **scalars: float) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        monitor.log(**scalars)


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(8, 8), models.TwoAdds(8))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def test_what_can_be_recorded_no_more_is_not_called_stalled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = small()
    monitor = resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off", stall_after=0.01)
    rank = monitor.directory / "attempt-0001" / "rank-00000"
    loop(monitor, model, optimizer, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((rank / "steps-000000000000.arrow").stat().st_size + 100, hard))
    try:
        loop(monitor, model, optimizer, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "recording stops, training goes on" in caplog.text
    assert (mark := Follower(rank).stopped) is not None and mark.step == 2
    follower = Follower(rank, newest=True)
    newest = next(item for item in reversed(follower.poll()) if isinstance(item, StepRecord))
    time.sleep(stalls.patience(follower.info, newest) * 1.1)
    assert endings.of_attempt(rank.parent) == []
    line = summary(rank.parent)
    assert (line.outcome, line.steps) == ("running", 3)
    assert line.incident == f"Recording stopped after step 2: {os.strerror(errno.EFBIG)}."
    console = Console(file=io.StringIO(), width=100)
    show(console, Tail(rank.parent), once=True)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "running" in shown and "Recording stopped after step 2" in shown
    monitor.close()
    assert summary(rank.parent).outcome == "finished"
    assert summary(rank.parent).incident == line.incident


def test_a_run_that_is_recorded_to_its_end_has_no_mark_that_it_is_not(tmp_path: Path) -> None:
    model, optimizer = small()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off") as monitor:
        loop(monitor, model, optimizer, 2)
    assert not [path.name for path in monitor.directory.rglob("*") if STOPPED in path.name]


def test_targets_are_noted_once_with_the_seconds_and_steps_until_then(tmp_path: Path) -> None:
    model, optimizer = small()
    targets = ("accuracy >= 0.9", "loss<=0.5", "accuracy >= 0.99")
    begun = time.monotonic()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off", start_step=100, targets=targets) as monitor:
        loop(monitor, model, optimizer, 3, accuracy=0.5, loss=float("-inf"))
        loop(monitor, model, optimizer, 1, accuracy=float("inf"), loss=float("nan"))
        time.sleep(0.2)
        loop(monitor, model, optimizer, 2, accuracy=0.9, loss=0.6)
        loop(monitor, model, optimizer, 1, accuracy=0.1, loss=0.5)
        loop(monitor, model, optimizer, 5, accuracy=0.95, loss=0.1)
    passed = time.monotonic() - begun
    flight = resmon.load(tmp_path / "r")
    assert flight.info["targets"] == ("accuracy >= 0.9", "loss <= 0.5", "accuracy >= 0.99")
    frame = flight.targets()
    assert frame["target"].tolist() == list(flight.info["targets"])
    assert frame["score"].tolist() == ["accuracy", "loss", "accuracy"]
    assert frame["reached"].tolist() == [True, True, False]
    assert frame["step"].tolist()[:2] == [104, 106] and frame["steps"].tolist()[:2] == [5, 7]
    assert frame.iloc[2][["step", "time", "seconds", "steps"]].isna().all()
    first, second = frame["seconds"].tolist()[:2]
    assert 0.2 <= first <= second <= passed
    logged = flight.scalars().query("name == 'accuracy' and step == 104")["time"].iloc[0]
    assert frame["time"].iloc[0] == logged


def test_a_clock_that_is_set_back_gives_no_negative_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = small()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off", targets="accuracy >= 0.9") as monitor:
        loop(monitor, model, optimizer, 2, accuracy=0.5)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 7200)
        loop(monitor, model, optimizer, 1, accuracy=0.9)
        monkeypatch.undo()
    flight = resmon.load(tmp_path / "r")
    assert flight.steps()["time"].diff().min().total_seconds() < -7000  # the clock did jump
    assert flight.steps()["duration"].dropna().min() > 0
    assert 0 < flight.targets()["seconds"].iloc[0] < 60


def test_targets_that_cannot_be_read_are_named_before_anything_happens(tmp_path: Path) -> None:
    model, optimizer = small()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off") as monitor:
        with pytest.raises(resmon.ConfigurationError, match=r"(?s)'accuracy > 1' must be NAME >= NUMBER"):
            resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off", targets=("accuracy > 1", "loss <= 1", "x"))
        loop(monitor, model, optimizer, 1, loss=1.0)  # the monitor before goes on
    assert resmon.load(tmp_path / "r").info["attempts"] == (1,)
    assert len(resmon.load(tmp_path / "r").scalars()) == 1


def test_a_resumed_run_has_its_targets_before_it_again(tmp_path: Path) -> None:
    for start, accuracy in ((0, 0.9), (4, 0.1)):  # the second begins before the first one's end
        model, optimizer = small()
        with resmon.watch(
            model, optimizer, run="r", directory=tmp_path, agent="off", start_step=start, targets="accuracy >= 0.9"
        ) as monitor:
            loop(monitor, model, optimizer, 6, accuracy=accuracy)
    assert resmon.load(tmp_path / "r").steps()["step"].tolist() == [4, 5, 6, 7, 8, 9]
    assert resmon.load(tmp_path / "r").targets()["reached"].tolist() == [False]
    assert resmon.load(tmp_path / "r", attempt=1).targets()["step"].tolist() == [0]


def test_checkpoints_are_named_with_the_step_whose_weights_they_hold(tmp_path: Path) -> None:
    model, optimizer = small()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off") as monitor:
        monitor.checkpoint("begin.pt")
        loop(monitor, model, optimizer, 3, loss=1.0)
        monitor.checkpoint(Path("a") / "b.pt")
        model(torch.ones(2, 8)).sum().backward()  # the next step is under way, and not in the weights
        monitor.checkpoint("s3://bucket/ünï 1.pt")
        optimizer.step()
        monitor.checkpoint(b"bytes\xff")
    flight = resmon.load(tmp_path / "r")
    frame = flight.checkpoints()
    assert frame["path"].tolist() == ["begin.pt", "a/b.pt", "s3://bucket/ünï 1.pt", "bytes?"]
    assert frame["step"].isna().tolist() == [True, False, False, False]
    assert frame["step"].tolist()[1:] == [2, 2, 3]
    assert frame["rank"].tolist() == [0] * 4
    assert frame["time"].is_monotonic_increasing
    assert not flight.skipped


def test_checkpoints_that_cannot_be_noted_never_reach_the_loop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        def __fspath__(self) -> str:
            raise RuntimeError("odd")

        def __repr__(self) -> str:
            raise RuntimeError("odder")

    model, optimizer = small()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off") as monitor:
        for bad in (3, None, "", [], object(), Odd(), "x" * 100_000, {"model": 1}):
            monitor.checkpoint(bad)  # type: ignore[arg-type]
        (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]  # once, of eight
        assert "a checkpoint was ignored" in message and "not int; pass the path or URL" in message
        caplog.clear()
        shutil.rmtree(tmp_path / "r")
        monitor.checkpoint("a.pt")
        monitor.checkpoint("b.pt")
        (message,) = [record.getMessage() for record in caplog.records]
        assert "a checkpoint could not be noted" in message
    monitor.checkpoint("closed.pt")
    assert not list(tmp_path.rglob("checkpoints.jsonl"))


def test_an_end_that_cannot_be_written_says_what_that_means_and_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = small()
    monitor = resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off")
    shutil.rmtree(tmp_path / "r")
    monitor.close()
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "could not be written whole ([Errno 2] No such file" in message
    assert "may be told as killed. See that its folder is there and can be written before the next run begins" in message


def test_what_comes_without_a_name_or_after_the_end_is_told_once_and_never_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = small()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off") as monitor:
        loop(monitor, model, optimizer, 1, loss=1.0)
        for _ in range(2):
            monitor.log({"loss": 3.0}, accuracy=0.5)
        (message,) = [record.getMessage() for record in caplog.records]
        assert "write log(loss=loss), or log(**numbers)" in message
        monitor.log(self=4.0)
    steps = resmon.load(monitor.directory).steps()
    assert (steps["loss"][0], steps["accuracy"][0], steps["self"][0]) == (1.0, 0.5, 4.0)
    caplog.clear()
    for _ in range(2):
        monitor.log(loss=2.0)
        monitor.step()
        monitor.checkpoint("a.pt")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "this monitor is closed, so nothing more is recorded: call resmon.watch again" in message
    assert resmon.load(monitor.directory).steps()["loss"].tolist() == [1.0]


def test_a_forked_child_names_no_checkpoint(tmp_path: Path) -> None:
    model, optimizer = small()
    with resmon.watch(model, optimizer, run="r", directory=tmp_path, agent="off") as monitor:
        loop(monitor, model, optimizer, 1, loss=1.0)
        child = os.fork()
        if child == 0:
            monitor.checkpoint("child.pt")
            os._exit(0)
        os.waitpid(child, 0)
        monitor.checkpoint("parent.pt")
    assert resmon.load(tmp_path / "r").checkpoints()["path"].tolist() == ["parent.pt"]
