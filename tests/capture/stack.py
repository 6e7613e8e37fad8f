"""A small pre-norm stack for the sharded tests, and what is true of it: float64, one process, the whole batch, no resmon.

`truth` knows where the residual adds of a `Block` are because it is written beside it; it shares nothing with the code under test.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HIDDEN = 12, 36  # divide by 2 and 4
UNEVEN = (5, 9)  # do not: over 4 ranks one has nothing
BATCH, LENGTH, STEPS, RATE = 8, 4, 3, 0.5
BRANCHES = {"attn": ("ln_1", "attn"), "down": ("ln_2", "up", "down")}  # the modules between skip and add, by the add's name


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.sums: list[tuple[Tensor, Tensor, Tensor]] | None = None  # (skip, branch, sum) of every add, where asked for

    def forward(self, x: Tensor) -> Tensor:
        x = self._add(x, self.attn(self.ln_1(x)))
        return self._add(x, self.down(F.gelu(self.up(self.ln_2(x)))))

    def _add(self, skip: Tensor, branch: Tensor) -> Tensor:
        total = skip + branch
        if self.sums is not None:
            total.retain_grad()
            self.sums.append((skip, branch, total))
        return total


class Stack(nn.Module):
    """`detour`, if there is one, is used only while `takes_detour`: by one rank and not by another."""

    def __init__(self, width: int, hidden: int, detour: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.detour = nn.Linear(width, width) if detour else None
        self.takes_detour = False
        self.left_out: tuple[int, ...] = ()  # blocks that the pass goes by, as stochastic depth does
        self.h = nn.ModuleList(Block(width, hidden) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.detour is not None and self.takes_detour:
            x = self.detour(x)
        for i, block in enumerate(self.h):
            if i not in self.left_out:
                x = block(x)
        y: Tensor = self.head(self.norm(x))
        return y


def stack(uneven: bool = False, detour: bool = False) -> Stack:
    """The same weights on every rank."""
    torch.manual_seed(1)
    model = Stack(*(UNEVEN if uneven else (WIDTH, HIDDEN)), detour)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases and norms too, so that no gradient is zero
    return model


def batches(width: int) -> Iterator[Tensor]:
    """The global batch of every step."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        yield torch.randn(BATCH, LENGTH, width, generator=generator)


def loss_of(output: Tensor) -> Tensor:
    return output.square().mean()


def truth(
    model: Stack, detours: tuple[bool, ...] = (False,), clip: float = math.inf, left_out: tuple[tuple[int, ...], ...] = ()
) -> list[dict[str, float]]:
    """Of each step: `<site> <value>` and `total`, by autograd in float64 on the whole batch, and before gradients are clipped.

    The loss is the mean over equal parts of the batch, one for each of `detours`; `left_out` are the blocks that each goes by.
    """
    model = copy.deepcopy(model).double()
    steps = []
    for batch in batches(model.stem.in_features):
        for block in model.h:
            block.sums = []
        model.zero_grad()
        parts = batch.double().chunk(len(detours))
        for part, model.takes_detour, model.left_out in zip(parts, detours, left_out or ((),) * len(parts), strict=True):
            (loss_of(model(part)) / len(parts)).backward()
        step = {"total": _norm(p.grad for p in model.parameters())}
        for i, block in enumerate(model.h):
            for a, (name, modules) in enumerate(BRANCHES.items()):
                skip, branch, total = zip(*block.sums[a :: len(BRANCHES)], strict=True)
                step[f"h.{i}.{name} skip_rms"], step[f"h.{i}.{name} branch_rms"] = _rms(skip), _rms(branch)
                step[f"h.{i}.{name} output_rms"] = _rms(total)
                step[f"h.{i}.{name} branch_skip_ratio"] = _rms(branch) / _rms(skip)
                step[f"h.{i}.{name} gradient_norm"] = _norm(p.grad for m in modules for p in block.get_submodule(m).parameters())
                step[f"h.{i}.{name} output_gradient_norm"] = _norm(y.grad for y in total)
        steps.append(step)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad * min(1.0, clip / step["total"])
    return steps


def _rms(tensors: tuple[Tensor, ...]) -> float:
    return math.sqrt(float(torch.cat(tensors).detach().square().mean()))


def _norm(tensors: Iterator[Tensor | None]) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in tensors if t is not None))
