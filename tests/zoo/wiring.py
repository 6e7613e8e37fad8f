"""How residual adds are written and run: operators, wrappers, checkpoints, custom functions, parametrisations, dtypes, calls."""
# torch types a module's call as Any:
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.case import Case, identity, projection
from tests.zoo.recurrent import WIDTH, vector


def branch() -> nn.Sequential:
    """A small branch that is not affine."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))


# Ways to write y = x + f(x). The two that change x in place may do so because relu saves its result, not its input.
SPELLINGS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "x + f": lambda x, f: x + f(x),
    "f + x": lambda x, f: f(x) + x,
    "torch.add": lambda x, f: torch.add(x, f(x)),
    "torch.add reversed": lambda x, f: torch.add(f(x), x),
    "torch.add alpha": lambda x, f: torch.add(x, f(x), alpha=0.5),
    "x.add": lambda x, f: x.add(f(x)),
    "f.add_": lambda x, f: f(x).add_(x),
    "x.add_": lambda x, f: x.add_(f(torch.relu(x))),
    "__radd__": lambda x, f: x.__radd__(f(x)),
    "scaled": lambda x, f: (x + f(x)) * 0.7071,
    "casts": lambda x, f: x.to(torch.float32) + f(x).to(x.dtype),
    "double": lambda x, f: (x.double() + f(x).double()).float(),
    "reshaped": lambda x, f: x.view(-1) + f(x).flatten(),
}


def iadd(x: Tensor, f: nn.Module) -> Tensor:
    """`+=` on the branch."""
    y: Tensor = f(x)
    y += x
    return y


def summed(x: Tensor, f: nn.Module) -> Tensor:
    """Python's sum, which starts at the number 0."""
    total: Any = sum([x, f(x)])
    return total


SPELLINGS |= {"+=": iadd, "sum": summed}


class Spelled(nn.Module):
    """One residual block that writes its add in the way named."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.f = branch()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        return SPELLINGS[self.spelling](x, self.f)


class Multiplying(nn.Module):
    """Adds and multiplies in one call, by a layer scale of its own."""

    def __init__(self, add: Callable[[Multiplying, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.f = branch()
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.5))
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self, x, self.f(x))


def multiplying() -> nn.Module:
    """One block for each of the functions that multiply what they add."""
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        Multiplying(lambda m, x, f: torch.addcmul(x, m.gamma, f)),
        Multiplying(lambda m, x, f: f.clone().addcdiv_(x, m.gamma, value=0.5)),
        Multiplying(lambda _, x, f: torch.lerp(x, f, 0.25)),
        Multiplying(lambda m, x, f: x.lerp(f, m.gamma)),
        nn.Linear(WIDTH, 2),
    )


class Residual(nn.Module):
    """The wrapper that many tutorials write: whatever it wraps, plus its input."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.fn(x, **options) + x


class ProjectedResidual(nn.Module):
    """A wrapper whose shortcut is a module: an nn.Identity leaves an identity."""

    def __init__(self, fn: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.fn(x)


class ResidualSequential(nn.Sequential):
    """The same as a subclass of Sequential."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (Sequential's own name for it)
        return input + super().forward(input)  # type: ignore[no-untyped-call]


def conv_mixer() -> nn.Module:
    """ConvMixer: the wrapper inside Sequentials inside Sequentials."""

    def block() -> nn.Module:
        depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.GELU(), nn.BatchNorm2d(8))
        return nn.Sequential(Residual(depthwise), nn.Conv2d(8, 8, 1), nn.GELU(), nn.BatchNorm2d(8))

    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.GELU(), block(), block())


class SelfAttention(nn.Module):
    """nn.MultiheadAttention as a map from a tensor to a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mha(x, x, x)[0]
        return out


class FunctionalBlock(nn.Module):
    """Parameters and nothing else: the block itself owns what is on the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2 * WIDTH, WIDTH) / 4)
        self.down = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(F.relu(F.linear(x, self.up)), self.down)


class FunctionalTwice(nn.Module):
    """Two adds in one module that has no children to name them by; the weights are multiplied with `@`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)
        self.second = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(x @ self.first)
        return x + torch.tanh(x @ self.second.t())


class Checkpointed(nn.Module):
    """Activation checkpoints around blocks, of either kind."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Residual(branch()), Residual(branch())])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return x


class CheckpointedBranch(nn.Module):
    """A checkpoint around the branch alone: the add lies outside of it."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.norm = nn.LayerNorm(WIDTH)
        self.f = branch()

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.f, self.norm(x), use_reentrant=self.use_reentrant)


class Square(torch.autograd.Function):
    """A custom function without parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradients[0]


class Affine(torch.autograd.Function):
    """A custom function that reads a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, gradients[0].t() @ x


class SquareModule(nn.Module):
    """The custom function as an activation module."""

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(x)  # type: ignore[no-untyped-call]


class CustomInline(nn.Module):
    """Custom functions called in the block's own forward, one of them the only reader of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + Affine.apply(Square.apply(self.fc(x)), self.weight)  # type: ignore[no-untyped-call]


def parametrised(parametrise: Callable[..., nn.Module]) -> nn.Module:
    """A residual block whose linear maps are parametrised (weight norm, spectral norm)."""
    first = parametrise(nn.Linear(WIDTH, WIDTH, bias=False))
    second = parametrise(nn.Linear(WIDTH, WIDTH))
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Residual(nn.Sequential(first, nn.ReLU(), second)))


class Autocast(nn.Module):
    """Autocast inside the model: the branch comes in bfloat16, the skip stays in float32 or is cast."""

    def __init__(self, cast_skip: bool) -> None:
        super().__init__()
        self.cast_skip = cast_skip
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([branch(), branch()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for block in self.blocks:
                y = block(x)
                x = x.to(y.dtype) + y if self.cast_skip else x + y
        return x


class DictNet(nn.Module):
    """Keyword-only inputs, a dict in and a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(branch())
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, *, batch: dict[str, Tensor], scale: float = 1.0) -> dict[str, Any]:
        h = self.block(batch["features"])
        return {"logits": self.head(h) * scale, "hidden": {"last": h, "all": [h]}}


class ListCarrier(nn.Module):
    """The stream travels in a list, as in some segmentation networks: the skip is an element of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fs = nn.ModuleList([branch(), branch()])
        self.fuse = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, streams: list[Tensor]) -> Tensor:
        streams = [stream + f(stream) for stream, f in zip(streams, self.fs, strict=True)]
        return self.fuse(torch.cat(streams, -1))


class ListNet(nn.Module):
    """Makes two streams and hands them over as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(WIDTH, WIDTH)
        self.right = nn.Linear(WIDTH, WIDTH)
        self.mix = ListCarrier()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix([self.left(x), self.right(x)])


class ClassConditional(nn.Module):
    """A branch that is told a class: the class embedding comes from another input, it is not on the way from the skip tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.class_embedding = nn.Embedding(5, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(x) + self.class_embedding(label)))


class ConditionalNet(nn.Module):
    """Two class-conditional blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([ClassConditional(), ClassConditional()])

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = block(x, label)
        return x


class NotResidual(nn.Module):
    """Sums that look like residual adds and are none: what `sum_` names is all that the model computes after a linear map."""

    def __init__(self, sum_: Callable[[NotResidual, Tensor], Tensor]) -> None:
        super().__init__()
        self.sum_ = sum_
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.a = nn.Linear(WIDTH, WIDTH)
        self.b = nn.Linear(WIDTH, WIDTH)
        self.table = nn.Embedding(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.ones(WIDTH))
        self.alpha = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.sum_(self, torch.tanh(self.inp(x)))


def attention_scores(m: NotResidual, x: Tensor) -> Tensor:
    """Content scores plus position scores: linear in the keys, but by a factor that is data."""
    q, k = m.a(x), m.b(x)
    return q @ k.t() + (torch.tanh(k) @ m.table(torch.arange(3)).t()).softmax(-1)


def gated_contexts(m: NotResidual, x: Tensor) -> Tensor:
    """Two contexts, one made from the other, each times its gate: linear in the first, but by a factor that is data."""
    first, gate = m.a(x), torch.sigmoid(m.b(x))
    second = F.gelu(m.inp(first))
    return first * gate + second * gate.flip(-1)


def state_space(m: NotResidual, x: Tensor) -> Tensor:
    """A scan whose gates are data, plus its input scaled by channel: the D of a state-space model."""
    state, step = torch.zeros(WIDTH), F.softplus(m.a(x))
    states = []
    for now, gate in zip(x, step, strict=True):
        state = state * torch.exp(-gate) + gate * now
        states.append(state)
    return torch.stack(states) * m.b(x) + x * m.alpha


def segment_biases(m: NotResidual, x: Tensor) -> Tensor:
    """One bias, looked up by what the input says, is added to the scores of two layers."""
    bias = m.table(x.argmax(-1)).t()[:3] * m.bias[0]
    bias = bias[:, :3]
    scores = m.a(x) @ m.b(x).t() + bias
    y = m.b(scores.softmax(-1) @ x)
    return m.a(y) @ y.t() + bias


NOT_RESIDUAL: dict[str, Callable[[NotResidual, Tensor], Tensor]] = {
    "siblings, both non-linear": lambda m, x: torch.tanh(m.a(x)) + torch.tanh(m.b(x)),
    "siblings, both affine": lambda m, x: m.a(x) + m.b(x),
    "bias": lambda m, x: x + m.bias,
    "doubled": lambda _, x: x + x,
    "activation": lambda _, x: 0.5 * x * (1 + torch.tanh(0.79 * (x + 0.044 * x.pow(3)))) + x,
    "snake": lambda m, x: x + torch.sin(m.alpha * x).pow(2) / (m.alpha + 1e-9),
    "noise": lambda m, x: x + torch.randn_like(x) * m.alpha,
    "detached skip": lambda m, x: x.detach() + torch.tanh(m.a(x)),
    "detached branch": lambda m, x: x + torch.tanh(m.a(x.detach())),
    "through integers": lambda m, x: x + m.table(x.argmax(-1)),
    "through a mask": lambda m, x: x + (x > 0) * m.bias,
    "through a number": lambda m, x: x + m.a(torch.ones(3, WIDTH) * float(x.detach().sum())),
    "broadcast": lambda m, x: x + m.a(x).mean(0, keepdim=True).tanh(),
    "state-space skip": state_space,
    "linear state-space skip": lambda m, x: torch.fft.ifft(torch.fft.fft(x) * m.bias).real + x * m.alpha,
    "gated skip": lambda m, x: torch.tanh(m.a(x)) + x * torch.sigmoid(m.b(x)),
    "squashed skip": lambda m, x: torch.tanh(m.a(x)) + torch.tanh(x) * 0.5,
    "shape of another, expanded": lambda m, x: x + m.table(torch.arange(WIDTH))[:3].expand_as(x),
    "shape of another, ones": lambda m, x: x + m.a(torch.ones_like(x)),
    "shape of another, new": lambda m, x: x + m.a(x.new_ones(x.shape)),
    "type of another": lambda m, x: x + m.table(torch.arange(3)).type_as(x).to(x).view_as(x),
    "attention scores": attention_scores,
    "gated contexts": gated_contexts,
    "biases by segment": segment_biases,
    "shuffled skip": lambda m, x: torch.tanh(m.a(x)) + x[:, torch.arange(WIDTH - 1, -1, -1)],
}


class Dice(nn.Module):
    """Draws from torch's, numpy's and Python's random numbers, updates a buffer and normalises by batch statistics."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH))
        )
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)
        self.frozen.eval()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        x = self.block(x) * (1 + 0.1 * random.random()) + float(np.random.rand()) * torch.rand(())
        return self.frozen(self.norm(x))


class Raises(nn.Module):
    """Fails in the middle of its forward, deep inside, after the statistics have moved."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = Dice()
        self.block = Residual(Breaks())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.dice(x))


class Breaks(nn.Module):
    """Multiplies shapes that do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) @ torch.ones(WIDTH + 1, WIDTH)


def biased_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """What gets scripted, as fused kernels were: a scripted function is no torch function, and gives no sign of what it reads."""
    return F.gelu(x + bias)


@dataclass
class Graph:
    """A batch that is neither a tensor nor a container."""

    features: Tensor


class GraphNet(nn.Module):
    """A model that is called with an object, whose tensors are its input all the same: without, the projection is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ProjectedResidual(branch(), nn.Linear(WIDTH, WIDTH))

    def forward(self, graph: Graph) -> Tensor:
        return self.block(graph.features)


class Scripted(nn.Module):
    """A branch that runs through a scripted function, and one that is a scripted module."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.bias = nn.Parameter(torch.zeros(2 * WIDTH))
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.biased_gelu = torch.jit.script(biased_gelu)
        self.scripted = torch.jit.script(branch())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.biased_gelu(self.up(x), self.bias))
        return x + self.scripted(x)


class SlicedStream(nn.Module):
    """The first token does not take part: the block takes the same part of its input twice, for skip and for branch."""

    def __init__(self) -> None:
        super().__init__()
        self.f = branch()

    def forward(self, x: Tensor) -> Tensor:
        rest = self.f(x[1:])
        return torch.cat([x[:1], x[1:] + rest])


def stacked(*blocks: nn.Module) -> nn.Module:
    """A linear map, then `blocks`: the first block's path is "1"."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *blocks)


F02 = "fn.0 fn.2"

CASES = (
    *(
        Case(
            f"spelled {spelling}",
            lambda spelling=spelling: stacked(Spelled(spelling)),  # type: ignore[misc]
            vector,
            sites=(identity("1", "f.0 f.2", "1"),),
        )
        for spelling in SPELLINGS
    ),
    *(Case(f"not residual: {name}", lambda sum_=sum_: NotResidual(sum_), vector) for name, sum_ in NOT_RESIDUAL.items()),  # type: ignore[misc]
    Case(
        "residual_wrapper",
        lambda: stacked(Residual(branch()), nn.ReLU(), Residual(branch())),
        vector,
        sites=(identity("1", F02, "1"), identity("3", F02, "3")),
    ),
    Case(
        "residual_sequential",
        lambda: stacked(ResidualSequential(*branch()), ResidualSequential(*branch())),
        vector,
        sites=(identity("1", "0 2", "1"), identity("2", "0 2", "2")),
    ),
    Case(
        "conv_mixer",
        conv_mixer,
        lambda: (torch.randn(2, 3, 8, 8),),
        sites=(identity("2.0", F02, "2.0"), identity("3.0", F02, "3.0")),
    ),
    Case(
        "nested_residuals",
        lambda: stacked(Residual(nn.Sequential(Residual(branch()), nn.GELU(), Residual(branch())))),
        vector,
        sites=(
            identity("1.fn.0", F02, "1.fn.0"),
            identity("1.fn.2", F02, "1.fn.2"),
            identity("1", "fn.0.fn.0 fn.0.fn.2 fn.2.fn.0 fn.2.fn.2", "1"),
        ),
    ),
    Case(
        "residual_over_attention",
        lambda: stacked(Residual(SelfAttention())),
        lambda: (torch.randn(2, 4, WIDTH),),
        sites=(identity("1", "fn.mha fn.mha.out_proj", "1"),),
    ),
    Case(
        "functional_only",
        lambda: stacked(FunctionalBlock(), FunctionalBlock()),
        vector,
        sites=(identity("1", ".", "1"), identity("2", ".", "2")),
    ),
    Case("functional_root", FunctionalBlock, vector, sites=(identity("FunctionalBlock", "."),)),
    Case(
        "functional_twice", lambda: stacked(FunctionalTwice()), vector, sites=(identity("1", ".", "1"), identity("1#2", ".", "1"))
    ),
    Case(
        "functional_root_twice",
        FunctionalTwice,
        vector,
        sites=(identity("FunctionalTwice", "."), identity("FunctionalTwice#2", ".")),
    ),
    *(
        Case(
            f"checkpointed_{'reentrant' if reentrant else 'non_reentrant'}",
            lambda reentrant=reentrant: Checkpointed(reentrant),  # type: ignore[misc]
            vector,
            sites=(identity("blocks.0", F02, "blocks.0"), identity("blocks.1", F02, "blocks.1")),
        )
        for reentrant in (True, False)
    ),
    *(
        Case(
            f"checkpointed_branch_{'reentrant' if reentrant else 'non_reentrant'}",
            lambda reentrant=reentrant: stacked(CheckpointedBranch(reentrant)),  # type: ignore[misc]
            vector,
            sites=(identity("1", "norm f.0 f.2", "1"),),
        )
        for reentrant in (True, False)
    ),
    Case(
        "custom_function_module",
        lambda: stacked(Residual(nn.Sequential(nn.Linear(WIDTH, WIDTH), SquareModule(), nn.Linear(WIDTH, WIDTH)))),
        vector,
        sites=(identity("1", F02, "1"),),
    ),
    Case("custom_function_inline", lambda: stacked(CustomInline()), vector, sites=(identity("1", "fc .", "1"),)),
    Case(
        "weight_norm",
        lambda: parametrised(nn.utils.parametrizations.weight_norm),
        vector,
        sites=(identity("1", "fn.0 fn.2", "1"),),
    ),
    Case(
        "spectral_norm",
        lambda: parametrised(nn.utils.parametrizations.spectral_norm),
        vector,
        sites=(identity("1", "fn.0 fn.2", "1"),),
    ),
    Case(
        "spectral_norm_by_hook",
        lambda: parametrised(nn.utils.spectral_norm),
        vector,
        sites=(identity("1", "fn.0 fn.2", "1"),),
    ),
    Case(
        "bfloat16",
        lambda: stacked(Residual(branch()), Residual(branch())).bfloat16(),
        lambda: (vector()[0].bfloat16(),),
        sites=(identity("1", F02, "1"), identity("2", F02, "2")),
    ),
    *(
        Case(
            f"autocast_{'cast' if cast else 'promoted'}",
            lambda cast=cast: Autocast(cast),  # type: ignore[misc]
            vector,
            sites=(identity("blocks", "blocks.0.0 blocks.0.2"), identity("blocks#2", "blocks.1.0 blocks.1.2")),
        )
        for cast in (True, False)
    ),
    Case(
        "keywords_and_dicts",
        DictNet,
        keywords=lambda: {"batch": {"features": vector()[0]}, "scale": 2.0},
        sites=(identity("block", F02, "block"),),
    ),
    Case(
        "list_of_streams",
        ListNet,
        vector,
        sites=(identity("mix.fs", "fs.0.0 fs.0.2", "mix"), identity("mix.fs#2", "fs.1.0 fs.1.2", "mix")),
    ),
    Case(
        "projection_wrapper",
        lambda: stacked(
            ProjectedResidual(branch(), nn.Linear(WIDTH, WIDTH)), nn.ReLU(), ProjectedResidual(branch(), nn.Identity())
        ),
        vector,
        sites=(projection("1", "fn.0 fn.2", "shortcut", "1"), identity("3", "fn.0 fn.2", "3")),
    ),
    Case(
        "class_conditional",
        ConditionalNet,
        lambda: (*vector(), torch.tensor([0, 3, 4])),
        sites=(identity("blocks.0", "fc1 fc2", "blocks.0"), identity("blocks.1", "fc1 fc2", "blocks.1")),
    ),
    Case(
        "scripted_parts",
        lambda: stacked(Scripted()),
        vector,
        sites=(identity("1.down", "up . down", "1"), identity("1.scripted", "scripted.0 scripted.2", "1")),
    ),
    Case(
        "multiplying",
        multiplying,
        vector,
        sites=(
            identity("1", "f.0 f.2 .", "1"),
            projection("2", "f.0 f.2", ".", "2"),
            identity("3", "f.0 f.2", "3"),
            projection("4", "f.0 f.2 .", ".", "4"),
        ),
    ),
    Case("sliced_stream", lambda: stacked(SlicedStream()), vector, sites=(identity("1", "f.0 f.2", "1"),)),
    Case(
        "batch_object",
        GraphNet,
        lambda: (Graph(*vector()),),
        sites=(projection("block", "fn.0 fn.2", "shortcut", "block"),),
    ),
    Case("dice", Dice, vector, sites=(identity("block", "fn.0 fn.1 fn.3", "block"),)),
)
