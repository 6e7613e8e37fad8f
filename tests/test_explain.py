"""A script that goes non-finite, from its first step to `resmon explain`: what is on file, and what is printed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import resmon

ROOT = Path(__file__).parent.parent

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

if __name__ == "__main__":
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    policy, bad = sys.argv[1], set(map(int, sys.argv[2].split(",")))
    with resmon.watch(model, optimizer, run="r", directory="runs", agent="off", on_nonfinite=policy) as monitor:
        for step in range(4):
            model[2].floor = 0.0 if step in bad else 1e-6
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def the_capsule(project: Path, name: str) -> Path:
    return project / "runs" / "r" / "attempt-0001" / "rank-00000" / name


@pytest.mark.parametrize(
    ("policy", "bad", "outcome", "code"),
    [
        ("record", "1", "nonfinite", 0),
        ("record", "3", "nonfinite", 0),
        ("skip_step", "1", "finished", 0),
        ("skip_step", "3", "nonfinite", 0),
        ("raise", "2", "nonfinite", 1),
    ],
)
def test_the_incident_and_the_outcome_are_on_file(policy: str, bad: str, outcome: str, code: int, project: Path) -> None:
    result = run(project, "train.py", policy, bad)
    assert result.returncode == code, result.stderr
    assert ("NonFiniteError" in result.stderr) == (policy == "raise")
    flight = resmon.load(project / "runs" / "r")
    assert flight.outcome == outcome
    incidents = flight.incidents()
    assert len(incidents) == 1
    found = incidents.iloc[0]
    assert (found["kind"], found["block"], found["operation"], found["origin"]) == ("nonfinite", "2", "log", "forward")
    assert (found["step"], found["confidence"]) == (int(bad), "bit-exact")
    assert found["line"].endswith("return x + self.fc(torch.log(h + self.floor))")
    path = the_capsule(project, found["capsule"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(flight.steps()) == 4 if policy != "raise" else 3


def test_explain_repeats_it(project: Path) -> None:
    run(project, "train.py", "record", "1")
    capsule = str(the_capsule(project, "capsule-nonfinite-1.safetensors"))
    shown = run(project, "-m", "resmon", "explain", capsule)
    assert shown.returncode == 0, shown.stderr
    assert "Step 1: log in module 2 made -Inf" in shown.stdout.replace("\n", " ")
    assert "state/fc.weight" in shown.stdout and "--module" in shown.stdout
    for factory in ("train:block", "train:make"):
        again = run(project, "-m", "resmon", "explain", capsule, "--module", factory)
        assert again.returncode == 0, again.stderr
        assert "It happened again, in the forward pass: log" in again.stdout
    assert "stayed finite" in run(project, "-m", "resmon", "explain", capsule, "-m", "train:repaired").stdout
    told = json.loads(run(project, "-m", "resmon", "explain", capsule, "-m", "train:block", "--json").stdout)
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
def test_explain_says_what_it_cannot_use(arguments: list[str], says: str, project: Path) -> None:
    run(project, "train.py", "record", "1")
    capsule = str(the_capsule(project, "capsule-nonfinite-1.safetensors"))
    result = run(project, "-m", "resmon", "explain", *(capsule if each == "CAPSULE" else each for each in arguments))
    assert result.returncode == 2
    assert says in result.stderr.replace("\n", " ") and "Traceback" not in result.stderr
