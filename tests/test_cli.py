"""The command as a person runs it: a process of its own, what it prints, its exit status."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rich.console import Console
from rich.text import Text

from resmon import __version__
from resmon.agent import runtime
from resmon.agent.runtime import Seat
from resmon.cli import GROUPS, VERBS, application, main
from resmon.commands.ls import _age
from resmon.commands.runs import find_run
from resmon.errors import FlightError
from resmon.flight.layout import boot_id, claim
from resmon.flight.summary import summaries
from resmon.flight.writer import FlightWriter
from resmon.page.address import address
from resmon.records import BLOCK_VALUES, Incident, RunEnd, ScalarRecord
from resmon.settings import Settings
from resmon.terminal.demo import _command
from resmon.terminal.tail import Tail, page_of
from resmon.terminal.view import frame
from tests.programs import program
from tests.synthetic import Training, info, sites
from tests.terminals import rest

ROOT = Path(__file__).parent.parent

MODELS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(width, width)
    def forward(self, x):
        return x + torch.relu(self.linear(x))

class Scaled(Block):
    def forward(self, x, *, scale):
        return x + scale * torch.relu(self.linear(x))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.blocks = nn.Sequential(Block(), Block())
    def forward(self, ids):
        return self.blocks(self.embedding(ids))

block = Block()
plain = nn.Linear(4, 4)
number = 3

class Fused(Block):
    def forward(self, x):
        return torch.addmm(x, torch.relu(self.linear(x)), self.linear.weight)

def make(): return Block(), (torch.randn(2, 4),)
def make_one(): return Block(), torch.randn(2, 4)
def make_scaled(): return Scaled(), (torch.randn(2, 4),), {"scale": 0.5}
def wrong(): return "a word"
def needs(width): return Block(width)
"""


def resmon(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; a pipe of 100 columns gets no escape sequence."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1", "RESMON_AGENT": "off"} | environment
    command = [sys.executable, "-m", "resmon", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A project with models in the current directory; imports of it are forgotten afterwards."""
    (tmp_path / "mymodels.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setenv("COLUMNS", "100")
    yield
    sys.modules.pop("mymodels", None)


def here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process, where torch is imported already; its exit status."""
    monkeypatch.setattr(sys, "argv", ["resmon", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_help_lists_every_verb(tmp_path: Path) -> None:
    result = resmon("--help", cwd=tmp_path)
    assert result.returncode == 0
    for name, function in VERBS:
        assert f" {name} " in result.stdout
        assert function.__doc__


def test_what_help_says_reaches_the_reader_as_it_is_written() -> None:
    """Square brackets are patterns of names here, and markup to whoever prints them."""

    def texts(command: Any) -> Iterator[str]:
        yield command.help or ""
        yield from (getattr(parameter, "help", "") or "" for parameter in command.params)
        for verb in getattr(command, "commands", {}).values():
            yield from texts(verb)

    said = list(texts(typer.main.get_command(application())))
    assert len(said) > 100
    assert [text for text in said if Text.from_markup(text).plain != text.replace("\\[", "[")] == []


def test_the_version(tmp_path: Path) -> None:
    assert resmon("--version", cwd=tmp_path).stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("mymodels:make", []),
        ("mymodels:make_one", []),
        ("mymodels:make_scaled", []),
        ("mymodels:Block", ["--input", "2,4"]),
        ("mymodels:block", ["-i", "2,4"]),
    ],
)
@pytest.mark.usefixtures("models")
def test_inspect_shows_a_model_however_it_is_named(
    target: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(monkeypatch, "inspect", target, *options) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split()[1:] == ["identity", "linear", "–", "2×4", "20", "hooks"]
    assert "1 residual block" in shown


@pytest.mark.usefixtures("models")
def test_inspect_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(monkeypatch, "inspect", "mymodels:Tokens", "--input", "int:2,5:11", "--json") == 0
    sites = json.loads(capsys.readouterr().out)
    assert [site["name"] for site in sites] == ["blocks.0", "blocks.1"]
    assert [site["shape"] for site in sites] == [[2, 5, 4]] * 2
    assert [site["parameter_count"] for site in sites] == [20, 20]


@pytest.mark.usefixtures("models")
def test_inspect_tells_of_additions_that_are_not_observed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(monkeypatch, "inspect", "mymodels:Fused", "-i", "2,4", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == []
    assert "addmm in Fused adds a branch to a residual stream" in shown.err
    assert "resmon.residual_add(skip, branch)" in shown.err


@pytest.mark.usefixtures("models")
def test_inspect_says_that_a_plain_model_has_no_block(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(monkeypatch, "inspect", "mymodels:plain", "-i", "2,4") == 0
    assert "Linear has no residual block" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mymodels"], "names no model"),
        (["nowhere:make"], "'nowhere' cannot be imported"),
        (["./here/mymodels.py:make"], "is a file, and a module is named: here.mymodels:make"),
        (["mymodels:Blok"], "has no 'Blok'. It has these models: Block, Scaled, Tokens, Fused"),
        (["mymodels:needs"], "missing a required argument: 'width'"),
        (["mymodels:wrong"], "gives str; it must give a torch.nn.Module"),
        (["mymodels:number"], "gives int"),
        (["mymodels:Block"], "Not given: x"),
        (["mymodels:Block"], "-i 8,3,32,32"),
        (["mymodels:Block", "-i", "2,three"], "the input '2,three' cannot be read"),
        (["mymodels:Block", "-i", "int:2,4"], "int:SHAPE:LIMIT"),
        (["mymodels:Block", "-i", "2,5"], "the forward pass of Block failed with a float32 tensor [2, 5]"),
    ],
)
@pytest.mark.usefixtures("models")
def test_inspect_says_what_is_wrong_and_what_to_do(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(monkeypatch, "inspect", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("resmon: ") and message in printed.err
    assert not printed.out


def test_an_error_is_one_message_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "mymodels.py").write_text(MODELS)  # imported from the current directory
    result = resmon("inspect", "mymodels:wrong", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "resmon: mymodels:wrong gives str; it must give a torch.nn.Module, (module, args) or (module, args, kwargs).\n"
    )


@pytest.mark.parametrize(("seconds", "shown"), [(-1, "0 s"), (59, "59 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 d")])
def test_ages(seconds: float, shown: str) -> None:
    assert _age(seconds) == shown


def record(directory: Path, run: str, steps: int = 5, end: RunEnd | None = None, blocks: int = 3) -> FlightWriter:
    """A real flight, written by this process; without `end` it is still under way."""
    folder, attempt = claim(directory, run, "launch", 0)
    writer = FlightWriter(folder, info(run=run, attempt=attempt, started=time.time(), boot_id=boot_id()), 16 << 20)
    training = Training(sites(blocks), start=time.time() - steps * 0.25)
    writer.sites(training.sites)
    for step in range(steps):
        writer.step(training.step())
        writer.scalars(ScalarRecord(step, training.now, {"loss": 1.0 / (step + 1)}))
    if end is not None:
        writer.end(end)
    return writer


# Records without end, says when it has begun, and waits to be killed.
DOOMED = """
import sys, time
from pathlib import Path
from tests.test_cli import record
writer = record(Path(sys.argv[1]), "doomed")
print("recorded", flush=True)
time.sleep(600)
"""


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", DOOMED, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "recorded\n"
    yield process
    process.kill()
    process.communicate()


def test_ls_lists_runs_newest_last(tmp_path: Path) -> None:
    record(tmp_path, "one", 5, RunEnd("finished", time.time() - 1, 4))
    record(tmp_path, "two", 7, RunEnd("out_of_memory", time.time(), 6))
    record(tmp_path, "two", 3, RunEnd("interrupted", time.time(), 2))
    result = resmon("ls", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *lines, broke = result.stdout.splitlines()
    assert broke == "✖ two: A signal ended the run after step 2."
    head, *rows = [line.split() for line in lines]
    assert head == ["run", "attempt", "outcome", "steps", "loss", "blocks", "size", "age"]
    found = {row[0]: row[1:6] for row in rows}
    assert found == {"one": ["1", "finished", "5", "0.2", "3"], "two": ["2", "interrupted", "3", "0.3333", "3"]}
    (tmp_path / "elsewhere").mkdir()
    named = resmon("ls", "-d", str(tmp_path), cwd=tmp_path / "elsewhere")
    assert [line.split()[0] for line in named.stdout.splitlines()] == ["run", "one", "two", "✖"]


def test_ls_leaves_a_name_its_room_in_a_narrow_terminal_and_cuts_nothing_in_a_pipe(tmp_path: Path) -> None:
    names = [f"pretraining-of-the-large-model-with-seed-{i}" for i in range(3)]
    for name in names:
        record(tmp_path, name, 5, RunEnd("finished", time.time(), 4))
    for width in (20, 30, 40, 60, 80):
        lines = resmon("ls", str(tmp_path), cwd=tmp_path, COLUMNS=str(width)).stdout.splitlines()
        assert max(map(len, lines)) <= width
        assert lines[0].split()[:2] == ["run", "outcome"] or lines[0].split()[:3] == ["run", "attempt", "outcome"]
        assert all(line.startswith("pretrai") and "finished" in line for line in lines[1:]), lines
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    env.pop("COLUMNS", None)
    piped = subprocess.run([sys.executable, "-m", "resmon", "ls", tmp_path], env=env, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in piped.stdout.splitlines()] == ["run", *names]


def test_a_terminal_that_lacks_a_sign_shows_a_question_mark(tmp_path: Path) -> None:
    record(tmp_path, "one", 5, RunEnd("out_of_memory", time.time(), 4))
    for verb in (("ls",), ("tail", "one", "-d")):
        found = resmon(*verb, str(tmp_path), cwd=tmp_path, PYTHONIOENCODING="ascii")
        assert found.returncode == 0 and "? " in found.stdout, found.stderr


def test_output_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    record(tmp_path, "one", 5, RunEnd("finished", time.time(), 4))
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "resmon", "ls", str(tmp_path)]
        found = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert " ".join(found.stderr.split()).startswith("resmon: what it prints cannot be written: No space left on device. Free")


def test_a_name_is_shown_as_it_is_and_is_taken_as_a_name_or_as_its_folder(tmp_path: Path) -> None:
    name = "[red]a[/red] [x](http://e) <b>\x1b[31m"
    record(tmp_path, name, 5, RunEnd("finished", time.time(), 4))
    listed = resmon("ls", str(tmp_path), cwd=tmp_path).stdout
    assert "[red]a[/red]" in listed and "\x1b" not in listed
    (folder,) = (path.name for path in tmp_path.iterdir())
    for said in (name, folder):
        found = resmon("tail", said, "-d", str(tmp_path), cwd=tmp_path)
        assert found.returncode == 0 and "step 4" in found.stdout, found.stderr


def test_ls_and_tail_tell_running_from_killed(tmp_path: Path, doomed: subprocess.Popen[str]) -> None:
    assert summaries(tmp_path)[0].outcome == "running"
    assert "● running" in resmon("tail", "doomed", "--once", "-d", str(tmp_path), cwd=tmp_path).stdout
    doomed.kill()
    doomed.wait()
    assert summaries(tmp_path)[0].outcome == "killed"
    shown = resmon("tail", "doomed", "--once", "-d", str(tmp_path), cwd=tmp_path).stdout
    assert "■ killed" in shown and "step 4 " in shown and "left no end mark" in shown


def test_ls_and_tail_show_what_broke(tmp_path: Path) -> None:
    writer = record(tmp_path, "broken", 120)
    training = Training(sites(3), start=time.time())
    training.steps = 120
    for step in range(120, 130):
        writer.step(training.step(values={("gradient_square", 1): 1e6 * 10 ** (step - 120)}))
    writer.incident(
        Incident("nonfinite-129", "nonfinite", time.time(), 129, "h.1 made \x1b[31mNaN", block="h.1", advice="Look at its exp.")
    )
    writer.end(RunEnd("nonfinite", time.time(), 129, "NaN"))
    listed = resmon("ls", str(tmp_path), cwd=tmp_path).stdout
    assert "✖ broken: h.1 made \\x1b[31mNaN" in listed
    shown = resmon("tail", "broken", "-d", str(tmp_path), cwd=tmp_path).stdout
    assert "✖ nonfinite in block h.1: " in shown and "Look at its exp." in shown and "\x1b" not in shown
    assert "Before it: Block h.1's gradient norm left its usual range" in shown and "since step 120, 9 steps before" in shown


def test_ls_and_tail_tell_a_run_that_does_not_go_on(tmp_path: Path) -> None:
    """Its process lives, this one, and its last step is long ago."""
    folder, _ = claim(tmp_path, "stuck", "launch", 0)
    writer = FlightWriter(folder, info(run="stuck", boot_id=boot_id(), started=time.time() - 5000), 16 << 20)
    training = Training(sites(2))
    writer.sites(training.sites)
    writer.step(training.step(time=time.time() - 290))
    assert summaries(tmp_path)[0].outcome == "running"
    view = Tail(folder.parent).poll()
    assert view.record is not None and view.patience == 300
    for seconds, expected in ((299, "● running"), (301, "● stalled")):
        drawn = io.StringIO()
        Console(width=100, file=drawn).print(frame(view, 100, now=view.record.time + seconds))
        assert expected in drawn.getvalue()
    assert "no step for 0:05:01" in drawn.getvalue()
    writer.end(RunEnd("finished", time.time(), 0))
    folder, _ = claim(tmp_path, "longer", "launch", 0)
    writer = FlightWriter(folder, info(run="longer", boot_id=boot_id(), started=time.time() - 5000), 16 << 20)
    writer.sites(training.sites)
    writer.step(training.step(time=time.time() - 310))
    assert {row.name: row.outcome for row in summaries(tmp_path)} == {"stuck": "finished", "longer": "stalled"}
    assert "● stalled" in resmon("tail", "longer", "--once", "-d", str(tmp_path), cwd=tmp_path).stdout
    writer.end(RunEnd("finished", time.time(), 1))


def listen_to_interrupts() -> None:
    """A shell that starts the tests in the background has them, and their children, ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_tail_in_a_terminal_is_left_by_ctrl_c(tmp_path: Path, doomed: subprocess.Popen[str]) -> None:
    """In a real terminal: frames come, an interrupt ends it without a word, and the run goes on."""
    leader, follower = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "90", "LINES": "30", "TERM": "xterm"}
    command = [sys.executable, "-m", "resmon", "tail", "doomed", "-d", str(tmp_path)]
    process = subprocess.Popen(command, env=env, stdin=follower, stdout=follower, stderr=follower, preexec_fn=listen_to_interrupts)
    os.close(follower)
    shown = b""
    while shown.count("● running".encode()) < 3:
        shown += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    shown += rest(leader)
    assert process.wait(10) == 0
    assert b"Traceback" not in shown
    assert doomed.poll() is None


def test_a_terminal_that_cannot_be_drawn_over_gets_one_frame_at_once(tmp_path: Path, doomed: subprocess.Popen[str]) -> None:
    leader, follower = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    command = [sys.executable, "-m", "resmon", "tail", "doomed", "-d", str(tmp_path)]
    process = subprocess.Popen(command, env=env, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    late = threading.Timer(60, process.kill)
    late.start()
    shown = rest(leader)
    late.cancel()
    assert process.wait() == 0
    assert "● running" in shown.decode() and b"\x1b[" not in shown
    assert doomed.poll() is None


def test_tail_follows_a_live_run_until_it_ends(tmp_path: Path) -> None:
    folder, _ = claim(tmp_path, "live", "launch", 0)
    tail = Tail(folder.parent)
    assert tail.poll().info is None and isinstance(tail.error, FlightError)  # the rank has no info yet
    writer = FlightWriter(folder, info(run="live", boot_id=boot_id()), 16 << 20)
    training = Training(sites(2))
    writer.sites(training.sites)
    for step in range(3):
        writer.step(training.step())
        view = tail.poll()
        assert view.end is None and view.record is not None and view.record.step == step
    writer.step(training.step(forward=[1]))
    writer.end(RunEnd("failed", 2000.0, 3, "ValueError: that was it"))
    view = tail.poll()
    assert view.end is not None and view.end.outcome == "failed"
    assert [(finding.block, finding.state) for finding in view.findings.values()] == [("h.1", "closed")]


def test_a_run_whose_folder_is_removed_is_not_called_killed(tmp_path: Path) -> None:
    record(tmp_path, "gone")
    tail = Tail(find_run("gone", tmp_path))
    assert tail.poll().end is None
    shutil.rmtree(tmp_path / "gone")
    end = tail.poll().end
    assert end is not None and (end.outcome, end.reason) == ("unknown", "the run's folder was removed")


def test_tail_merges_the_ranks_of_one_step(tmp_path: Path) -> None:
    writers, trainings = [], []
    for rank in range(2):
        folder, _ = claim(tmp_path, "two-ranks", "launch", rank)
        writers.append(FlightWriter(folder, info(rank=rank, world_size=2), 16 << 20))
        trainings.append(Training(sites(2), seed=rank))
        writers[-1].sites(trainings[-1].sites)
    tail = Tail(folder.parent)
    records = [training.step() for training in trainings]
    writers[0].step(records[0])
    assert tail.poll().merged is None  # the other rank has not reached the step
    writers[1].step(records[1])
    merged = tail.poll().merged
    assert merged is not None
    gradient = BLOCK_VALUES.index("gradient_square")
    expected = np.sqrt(records[0].blocks[gradient] + records[1].blocks[gradient])
    np.testing.assert_allclose(merged.gauges["gradient_norm"].values, expected)
    for writer, outcome in zip(writers, ("finished", "failed"), strict=True):
        writer.end(RunEnd(outcome, 2000.0, 0))  # type: ignore[arg-type]
    end = tail.poll().end
    assert end is not None and end.outcome == "failed"


def test_tail_takes_a_name_a_folder_or_an_attempt(tmp_path: Path) -> None:
    for _ in range(2):
        record(tmp_path, "a/b\nc", end=RunEnd("finished", time.time(), 4))
    folder = next(path for path in tmp_path.iterdir())
    newest = folder / "attempt-0002"
    assert find_run("a/b\nc", tmp_path) == newest
    assert find_run(str(folder), Path("elsewhere")) == newest
    assert find_run(str(folder / "attempt-0001"), Path("elsewhere")) == folder / "attempt-0001"


def test_tail_shows_what_a_damaged_flight_still_holds(tmp_path: Path) -> None:
    record(tmp_path, "cut", 5, RunEnd("finished", time.time(), 4))
    segment = next(tmp_path.rglob("steps-*.arrow"))
    segment.write_bytes(segment.read_bytes()[:-100])
    shown = resmon("tail", "cut", "--once", "-d", str(tmp_path), cwd=tmp_path).stdout
    assert "step 3 " in shown and "cannot be read" not in shown  # what was written as it died is the step under way
    segment.write_bytes(segment.read_bytes()[:-30_000] + bytes(100) + segment.read_bytes()[-29_900:])
    shown = resmon("tail", "cut", "--once", "-d", str(tmp_path), cwd=tmp_path).stdout
    assert "step 3 " in shown
    assert f"A part of the flight cannot be read: {segment.name}," in shown and "damaged" in shown


def test_a_run_that_was_renamed_is_listed_with_the_name_that_finds_it(tmp_path: Path) -> None:
    record(tmp_path, "lr 0.1", 5, RunEnd("finished", time.time(), 4))
    shutil.copytree(next(tmp_path.iterdir()), tmp_path / "kept")
    (tmp_path / "around").symlink_to("around")
    rows = resmon("ls", str(tmp_path), cwd=tmp_path).stdout.splitlines()[1:]
    assert sorted(row.partition("  ")[0] for row in rows) == ["lr 0.1", "lr 0.1 (in kept)"]
    assert "step 4 " in resmon("tail", "kept", "-d", str(tmp_path), cwd=tmp_path).stdout


def test_what_this_user_may_not_read_is_told(tmp_path: Path) -> None:
    record(tmp_path / "runs", "theirs", 5, RunEnd("finished", time.time(), 4))
    record(tmp_path / "runs", "steps", 5, RunEnd("finished", time.time(), 4))
    for path in (tmp_path / "runs").glob("steps/**/*.arrow"):
        path.chmod(0)
    (tmp_path / "runs" / "theirs").chmod(0)

    def ask(*arguments: str) -> str:
        command = [sys.executable, "-m", "resmon", *arguments]
        if os.geteuid() == 0:  # which may read everything, unless it lets go of that right
            rights = "-dac_override,-dac_read_search"
            command = [program("setpriv"), "--bounding-set", rights, "--inh-caps", rights, *command]
        env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "NO_COLOR": "1"}
        found = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        return found.stdout + found.stderr

    try:
        listed = ask("ls")
        assert "steps: None of its steps can be read: steps-000000000000.arrow: cannot be opened: Permission denied" in listed
        assert "This user may not read runs/theirs" in listed
        assert "the run 'theirs' cannot be read. This user may not read runs/theirs" in ask("tail", "theirs")
        assert "there is no step to be shown" in (shown := ask("tail", "steps")) and "Permission denied" in shown
        (tmp_path / "runs").chmod(0)
        assert "no runs in runs. This user may not read runs" in ask("ls")
        assert "may not read" in ask("tail", "steps")
    finally:
        (tmp_path / "runs").chmod(0o700)
        (tmp_path / "runs" / "theirs").chmod(0o700)


SETTINGS_FILE = "# ours\nbudget = 3000000\nsample = 64  # fewer\n"


def test_settings_shows_where_each_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / "resmon.toml").write_text(SETTINGS_FILE)
    shown = resmon("settings", "run=digits", "targets=accuracy >= 0.95, loss <= 0.1", cwd=tmp_path, RESMON_BUDGET="2097152")
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if line and not line.startswith(" ")}
    assert rows.keys() >= Settings.model_fields.keys()
    assert re.search(r" 2097152 +RESMON_BUDGET +bytes that ", rows["budget"])
    assert re.search(r" 64 +resmon.toml, line 3 +elements ", rows["sample"])
    assert re.search(r" digits +argument +name of the run", rows["run"])
    assert re.search(r" off +RESMON_AGENT ", rows["agent"])
    assert re.search(r" – +default ", rows["other_ranks"])
    assert f"resmon.toml is {tmp_path / 'resmon.toml'}." in shown.stdout.replace("\n", "")
    assert "RESMON_RUNTIME_DIR, only in the environment: " in shown.stdout

    whole = json.loads(resmon("settings", "targets=accuracy >= 0.95, loss <= 0.1", "--json", cwd=tmp_path).stdout)
    assert whole["nits"] == []
    found = {row["name"]: row for row in whole["settings"]}
    assert list(found) == list(Settings.model_fields)
    assert found["targets"]["value"] == ["accuracy >= 0.95", "loss <= 0.1"]
    assert found["sample"] == {
        "name": "sample",
        "value": 64,
        "origin": {"kind": "file", "name": "sample", "path": str(tmp_path / "resmon.toml"), "line": 3},
        "description": Settings.model_fields["sample"].description,
    }


def test_settings_that_are_wrong_are_shown_and_all_named(tmp_path: Path) -> None:
    (tmp_path / "resmon.toml").write_text(SETTINGS_FILE + "bugdet = 3\n")
    wrong = {"RESMON_SAMPEL": "20", "RESMON_MAX_SERIES": "many"}
    result = resmon("settings", "agent=of", cwd=tmp_path, **wrong)
    assert result.returncode == 2
    assert re.search(r"sample +64 +resmon.toml, line 3 ", result.stdout)
    assert result.stderr.splitlines()[1:5] == [
        f"  {tmp_path / 'resmon.toml'}, line 4, bugdet: there is no such setting; the nearest is budget",
        "  RESMON_MAX_SERIES: should be a valid integer, unable to parse string as an integer (got 'many')",
        "  RESMON_SAMPEL: there is no such setting; the nearest is RESMON_SAMPLE",
        "  argument agent: should be 'auto', 'sidecar' or 'off' (got 'of')",
    ]
    as_json = resmon("settings", "agent=of", "--json", cwd=tmp_path, **wrong)
    assert as_json.returncode == 2
    nits = json.loads(as_json.stdout)["nits"]
    assert [nit["origin"]["name"] for nit in nits] == ["bugdet", "RESMON_MAX_SERIES", "RESMON_SAMPEL", "agent"]
    for verb in (["ls"], ["agent", "--max-series", "5"]):  # others that need settings refuse them likewise
        other = resmon(*verb, cwd=tmp_path, **wrong)
        assert other.returncode == 2 and "RESMON_SAMPEL: there is no such setting" in other.stderr
    assert "argument max_series: should be greater than or equal to 100 (got 5)" in other.stderr


def test_settings_of_a_stranger_do_not_steer_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "resmon.toml").write_text('run = "\\u001b[31mred [bold]"\n"\\u001b[2J" = 1\n')
    result = resmon("settings", cwd=tmp_path)
    assert result.returncode == 2
    assert "\x1b" not in result.stdout + result.stderr
    assert r"\x1b[31mred" in result.stdout and r"\x1b[2J: there is no such setting" in result.stderr


def test_settings_takes_names_and_values(tmp_path: Path) -> None:
    result = resmon("settings", "budget", cwd=tmp_path)
    assert result.returncode == 2 and "'budget' is no NAME=VALUE" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tail", "digitz"], "there is no run 'digitz' in runs. It holds digits."),
        (["tail", "digitz", "-d", "."], "there is no run 'digitz' in this folder. It holds no runs."),
        (["tail", "digits", "-d", "nowhere"], "there is no folder nowhere"),
        (["ls", "nowhere"], "there is no folder nowhere"),
        (["tail", "broken", "--once"], "info.json is missing or damaged"),
    ],
)
def test_what_is_not_there_is_said(arguments: list[str], message: str, tmp_path: Path) -> None:
    record(tmp_path / "runs", "digits", end=RunEnd("finished", time.time(), 4))
    if "broken" in arguments:
        record(tmp_path / "runs", "broken", end=RunEnd("finished", time.time(), 4))
        next(tmp_path.glob("runs/broken/*/*/info.json")).write_text("{")
        assert "unreadable" in resmon("ls", cwd=tmp_path).stdout
    result = resmon(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and message in " ".join(result.stderr.split())


def test_ls_of_no_runs_says_how_to_make_one(tmp_path: Path) -> None:
    result = resmon("ls", cwd=tmp_path)
    assert result.returncode == 0 and "no runs in runs" in result.stdout


def test_the_demonstration_names_the_python_that_has_resmon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, environment = tmp_path / "base", tmp_path / "environment"
    for folder in (base, environment):
        folder.mkdir()
        (folder / "python").symlink_to(sys.executable)  # as an environment's python links to the one that it was made with
    monkeypatch.setattr(sys, "executable", str(environment / "python"))
    monkeypatch.setenv("PATH", str(base))
    assert _command("python") == [str(environment / "python")]
    monkeypatch.setenv("PATH", f"{environment}{os.pathsep}{base}")
    assert _command("python") == ["python"]


def test_tail_says_where_the_page_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an agent serves that knows the folder; else there is nothing to say."""
    monkeypatch.setenv("RESMON_RUNTIME_DIR", str(tmp_path / "runtime"))
    attempt = claim(tmp_path / "runs", "digits", "launch", 0)[0].parent
    assert page_of(attempt) is None
    seat = Seat.take(runtime.folder(), 1.0)
    assert seat is not None
    try:
        seat.announce("http://127.0.0.1:9699", "0")
        assert page_of(attempt) is None, "it does not know the folder"
        runtime.remember(runtime.folder(), tmp_path / "runs")
        assert page_of(attempt) == address("http://127.0.0.1:9699", tmp_path / "runs" / "digits")
        seat.mark_leaving()
        assert page_of(attempt) is None
    finally:
        seat.leave()


def test_the_page_of_the_commands_has_every_verb() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`resmon ([a-z]+)[ `]", page.partition("They look for runs")[0]))
    assert told == {name for name, _ in (*VERBS, *GROUPS)}


def test_settings_that_are_wrong_are_refused_as_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    told = page.partition("```\n")[2].partition("```")[0].splitlines()
    (tmp_path / "resmon.toml").write_text("\n\nbugdet = 3\n")
    result = resmon("settings", "listen=here", cwd=tmp_path, RESMON_MAX_SERIES="many")
    assert told[0] in result.stderr.splitlines()[0]
    assert [line.replace(str(tmp_path), "/home/you/digits") for line in result.stderr.splitlines()[1:4]] == told[1:]
