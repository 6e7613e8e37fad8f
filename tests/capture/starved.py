"""A training process with little memory: `python -m tests.capture.starved DIRECTORY WHERE HOW FREE SIZE...`.

It trains one step with each SIZE of batch, under a limit (RLIMIT_AS) that leaves FREE MiB once everything is built. WHERE says what
takes most of it: "forward" and "backward" are the model's third block, "optimizer", "evaluation" and "loop" what they say. HOW is
"with" or "bare": whether the monitor is a context manager. Prints "done" where all steps went well.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import resmon

WIDTH = 128


class Branch(nn.Module):
    """In the forward pass it takes `wide` times as much as its input; in the backward pass besides, `deep` times."""

    def __init__(self, wide: int, deep: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, wide * WIDTH), nn.Linear(wide * WIDTH, WIDTH)
        self.deep = deep

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x))
        if self.deep > 1:  # which looks at a view only, and makes all of it where its gradient is wanted
            hidden = hidden.unsqueeze(1).expand(-1, self.deep, -1).amax(1)
        y: Tensor = self.down(hidden)
        return y


class Block(nn.Module):
    def __init__(self, wide: int = 1, deep: int = 1) -> None:
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(WIDTH), Branch(wide, deep)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(self.norm(x))
        return y


def limit(free: int) -> None:
    """So many MiB more, from now on."""
    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, ((used << 10) + (free << 20), resource.RLIM_INFINITY))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, where: str, sizes: list[int]) -> None:
    for size in sizes:
        loss = model(torch.randn(size, WIDTH)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if where == "evaluation":
        model.eval()
        with torch.no_grad():
            model(torch.randn(200_000, WIDTH))
    if where == "loop":
        torch.zeros(1 << 30)


def main(directory: str, where: str, how: str, free: str, *sizes: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fat = {"forward": Block(wide=16), "backward": Block(deep=24)}.get(where, Block())
    model: nn.Sequential = nn.Sequential(nn.Linear(WIDTH, WIDTH), Block(), Block(), fat, Block(), nn.Linear(WIDTH, 4))
    if where == "optimizer":
        model.append(nn.Linear(4, 5_000_000))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = resmon.watch(model, optimizer, run="starved", directory=directory, agent="off")
    limit(int(free))
    if how == "with":
        with monitor:
            train(model, optimizer, where, list(map(int, sizes)))
    else:
        train(model, optimizer, where, list(map(int, sizes)))
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
