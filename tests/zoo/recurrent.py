"""Recurrence and reuse: cells unrolled by hand, highways, one module that runs many times."""
# torch types a module's call as Any:
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, identity, projection

WIDTH = 12


def vector() -> tuple[Tensor, ...]:
    """A batch of three vectors."""
    return (torch.randn(3, WIDTH),)


def sequence() -> tuple[Tensor, ...]:
    """Three sequences of four vectors."""
    return (torch.randn(3, 4, WIDTH),)


class ResidualMLPBlock(nn.Module):
    """Two linear maps and an identity skip."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(x)))


class PlainMLP(nn.Module):
    """No skip at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class HighwayLayer(nn.Module):
    """A gate that depends on the input decides how much of it passes: not an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Linear(WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.transform(x)) + (1 - gate) * x


class UnrolledCell(nn.Module):
    """A residual cell that holds its add, applied three times: excludable by the one pattern `cell`."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.cell = ResidualMLPBlock()
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        for _ in range(3):
            h = self.cell(h)
        return self.out(h)


class WeightTiedLoop(nn.Module):
    """The same loop, but the model itself holds the adds: three in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        for _ in range(3):
            h = h + self.f(h)
        return h


class SharedList(nn.Module):
    """One block that stands in a list three times is one module, under its first path."""

    def __init__(self) -> None:
        super().__init__()
        block = ResidualMLPBlock()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([block, block, block])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x)
        return x


class HandLSTM(nn.Module):
    """`c = f * c + i * g` over a sequence: gated sums, none of them residual."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.from_input = nn.Linear(WIDTH, 4 * WIDTH)
        self.from_state = nn.Linear(WIDTH, 4 * WIDTH)
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = x.new_zeros(x.shape[0], WIDTH)
        c = x.new_zeros(x.shape[0], WIDTH)
        for t in range(x.shape[1]):
            i, f, g, o = (self.from_input(x[:, t]) + self.from_state(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


class HandGRU(nn.Module):
    """`h = n + z * (h - n)` looks like an add of something to itself, but no parameter lies between; or the gated form."""

    def __init__(self, as_difference: bool) -> None:
        super().__init__()
        self.as_difference = as_difference
        self.from_input = nn.Linear(WIDTH, 3 * WIDTH)
        self.from_state = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.from_input(x)
        h = x.new_zeros(x.shape[0], WIDTH)
        for step in inputs.unbind(1):
            xr, xz, xn = step.chunk(3, 1)
            hr, hz, hn = self.from_state(h).chunk(3, 1)
            z = torch.sigmoid(xz + hz)
            n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
            h = n + z * (h - n) if self.as_difference else (1 - z) * n + z * h
        return h


class Siamese(nn.Module):
    """One encoder, two inputs: the encoder's blocks run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), ResidualMLPBlock(), ResidualMLPBlock())

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.cosine_similarity(self.encoder(left), self.encoder(right))


class SiameseTransformer(nn.Module):
    """A layer that holds two adds and runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True, norm_first=True)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.layer(left) * self.layer(right)).sum()


class ResidualLSTM(nn.Module):
    """Stacked LSTMs with an identity skip around each but the first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstms = nn.ModuleList([nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstms[0](x)[0]
        for lstm in self.lstms[1:]:
            x = x + lstm(x)[0]
        return x


class ResidualGRUWrapper(nn.Module):
    """The same with the add in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.norm(x))
        return y + x


class WideAndDeep(nn.Module):
    """A linear model beside a deep one, of one input: by the rule a projection site, for the wide side is affine in the input."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(WIDTH, 1)
        self.deep = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.wide(x) + self.deep(x))


class WideAndDeepApart(nn.Module):
    """The same of two inputs, as the paper has it: nothing in common, no site."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.EmbeddingBag(20, 1, mode="sum")
        self.deep = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, crossed: Tensor, x: Tensor) -> Tensor:
        return torch.sigmoid(self.wide(crossed) + self.deep(x))


class Coupling(nn.Module):
    """An additive coupling layer of a flow: half of the channels is shifted by a function of the other half, which is no skip."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Sequential(nn.Linear(WIDTH // 2, 16), nn.ReLU(), nn.Linear(16, WIDTH // 2))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return torch.cat([right + self.shift(left), left], -1)


class LayerDropNet(nn.Module):
    """Layers whose number is in `skipped` do not run: what a traced step skipped must appear once it runs."""

    def __init__(self, skipped: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.skipped = skipped
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([ResidualMLPBlock() for _ in range(4)])
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for i, layer in enumerate(self.layers):
            if i not in self.skipped:
                x = layer(x)
        return self.out(x)


class EarlyReturnBlock(nn.Module):
    """Stochastic depth that gives its input back, the very same tensor, when the dice say so."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) < self.drop:
            return x
        return x + self.fc2(torch.tanh(self.fc1(x)))


BLOCK = "fc1 fc2"
ENCODER = ("norm1 self_attn self_attn.out_proj", "norm2 linear1 linear2")

CASES = (
    Case(
        "residual_mlp",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ResidualMLPBlock(), ResidualMLPBlock(), nn.Linear(WIDTH, 2)),
        vector,
        sites=(identity("1", BLOCK, "1"), identity("2", BLOCK, "2")),
    ),
    Case("residual_block_alone", ResidualMLPBlock, vector, sites=(identity("fc2", BLOCK),)),
    Case("plain_mlp", PlainMLP, vector),
    Case("highway", lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), HighwayLayer(), HighwayLayer()), vector),
    Case(
        "unrolled_cell",
        UnrolledCell,
        vector,
        sites=(identity("cell", BLOCK, "cell"), identity("cell@2", BLOCK, "cell"), identity("cell@3", BLOCK, "cell")),
    ),
    Case(
        "weight_tied_loop",
        WeightTiedLoop,
        vector,
        sites=(identity("f", "f.0 f.2"), identity("f#2", "f.0 f.2"), identity("f#3", "f.0 f.2")),
    ),
    Case(
        "shared_list",
        SharedList,
        vector,
        sites=(
            identity("blocks.0", BLOCK, "blocks.0"),
            identity("blocks.0@2", BLOCK, "blocks.0"),
            identity("blocks.0@3", BLOCK, "blocks.0"),
        ),
    ),
    Case("hand_lstm", HandLSTM, sequence),
    Case("hand_gru", lambda: HandGRU(as_difference=False), sequence),
    Case("hand_gru_difference", lambda: HandGRU(as_difference=True), sequence),
    Case("lstm_cells", lambda: nn.LSTM(WIDTH, WIDTH, 2), sequence),
    Case(
        "siamese",
        Siamese,
        lambda: vector() + vector(),
        sites=(
            identity("encoder.1", BLOCK, "encoder.1"),
            identity("encoder.2", BLOCK, "encoder.2"),
            identity("encoder.1@2", BLOCK, "encoder.1"),
            identity("encoder.2@2", BLOCK, "encoder.2"),
        ),
    ),
    Case(
        "siamese_transformer",
        SiameseTransformer,
        lambda: sequence() + sequence(),
        sites=(
            identity("layer.self_attn", ENCODER[0], "layer"),
            identity("layer.linear2", ENCODER[1], "layer"),
            identity("layer.self_attn@2", ENCODER[0], "layer"),
            identity("layer.linear2@2", ENCODER[1], "layer"),
        ),
    ),
    Case("residual_lstm", ResidualLSTM, sequence, sites=(identity("lstms", "lstms.1"), identity("lstms#2", "lstms.2"))),
    Case(
        "residual_gru",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), ResidualGRUWrapper()),
        sequence,
        sites=(identity("1", "norm gru", "1"),),
    ),
    Case("wide_and_deep", WideAndDeep, vector, sites=(projection("deep", "deep.0 deep.2", "wide"),)),
    Case("wide_and_deep_apart", WideAndDeepApart, lambda: (torch.randint(0, 20, (3, 2)), *vector())),
    Case("additive_coupling", lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Coupling(), Coupling()), vector),
    Case("layer_drop", LayerDropNet, vector, sites=tuple(identity(f"layers.{i}", BLOCK, f"layers.{i}") for i in range(4))),
    Case(
        "layer_drop_skipping",
        lambda: LayerDropNet(frozenset({1})),
        vector,
        sites=tuple(identity(f"layers.{i}", BLOCK, f"layers.{i}") for i in (0, 2, 3)),
    ),
    Case(
        "stochastic_depth_early_return",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), EarlyReturnBlock(0.0), EarlyReturnBlock(1.0), EarlyReturnBlock(0.0)),
        vector,
        sites=(identity("1", BLOCK, "1"), identity("3", BLOCK, "3")),
    ),
)
