"""Streams with something beside them: conditions that come into every layer, outputs that every layer adds up elsewhere, penalties.

None of these sums is a residual add, though each lies between a tensor, an affine map of it and a way through parameters.
"""
# torch types a module's call as Any:
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, identity, projection

WIDTH = 12


class GatedLayer(nn.Module):
    """A layer of a WaveNet: its stream goes on, and an output of its own goes to the sum of all layers' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1)
        self.stream = nn.Conv1d(WIDTH, WIDTH, 1)
        self.skip = nn.Conv1d(WIDTH, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.dilated(x).chunk(2, 1)
        h = torch.tanh(a) * torch.sigmoid(b)
        return x + self.stream(h), self.skip(h)


class WaveNet(nn.Module):
    """The outputs beside the stream are affine in what the next layers descend from."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, WIDTH, 1)
        self.layers = nn.ModuleList(GatedLayer() for _ in range(3))
        self.last = nn.Conv1d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), torch.zeros(())
        for layer in self.layers:
            x, output = layer(x)
            total = total + output
        return self.last(F.relu(total))


class ConditionedLayer(GatedLayer):
    """A layer of a vocoder: the spectrogram is projected anew in each."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = nn.Conv1d(5, 2 * WIDTH, 1)

    def forward(self, x: Tensor, spectrogram: Tensor) -> Tensor:  # type: ignore[override]
        a, b = (self.dilated(x) + self.condition(spectrogram)).chunk(2, 1)
        return x + self.stream(torch.tanh(a) * torch.sigmoid(b))


class Vocoder(nn.Module):
    """From the second layer on the stream descends from the condition, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, WIDTH, 1)
        self.layers = nn.ModuleList(ConditionedLayer() for _ in range(3))

    def forward(self, x: Tensor, spectrogram: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for layer in self.layers:
            x = layer(x, spectrogram)
        return x


class MessagePassing(nn.Module):
    """A graph convolution without a residual add: what comes along an edge is the neighbour plus the edge's own features."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Linear(4, WIDTH)
        self.update = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        messages = F.relu(x[edges[0]] + self.edge(features))
        return self.update(torch.zeros_like(x).index_add(0, edges[1], messages))


class Messages(nn.Module):
    """Convolutions that are given the same edges' features one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MessagePassing() for _ in range(3))

    def forward(self, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edges, features)
        return x


class TimedBlock(nn.Module):
    """A condition of the block's own shape is added to its branch before anything that is not affine: still a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.time, self.two, self.skip = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.skip(x) + self.two(F.silu(self.one(x) + self.time(time)))


class Timed(nn.Module):
    """Blocks that are told the time."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TimedBlock() for _ in range(2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, time)
        return x


class Penalised(nn.Module):
    """A residual MLP that hands on a number beside its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.fn = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.fn(x)
        return x + h, h.square().mean()


class Penalties(nn.Module):
    """The numbers are added to one that is affine in the input of the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Penalised() for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        total = x.mean()
        for block in self.blocks:
            x, penalty = block(x)
            total = total + penalty
        return x, total


def edges() -> tuple[Tensor, ...]:
    """A graph of ten nodes and thirty edges."""
    return torch.randn(10, WIDTH), torch.randint(0, 10, (2, 30)), torch.randn(30, 4)


CASES = (
    Case(
        "wavenet",
        WaveNet,
        lambda: (torch.randn(2, 1, 9),),
        sites=tuple(identity(f"layers.{i}", "dilated stream", f"layers.{i}") for i in range(3)),
    ),
    Case(
        "vocoder",
        Vocoder,
        lambda: (torch.randn(2, 1, 9), torch.randn(2, 5, 9)),
        sites=tuple(identity(f"layers.{i}", "dilated stream", f"layers.{i}") for i in range(3)),
    ),
    Case("messages", Messages, edges),
    Case(
        "timed",
        Timed,
        lambda: (torch.randn(3, WIDTH), torch.randn(3, WIDTH)),
        sites=tuple(projection(f"blocks.{i}", "one two", "skip", f"blocks.{i}") for i in range(2)),
    ),
    Case(
        "penalties",
        Penalties,
        lambda: (torch.randn(3, WIDTH),),
        sites=tuple(identity(f"blocks.{i}", "fn.0 fn.2", f"blocks.{i}") for i in range(2)),
    ),
)
