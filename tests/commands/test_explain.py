"""A script that goes non-finite, from its first step to `resmon explain`: what is on file, and what is printed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import resmon
from resmon.cli import main
from tests import forkserver

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
import torch, resmon
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 4)
        self.floor = 1e-6
    def forward(self, x):
        h = self.fc(self.norm(x)).abs() * 0
        return x + self.fc(torch.log(h + self.floor))

def make():
    model = nn.Sequential(nn.Linear(4, 4), Block(), Block(), nn.Linear(4, 1))
    model[2].floor = 0.0
    return model

def block():
    made = Block()
    made.floor = 0.0
    return made

def repaired():
    return Block()

def train(policy, bad):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with resmon.watch(model, optimizer, run=f"{policy}-{bad}", directory="runs", agent="off", on_nonfinite=policy) as monitor:
        for step in range(4):
            model[2].floor = 0.0 if step == int(bad) else 1e-6
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)

if __name__ == "__main__":
    for way in sys.argv[1:]:
        train(*way.split("-"))
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1"}
    return forkserver.run(*arguments, cwd=folder, env=environment)


@dataclass(frozen=True)
class Case:
    outcome: str
    steps: int


CASES = {  # by policy and step
    "record-1": Case("nonfinite", 4),
    "record-3": Case("nonfinite", 4),
    "skip_step-1": Case("finished", 4),
    "skip_step-3": Case("nonfinite", 4),
    "raise-2": Case("nonfinite", 3),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose runs went non-finite in every way, one after the other; the last of them raises."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train.py").write_text(SCRIPT)
    result = run(folder, "train.py", *CASES)
    assert result.returncode == 1 and "NonFiniteError" in result.stderr, result.stderr
    assert sorted(path.name for path in (folder / "runs").iterdir()) == sorted(CASES), result.stderr
    return folder


def the_capsule(folder: Path, way: str) -> Path:
    (found,) = (folder / "runs" / way / "attempt-0001" / "rank-00000").glob("capsule-*")
    return found


@pytest.mark.parametrize("way", CASES)
def test_the_incident_and_the_outcome_are_on_file(way: str, trained: Path) -> None:
    flight = resmon.load(trained / "runs" / way)
    assert flight.outcome == CASES[way].outcome
    (found,) = flight.incidents().to_dict("records")
    assert (found["kind"], found["block"], found["operation"], found["origin"]) == ("nonfinite", "2", "log", "forward")
    assert (found["step"], found["confidence"]) == (int(way[-1]), "bit-exact")
    assert found["line"].endswith("return x + self.fc(torch.log(h + self.floor))")
    path = the_capsule(trained, way)
    assert path.name == found["capsule"] == f"capsule-nonfinite-{way[-1]}.safetensors"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(flight.steps()) == CASES[way].steps


def test_explain_repeats_it(trained: Path) -> None:
    capsule = str(the_capsule(trained, "record-1"))
    shown = run(trained, "-m", "resmon", "explain", capsule)
    assert shown.returncode == 0, shown.stderr
    assert "Step 1: log in module 2 made -Inf" in shown.stdout.replace("\n", " ")
    assert "state/fc.weight" in shown.stdout and "--module" in shown.stdout
    again = run(trained, "-m", "resmon", "explain", capsule, "--module", "train:make")
    assert again.returncode == 0, again.stderr
    assert "It happened again, in the forward pass: log" in again.stdout
    assert "stayed finite" in run(trained, "-m", "resmon", "explain", capsule, "-m", "train:repaired").stdout
    told = json.loads(run(trained, "-m", "resmon", "explain", capsule, "-m", "train:block", "--json").stdout)
    assert told["verdict"]["event"]["operation"] == "log" and told["module"] == "2" and told["class"] == "__main__.Block"
    assert {each["name"] for each in told["tensors"]} >= {"input/0/0", "state/fc.bias"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.safetensors"], "nothing.safetensors cannot be read"),
        (["train.py"], "is no capsule"),
        (["CAPSULE", "-m", "train:nothing"], "has no 'nothing'"),
        (["CAPSULE", "-m", "torch.nn:Identity"], "Block"),
    ],
)
def test_explain_says_what_it_cannot_use(
    arguments: list[str], says: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(str(trained))
    capsule = str(the_capsule(trained, "record-1"))
    monkeypatch.setattr(sys, "argv", ["resmon", "explain", *(capsule if each == "CAPSULE" else each for each in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    sys.modules.pop("train", None)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
