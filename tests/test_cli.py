"""The command as a person runs it: a process of its own, what it prints, its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resmon import __version__
from resmon.cli import VERBS, _age, _size, main

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


def test_the_help_lists_every_verb_and_comes_at_once(tmp_path: Path) -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        result = resmon("--help", cwd=tmp_path)
        times.append(time.perf_counter() - began)
    assert result.returncode == 0
    for name, function in VERBS:
        assert f" {name} " in result.stdout
        assert function.__doc__
    assert min(times) < 1.5  # 0.3 s on an idle machine; importing torch alone takes longer than this


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
def test_inspect_says_that_a_plain_model_has_no_block(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(monkeypatch, "inspect", "mymodels:plain", "-i", "2,4") == 0
    assert "Linear has no residual block" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mymodels"], "names no model"),
        (["nowhere:make"], "'nowhere' cannot be imported"),
        (["mymodels:Blok"], "has no 'Blok'. It has these models: Block, Scaled, Tokens"),
        (["mymodels:needs"], "missing a required argument: 'width'"),
        (["mymodels:wrong"], "gives str; it must give a torch.nn.Module"),
        (["mymodels:number"], "gives int"),
        (["mymodels:Block"], "Not given: x"),
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


@pytest.mark.parametrize(("size", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (14e6, "14 MB"), (999.6e6, "1.0 GB"), (5e12, "5000.0 GB")])
def test_sizes(size: float, shown: str) -> None:
    assert _size(size) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(-1, "0 s"), (59, "59 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 d")])
def test_ages(seconds: float, shown: str) -> None:
    assert _age(seconds) == shown
