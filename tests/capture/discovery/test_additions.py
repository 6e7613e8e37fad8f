"""Additions that are no plain `+`: those that multiply in the same call are measured, those hidden in another function are told."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import resmon
from resmon.capture.discovery.sites import look
from resmon.records import BLOCK_VALUES, ResidualSite
from tests.capture import loops

WIDTH = 12
SKIP, BRANCH, OUTPUT, OUTPUT_GRADIENT = map(
    BLOCK_VALUES.index, ("skip_square", "branch_square", "output_square", "output_gradient_square")
)
ROWS = torch.tensor([0, 2])


class Block(nn.Module):
    """A block whose addition is `add`, which is given the block, its input and its branch."""

    def __init__(self, add: Callable[[Block, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.gamma = nn.Parameter(torch.linspace(0.1, 1.2, WIDTH))
        self.share = nn.Parameter(torch.tensor(0.3))
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.part = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
        self.survival = 0.5
        self.add = add
        self.kept: list[Tensor] = []  # input, branch and output of the newest pass
        self.gradient = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        branch = self.f(x)
        kept = [x.detach().clone(), branch.detach().clone()]
        y = self.add(self, x, branch)
        if y.requires_grad:
            y.register_hook(self._arrived)
        self.kept = [*kept, y.detach().clone()]
        return y

    def _arrived(self, gradient: Tensor) -> None:
        self.gradient = gradient.clone()


def model(add: Callable[[Block, Tensor, Tensor], Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), Block(add), nn.Linear(WIDTH, 3))


def batch(seed: int = 0) -> Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))


# How it is written; its kind; and skip and branch in float64, from the block, its input and its branch.
Reference = Callable[[Block, Tensor, Tensor], tuple[Tensor, Tensor]]
MEASURED: dict[str, tuple[Callable[[Block, Tensor, Tensor], Tensor], str, Reference]] = {
    "addcmul": (lambda m, x, f: torch.addcmul(x, m.gamma, f), "identity", lambda m, x, f: (x, m.gamma.double() * f)),
    "addcmul, scaled": (
        lambda m, x, f: x.addcmul(f, m.gamma, value=0.25),
        "identity",
        lambda m, x, f: (x, 0.25 * m.gamma.double() * f),
    ),
    "addcmul in place, by keywords": (
        lambda m, x, f: x.clone().addcmul_(tensor1=m.gamma, tensor2=f),
        "identity",
        lambda m, x, f: (x, m.gamma.double() * f),
    ),
    "addcdiv": (lambda m, x, f: torch.addcdiv(x, f, m.gamma), "identity", lambda m, x, f: (x, f / m.gamma.double())),
    "lerp": (lambda m, x, f: torch.lerp(x, f, 0.3), "identity", lambda m, x, f: (0.7 * x, 0.3 * f)),
    "lerp, the other way": (lambda m, x, f: f.lerp(end=x, weight=0.75), "identity", lambda m, x, f: (0.75 * x, 0.25 * f)),
    "lerp by a learned number": (
        lambda m, x, f: torch.lerp(x, f, m.share),
        "projection",
        lambda m, x, f: ((1 - m.share.double()) * x, m.share.double() * f),
    ),
    "lerp by learned numbers": (
        lambda m, x, f: torch.lerp(x, f, m.gamma),
        "projection",
        lambda m, x, f: ((1 - m.gamma.double()) * x, m.gamma.double() * f),
    ),
    "alpha that changes": (
        lambda m, x, f: torch.add(x, f, alpha=m.survival),
        "identity",
        lambda m, x, f: (x, m.survival * f),
    ),
    "lerp by a number that changes": (
        lambda m, x, f: torch.lerp(x, f, m.survival),
        "identity",
        lambda m, x, f: ((1 - m.survival) * x, m.survival * f),
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_operands_are_those_of_the_very_call(name: str) -> None:
    add, kind, reference = MEASURED[name]
    net = model(add)
    block = net[1]
    assert isinstance(block, Block)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    _, sink = loops.watch(net, optimizer)
    for step in range(4):
        block.survival = 1 - step / 10
        before = [p.detach().clone() for p in (block.gamma, block.share)]
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        x, branch, y = (tensor.double() for tensor in block.kept)
        with torch.no_grad():
            skip, added = reference(block, x, branch)
        torch.testing.assert_close(skip + added, y, rtol=1e-5, atol=1e-6)
        gradient = block.gradient.double()
        optimizer.step()
        assert any(not torch.equal(*pair) for pair in zip(before, (block.gamma, block.share), strict=True)) or "learned" not in name
        record = sink.newest
        expected = [float(t.square().sum()) for t in (skip, added, y, gradient)]
        assert record.blocks[[SKIP, BRANCH, OUTPUT, OUTPUT_GRADIENT], 0] == pytest.approx(expected, rel=1e-5)
        assert record.errors_total == 0
    assert [(site.name, site.kind, site.observed) for site in sink.now] == [("1", kind, "mode")]


@pytest.mark.parametrize("name", MEASURED)
def test_training_is_the_same_to_the_last_bit(name: str) -> None:
    def train(watched: bool) -> tuple[list[float], list[Tensor]]:
        net = model(MEASURED[name][0])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if watched:
            loops.watch(net, optimizer)
        losses = []
        for step in range(4):
            optimizer.zero_grad()
            loss = net(batch(step)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, [p.detach() for p in net.parameters()]

    (losses, weights), (others, theirs) = train(watched=True), train(watched=False)
    assert losses == others
    assert all(torch.equal(*pair) for pair in zip(weights, theirs, strict=True))


def updated(x: Tensor, update: Callable[[Tensor], Any]) -> Tensor:
    """`x` after an update in place, of a copy."""
    y = x.clone()
    update(y)
    return y


def added_in_place(index: Any, f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def add(y: Tensor) -> None:
        y[index] += f(y[index])

    return add


def added_in_part(index: Any, branch: Tensor) -> Callable[[Tensor], None]:
    """Of a branch that has read the whole stream."""

    def add(y: Tensor) -> None:
        y[index] += branch[index]

    return add


FEW = (slice(None), slice(4))


@pytest.mark.parametrize(
    ("add", "shape"),
    [
        (lambda m, x, _: updated(x, added_in_place((slice(None), slice(4)), m.part)), (5, 4)),
        (lambda m, x, _: updated(x, lambda y: y[:, :4].add_(m.part(x[:, :4]))), (5, 4)),
        (lambda m, x, _: updated(x, added_in_place(ROWS, m.f)), (2, WIDTH)),
        (lambda m, x, _: updated(x, added_in_place(x[:, 0] > x[:, 0].median(), m.f)), (2, WIDTH)),
        (lambda _, x, f: updated(x, added_in_part(FEW, f)), (5, 4)),
        (lambda _, x, f: updated(x, added_in_part(ROWS, f)), (2, WIDTH)),
        (lambda _, x, f: updated(x, lambda y: y.narrow(1, 2, 4).add_(f[:, 8:])), (5, 4)),
    ],
    ids=[
        "slice",
        "slice of a copy",
        "rows",
        "mask, computed twice",
        "slice, of what the whole gave",
        "rows, of what the whole gave",
        "another part of what the whole gave",
    ],
)
def test_a_part_of_the_stream_may_have_a_branch(add: Any, shape: tuple[int, ...]) -> None:
    assert [(site.name, site.kind, site.shape) for site in resmon.discover(model(add), batch())] == [("1", "identity", shape)]


@pytest.mark.parametrize("index", [FEW, ROWS], ids=["slice", "rows"])
def test_what_is_added_into_a_part_is_measured(index: Any) -> None:
    net = model(lambda _, x, f: updated(x, added_in_part(index, f)))
    block = net[1]
    assert isinstance(block, Block)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    _, sink = loops.watch(net, optimizer)
    for step in range(3):
        optimizer.zero_grad()
        net(batch(step)).square().mean().backward()
        x, branch, y = (tensor.double()[index] for tensor in block.kept)
        optimizer.step()
        expected = [float(t.square().sum()) for t in (x, branch, y)]
        assert sink.newest.blocks[[SKIP, BRANCH, OUTPUT], 0] == pytest.approx(expected, rel=1e-5)
        assert sink.newest.errors_total == 0


@pytest.mark.parametrize(
    "add",
    [
        lambda m, x, f: torch.lerp(x, f, torch.sigmoid(m.gate(x))),
        lambda _, x, f: torch.cat([x[:, :4], x[:, 4:] + f[:, 4:]], 1),
        lambda m, x, _: updated(x, added_in_part(FEW, x.roll(1, 0) * m.gamma)),
        lambda m, x, _: torch.lerp(x, x.roll(1, 0), m.gamma),
        lambda m, x, f: torch.addcmul(m.gamma.expand_as(x), x, f),
        lambda m, x, _: torch.addcmul(x, m.gamma, x),
        lambda m, x, _: F.linear(x, m.gate.weight, m.gate.bias),
        lambda m, x, _: torch.addmm(m.gate.bias, x, m.gate.weight),
        lambda m, x, _: torch.addmm(m.gate(x), x, m.part[0].weight.repeat(3, 3)),
        lambda _, x, f: torch.addmm(x, f, torch.eye(WIDTH), beta=0),
        lambda _, x, f: torch.zeros_like(x).index_add(0, ROWS, f[ROWS]),
        lambda _, x, f: x.index_put((ROWS,), f[ROWS]),
        lambda _, x, f: x.scatter_reduce(0, ROWS[:, None].expand(2, WIDTH), f[ROWS], "amax"),
        lambda m, x, f: torch.stack([torch.tanh(m.gate(x)), f]).sum(0),
        lambda _, x, f: f - x,
        lambda _, x, f: (x - f).square() * 2,
        lambda m, x, f: f - torch.sigmoid(m.gate(x)) * (f - x),
        lambda _, x, f: torch.stack([x, f]).sum() * torch.ones(1, WIDTH),
    ],
    ids=[
        "gate",
        "coupling",
        "token shift in part",
        "token shift",
        "gated constant",
        "elementwise",
        "linear",
        "linear by hand",
        "low rank adapter",
        "no skip",
        "gathered",
        "put",
        "largest",
        "siblings",
        "branch less its input",
        "error",
        "gate by differences",
        "loss",
    ],
)
def test_what_is_no_residual_addition_is_neither_listed_nor_told(add: Any) -> None:
    assert look(model(add), (batch(),), {}) == ([], [])


class Opaque(torch.autograd.Function):
    """A kernel whose work no torch function shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() + f.numpy())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0]


@torch.jit.script
def scripted(f: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return x + torch.dropout(f + bias, 0.1, True)


@torch.library.custom_op("resmon_tests::add_and_normalise", mutates_args=())
def kernel(x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    return x + f, F.layer_norm(x + f, x.shape[-1:])


kernel.register_autograd(lambda ctx, sum_, normal: (sum_ + normal, sum_ + normal), setup_context=lambda ctx, inputs, output: None)


def test_what_is_added_to_itself_through_a_weight_is_told() -> None:
    """As GCNII's layers do."""
    sites, told = warned(model(lambda m, x, f: torch.addmm(x, x, m.gate.weight, beta=0.5, alpha=0.5)))
    assert sites == []
    assert told and told[0].startswith("addmm in 1 adds a branch to a residual stream")


def spread(rows: Tensor) -> Tensor:
    return rows[:, None].expand(len(rows), WIDTH)


HIDDEN: dict[str, Callable[[Block, Tensor, Tensor], Tensor]] = {
    "addmm": lambda m, x, f: torch.addmm(x, f, m.gate.weight),
    "baddbmm": lambda m, x, f: torch.baddbmm(x[None], f[None], m.gate.weight[None])[0],
    "index_add": lambda _, x, f: x.index_add(0, ROWS, f[ROWS]),
    "index_add_": lambda _, x, f: x.clone().index_add_(0, ROWS, f[ROWS]),
    "scatter_add": lambda _, x, f: x.scatter_add(0, spread(ROWS), f[ROWS]),
    "scatter_reduce": lambda _, x, f: x.scatter_reduce(0, spread(ROWS), f[ROWS], "sum"),
    "index_put": lambda _, x, f: x.index_put((ROWS,), f[ROWS], accumulate=True),
    "sub": lambda _, x, f: x - f,
    "subtract": lambda _, x, f: torch.subtract(x, f),
    "sum": lambda _, x, f: torch.stack([f, x]).sum(0),
    "mean": lambda _, x, f: torch.stack([x, f], -1).mean(-1),
    "einsum": lambda m, x, f: torch.einsum("n,nbd->bd", m.gamma[:2], torch.stack([x, f])),
    "Opaque": lambda _, x, f: Opaque.apply(x, f),  # type: ignore[no-untyped-call, no-any-return]
    "TorchScript or an extension": lambda m, x, f: scripted(f, m.gamma, x),
    "resmon_tests.add_and_normalise.default": lambda _, x, f: kernel(x, f)[1],
}


def warned(net: nn.Module) -> tuple[list[ResidualSite], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sites = resmon.discover(net, batch())
    return sites, [str(warning.message) for warning in caught if warning.category is UserWarning]


@pytest.mark.parametrize("operation", HIDDEN)
def test_a_residual_addition_inside_of_another_function_is_told(operation: str) -> None:
    sites, told = warned(model(HIDDEN[operation]))
    assert sites == []
    (sentence,) = told
    assert sentence.startswith(f"{operation} in 1")
    assert "resmon.residual_add(skip, " in sentence


@pytest.mark.parametrize(
    "mark",
    [
        lambda _, x, f: resmon.residual_add(x, f, output=Opaque.apply(x, f)),  # type: ignore[no-untyped-call]
        lambda m, x, f: resmon.residual_add(x, f @ m.gate.weight),
        lambda m, x, f: resmon.residual_add(x, f, output=scripted(f, m.gamma, x)),
    ],
    ids=["kernel", "product", "script"],
)
def test_what_is_marked_is_a_site_and_told_no_more(mark: Any) -> None:
    sites, told = warned(model(mark))
    assert ([site.kind for site in sites], told) == (["marked"], [])


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["addcmul", "addcdiv", "lerp by learned numbers"])
def test_nothing_is_computed_of_tensors_that_are_spread_over_ranks(name: str, alone: DeviceMesh) -> None:
    """It could be a collective, which only the ranks that are watched would issue."""
    net = model(MEASURED[name][0])
    for module in net.modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[key] = nn.Parameter(distribute_tensor(parameter.detach(), alone, [Replicate()]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    _, sink = loops.watch(net, optimizer)
    x = distribute_tensor(batch(), alone, [Shard(0)])
    _, unseen = look(net, (x,), {})
    assert [each.operation for each in unseen] == [name.split()[0]]
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert sink.now == ()
    assert sink.newest.errors_total == 0


def test_watch_tells_it_once_however_many_blocks_there_are(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Block(HIDDEN["addmm"]) for _ in range(5)), nn.Linear(WIDTH, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING):
        loops.watch(net, optimizer)
        for step in range(3):
            optimizer.zero_grad()
            net(batch(step)).square().mean().backward()
            optimizer.step()
    (told,) = [record.getMessage() for record in caplog.records if "addmm" in record.getMessage()]
    assert "addmm in 1, 2, 3 and 2 more adds a branch to a residual stream" in told


def test_what_is_excluded_is_not_told() -> None:
    net = model(HIDDEN["addmm"])
    assert look(net, (batch(),), {}, exclude=("1",)) == ([], [])
    assert [each.module for each in look(net, (batch(),), {})[1]] == ["1"]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    ("add", "says"),
    [
        (lambda x, f: resmon.residual_add(None, f), "skip a NoneType, branch a Tensor"),  # type: ignore[arg-type]
        (lambda x, f: resmon.residual_add(x, None), "skip a Tensor, branch a NoneType"),  # type: ignore[arg-type]
        (lambda x, f: resmon.residual_add(x, [f]), "skip a Tensor, branch a list"),  # type: ignore[arg-type]
        (lambda x, f: resmon.residual_add(x, f, output=(x, f)), "branch a Tensor, output a tuple"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_tensor_cannot_be_added(add: Callable[[Tensor, Tensor], Tensor], says: str, watched: bool) -> None:
    net = model(lambda _, x, f: add(x, f))
    if watched:
        loops.watch(net, None)
    with pytest.raises(
        resmon.ConfigurationError, match=rf"{says}.*Pass the two tensors as y = resmon.residual_add\(skip, branch\)"
    ):
        net(batch())


def test_a_branch_may_be_a_number() -> None:
    x = batch()
    assert torch.equal(resmon.residual_add(x, 0.5), x + 0.5)  # type: ignore[arg-type]
