"""What watching takes of the training process over a long run, and with a model of very many blocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import resmon

RUN = """
import json, re, sys
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
    def forward(self, x):
        return x + 0.1 * torch.relu(self.linear(x))

def resident():
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(r"Rss:\\s+(\\d+)", file.read())[1]) / 1024

torch.manual_seed(0)
blocks, steps = int(sys.argv[1]), int(sys.argv[2])
model = nn.Sequential(*(Block(16) for _ in range(blocks)))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
x = torch.randn(16, 16)

def step():
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss

for _ in range(20):
    step()
figures = [resident()]
import resmon
with resmon.watch(model, optimizer, run="long", agent="off", budget=int(sys.argv[3])) as monitor:
    for i in range(steps):
        monitor.log(loss=step())
        if i in (50, steps // 4, steps - 1):
            figures.append(resident())
    sites = len(monitor.sites)
print(json.dumps({"figures": figures, "sites": sites}))
"""


def train(directory: Path, blocks: int, steps: int, budget: int) -> tuple[list[float], int]:
    """Resident MiB before watching, after 50 steps, after a quarter of all and at the end; and the number of sites."""
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs Linux, which tells what memory a process has in /proc")
    command = [sys.executable, "-c", RUN, *map(str, (blocks, steps, budget))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, env=environment)
    assert not result.returncode, result.stderr
    told = json.loads(result.stdout)
    return told["figures"], told["sites"]


@pytest.mark.slow
def test_twenty_thousand_steps_take_no_more_memory_than_the_first(tmp_path: Path) -> None:
    (before, first, quarter, end), _ = train(tmp_path, blocks=6, steps=20_000, budget=16 << 20)
    assert first - before <= 48, "pyarrow alone is 26 of them"
    assert quarter - first <= 2, "the first bins and segments"
    assert end - quarter <= 0.5
    flight = resmon.load(tmp_path / "runs" / "long")
    assert flight.outcome == "finished"
    assert flight.bins()["steps"].sum() == 6 * 20_000
    assert sum(path.stat().st_size for path in (tmp_path / "runs").rglob("*") if path.is_file()) <= 16 << 20


@pytest.mark.slow
def test_a_thousand_blocks(tmp_path: Path) -> None:
    (before, *_, end), sites = train(tmp_path, blocks=1000, steps=60, budget=64 << 20)
    assert sites == 1000
    assert end - before <= 48 + 0.1 * 1000, "not more than 100 KiB a block on top"
    blocks = resmon.load(tmp_path / "runs" / "long").blocks()
    assert len(blocks) == 60_000
    assert blocks[["skip_rms", "branch_rms", "output_rms", "gradient_norm", "output_gradient_norm"]].notna().all(axis=None)
