"""Models whose blocks share more than one stream, or more than one state of it: averaged, mixed, coupled, shifted, subtracted."""
# torch types a module's call as Any:
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resmon import residual_add
from tests.zoo.attention import WIDTH, GatedMLP, sequence
from tests.zoo.case import Case, identity, projection


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.mlp = GatedMLP()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class DenseFormer(nn.Module):
    """Behind each block the states of all blocks so far are averaged with learned weights, which is no block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.weights = nn.ParameterList([torch.full((i + 2,), 1 / (i + 2)) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        states = [self.inp(x)]
        x = states[0]
        for block, weights in zip(self.blocks, self.weights, strict=True):
            states.append(block(x))
            x = states[0] * weights[0]
            for state, weight in zip(states[1:], weights[1:], strict=True):
                x = x + weight * state
        return x


class ScalarMix(nn.Module):
    """ELMo: what is read of a stack is the average of its layers by softmaxed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.weights = nn.Parameter(torch.zeros(3))
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        states = [self.inp(x)]
        for block in self.blocks:
            states.append(block(states[-1]))
        weights = self.weights.softmax(0)
        mixed = sum(weight * state for weight, state in zip(weights, states, strict=True))
        return self.gamma * mixed


class ValueResidual(nn.Module):
    """Attention whose values are mixed with those of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        v = self.v(x)
        first = v if first is None else first
        v = (1 - self.share) * v + self.share * first.view_as(v)
        return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), v, is_causal=True)), first


class RemindedBlock(nn.Module):
    """Mixes its stream with the stream's first state before it does anything."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([1.0, 0.1]))
        self.attn = ValueResidual()
        self.mlp = GatedMLP()

    def forward(self, x: Tensor, first: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.mix[0] * x + self.mix[1] * first
        attended, values = self.attn(F.rms_norm(x, (WIDTH,)), values)
        x = x + attended
        return x + self.mlp(F.rms_norm(x, (WIDTH,))), values


class Speedrun(nn.Module):
    """modded-nanogpt: the above, and a long skip scaled by one learned number, which is a site."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.h = nn.ModuleList([RemindedBlock() for _ in range(3)])
        self.skip_weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = first = F.rms_norm(self.inp(x), (WIDTH,))
        x, values = self.h[0](x, first, None)
        skip = x
        x, values = self.h[1](x, first, values)
        x = x + self.skip_weight * skip
        return self.h[2](x, first, values)[0]


class Reversible(nn.Module):
    """Two streams, each of which is the other's branch."""

    def __init__(self) -> None:
        super().__init__()
        self.f = GatedMLP()
        self.g = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left = left + self.f(right)
        return left, right + self.g(left)


class ReversibleNet(nn.Module):
    """Its streams are summed at the end, which is no block."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(WIDTH, WIDTH)
        self.right = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Reversible(), Reversible()])

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        for block in self.blocks:
            left, right = block(left, right)
        return left + right


class HyperConnection(nn.Module):
    """Parallel streams that a learned matrix mixes (so the skip is a projection); the block reads from and adds to all of them."""

    def __init__(self, streams: int = 3) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.mlp = GatedMLP()
        self.read = nn.Parameter(torch.full((streams,), 1 / streams))
        self.write = nn.Parameter(torch.ones(streams))
        self.mix = nn.Parameter(torch.eye(streams))

    def forward(self, streams: Tensor) -> Tensor:
        y = self.mlp(self.norm(torch.einsum("n,nbtw->btw", self.read, streams)))
        return torch.einsum("mn,nbtw->mbtw", self.mix, streams) + self.write[:, None, None, None] * y


class DynamicHyperConnection(HyperConnection):
    """The same, but the data decide how the streams are mixed: a gate, and no skip."""

    def __init__(self, streams: int = 3) -> None:
        super().__init__(streams)
        self.mixing = nn.Linear(WIDTH, streams)

    def forward(self, streams: Tensor) -> Tensor:
        y = self.mlp(self.norm(torch.einsum("n,nbtw->btw", self.read, streams)))
        mix = self.mix[:, :, None, None] + 0.1 * torch.tanh(self.mixing(streams)).permute(3, 0, 1, 2)
        return torch.einsum("mnbt,nbtw->mbtw", mix, streams) + self.write[:, None, None, None] * y


class PublishedHyperConnection(HyperConnection):
    """As it was published: what the block reads and the mixed streams are parts of one product, as a coupling's halves may be."""

    def forward(self, streams: Tensor) -> Tensor:
        mixed = torch.einsum("mn,nbtw->mbtw", torch.cat([self.read[None], self.mix]), streams)
        return mixed[1:] + self.write[:, None, None, None] * self.mlp(self.norm(mixed[0]))


class HyperNet(nn.Module):
    """Two of them over three streams."""

    def __init__(self, block: type[HyperConnection]) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.Sequential(block(), block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.inp(x).expand(3, -1, -1, -1)).sum(0)


class Shifted(nn.Module):
    """RWKV-7's token shift, by addcmul, of several mixtures of one stream: none of these additions is a block, the outer one is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mu_key = nn.Parameter(torch.rand(WIDTH))
        self.mu_gate = nn.Parameter(torch.rand(WIDTH))
        self.key = nn.Linear(WIDTH, 32, bias=False)
        self.gate = nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = nn.Linear(32, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        difference = F.pad(h, (0, 0, 1, -1)) - h
        key = torch.addcmul(h, difference, self.mu_key)
        gate = torch.lerp(h, h + difference, self.mu_gate)
        return x + torch.sigmoid(self.gate(gate)) * self.value(torch.relu(self.key(key)) ** 2)


class Backcasting(nn.Module):
    """A block of N-BEATS: what it explains of its input, and what it forecasts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.backcast = nn.Linear(WIDTH, WIDTH)
        self.forecast = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.fc(x)
        return self.backcast(h), self.forecast(h)


class NBeats(nn.Module):
    """What a block explains is subtracted, so the user marks it. The sum of the forecasts is no block beside that stream."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Backcasting(), Backcasting(), Backcasting()])

    def forward(self, x: Tensor) -> Tensor:
        forecasts = []
        for block in self.blocks:
            backcast, forecast = block(x)
            x = residual_add(x, -backcast)
            forecasts.append(forecast)
        return forecasts[0] + forecasts[1] + forecasts[2]


MLP = "mlp.gate mlp.up mlp.down"
ATTENTION = "attn.v attn attn.q attn.k attn.o"


def reminded(i: int) -> tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...]:
    """The two sites of one RemindedBlock."""
    return identity(f"h.{i}.attn", ATTENTION, f"h.{i}"), identity(f"h.{i}.mlp", MLP, f"h.{i}")


CASES = (
    Case(
        "denseformer", DenseFormer, sequence, sites=tuple(identity(f"blocks.{i}", f"norm {MLP}", f"blocks.{i}") for i in range(3))
    ),
    Case("scalar_mix", ScalarMix, sequence, sites=tuple(identity(f"blocks.{i}", f"norm {MLP}", f"blocks.{i}") for i in range(2))),
    Case(
        "speedrun",
        Speedrun,
        sequence,
        sites=(
            *reminded(0),
            *reminded(1),
            projection("h", "h.1 h.1.attn.v h.1.attn h.1.attn.q h.1.attn.k h.1.attn.o h.1.mlp.gate h.1.mlp.up h.1.mlp.down", "."),
            *reminded(2),
        ),
    ),
    Case(
        "reversible",
        ReversibleNet,
        sequence,
        sites=(
            projection("blocks.0.f", "/right f.gate f.up f.down", "/left", "blocks.0"),
            identity("blocks.0.g", "f.gate f.up f.down g.0 g.2", "blocks.0"),
            identity("blocks.1.f", "/blocks.0.g.0 /blocks.0.g.2 f.gate f.up f.down", "blocks.1"),
            identity("blocks.1.g", "f.gate f.up f.down g.0 g.2", "blocks.1"),
        ),
    ),
    Case(
        "hyper_connections",
        lambda: HyperNet(HyperConnection),
        sequence,
        sites=tuple(projection(f"blocks.{i}", f". norm {MLP}", ".", f"blocks.{i}") for i in range(2)),
    ),
    Case("hyper_connections_published", lambda: HyperNet(PublishedHyperConnection), sequence),
    Case("hyper_connections_dynamic", lambda: HyperNet(DynamicHyperConnection), sequence),
    Case(
        "token_shift_by_addcmul",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Shifted()),
        sequence,
        sites=(identity("1", "norm . gate key value", "1"),),
    ),
    Case(
        "nbeats_marked",
        NBeats,
        sequence,
        sites=tuple(
            (name, "marked", (f"blocks.{i}.fc.0", f"blocks.{i}.backcast"), ())
            for i, name in enumerate(("blocks", "blocks#2", "blocks#3"))
        ),
    ),
)
