"""What must not reach the loop while torch.compile traces us: errors of our own, and tensors that graphs cannot read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module, distribute_tensor

from resmon.capture.probes.cells import Cell
from tests.capture.loop.test_session import OUTPUT_GRADIENT
from tests.capture.loops import Memory, watch
from tests.capture.test_compiled import Block, InPlaceBlock, Net, batch, counted

pytestmark = pytest.mark.usefixtures("fresh_compiler")

WAYS = {"hooks": False, "mode": True}


def train(
    build: Callable[[], nn.Module], inputs: Callable[[int], Any], *, watched: bool, steps: int = 4
) -> tuple[list[float], Memory, nn.Module]:
    """Compiled training without a graph break, but for the first step, which a watched model takes eagerly."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = watch(model, optimizer)[1] if watched else Memory()
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    losses = []
    for i in range(steps):
        optimizer.zero_grad()
        output = (call if i or watched else model)(inputs(i))
        loss = (output.to_local() if isinstance(output, DTensor) else output).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, sink, model


def raises(*_: Any) -> None:
    raise ZeroDivisionError("injected")


@pytest.mark.parametrize("functional", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    "method", ["offer", "expect_gradient", *(pytest.param(method, marks=pytest.mark.slow) for method in ("offer_output", "takes"))]
)
def test_an_error_of_ours_in_a_graph(
    method: str, functional: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without, _, _ = train(lambda: Net(functional=functional), lambda i: batch(seed=i), watched=False)
    monkeypatch.setattr(Cell, method, raises)
    with caplog.at_level(logging.WARNING, "resmon"):
        losses, sink, model = train(lambda: Net(functional=functional), lambda i: batch(seed=i), watched=True)
    assert losses == without
    assert [record.errors_total for record in sink.steps] == [0, 1, 1, 1]  # the first step ran eagerly
    assert [bool(record.blocks_present.any()) for record in sink.steps] == [True, False, False, False]
    assert sum("injected" in record.getMessage() for record in caplog.records) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", [Block, pytest.param(InPlaceBlock, marks=pytest.mark.slow)])
@pytest.mark.parametrize("functional", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("shape", [(16,), (2, 0, 16)], ids=str)
def test_shapes_at_the_edge(shape: tuple[int, ...], functional: bool, kind: type[Block]) -> None:
    losses, sink, _ = train(lambda: Net(1, functional, kind), lambda _: torch.ones(shape), watched=True, steps=2)
    assert np.isfinite(losses).all() == (0 not in shape)
    eager, compiled = sink.steps
    assert counted()["graphs"] == 1
    assert (compiled.counts[0] == eager.counts[0]).all() and (compiled.counts[0] == torch.ones(shape).numel()).all()
    assert compiled.blocks_present[:3].all() == (0 not in shape)


class Numbers(nn.Module):
    """Residual adds of tensors without dimensions."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([0.5, 0.25]))
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(F.linear(x[None], self.scales[:1, None]).sum())


def test_tensors_without_dimensions() -> None:
    def build() -> nn.Module:
        return nn.Sequential(Numbers(False), Numbers(True))

    without, _, _ = train(build, lambda i: torch.tensor(1.0 + i), watched=False)
    losses, sink, _ = train(build, lambda i: torch.tensor(1.0 + i), watched=True)
    assert losses == without
    assert [record.counts[0].tolist() for record in sink.steps] == [[]] * 4, "a sum of single numbers is no block"


class Cast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.to)


class Casting(nn.Module):
    """Its branch comes out of a module that may give it another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.cast = Cast()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.cast(torch.tanh(self.fc(x)))
        return x + (branch.float() if branch.dtype is torch.float8_e4m3fn else branch)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32])
def test_a_dtype_that_graphs_do_not_read(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), Casting(), Net(1))

    def trained(watched: bool) -> tuple[list[float], Memory]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sink = watch(model, optimizer)[1] if watched else Memory()
        call = torch.compile(model, backend="aot_eager", fullgraph=True)
        losses = []
        for i in range(4):
            model[1].cast.to = dtype if i else torch.float32
            optimizer.zero_grad()
            loss = (call if i or watched else model)(batch(seed=i)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, sink

    without, _ = trained(watched=False)
    with caplog.at_level(logging.WARNING, "resmon"):
        losses, sink = trained(watched=True)
    assert losses == without
    first, other = sink.now
    assert first.observed.startswith("not observed in compiled code") and str(dtype) in first.observed
    assert other.observed == "hooks"
    assert [record.counts[0].tolist() for record in sink.steps] == [[64, 64], [0, 64], [0, 64], [0, 64]]
    has_gradient = dtype.is_floating_point  # which is read elsewhere
    assert [record.blocks_present[3, 0] for record in sink.steps] == [True] + [has_gradient] * 3
    assert sum("not observed in compiled code" in record.getMessage() for record in caplog.records) == 1
    assert sink.steps[-1].errors_total == 0


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("functional", WAYS.values(), ids=WAYS)
def test_distributed_tensors_in_graphs_are_said_not_to_be_observed(
    mesh: Any, functional: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def build() -> nn.Module:
        model = Net(2)
        for block in model.blocks:
            block.scale = nn.Parameter(torch.ones(16)) if functional else None
        return distribute_module(model, mesh)

    def inputs(i: int) -> Tensor:
        return distribute_tensor(batch(seed=i), mesh, [Replicate()])

    without, _, _ = train(build, inputs, watched=False)
    with caplog.at_level(logging.WARNING, "resmon"):
        losses, sink, _ = train(build, inputs, watched=True)
    assert losses == without
    assert ["DTensor" in site.observed for site in sink.now] == [True, True]
    assert sum("DTensor" in record.getMessage() for record in caplog.records) == 1
    assert sink.steps[0].blocks_present[:5].all()  # eagerly they are read
    assert all(record.blocks_present[:3].any() == (record is sink.steps[0]) for record in sink.steps)


class Otherwise(Block):
    """Adds something more where it is compiled, so that the residual add is not the one with its ordinal."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            x = x + torch.zeros_like(x)
        return super().forward(x)


def test_other_additions_in_compiled_code_than_in_the_traced_pass(caplog: pytest.LogCaptureFixture) -> None:
    """It is looked for again some times, and then no more: each time, all compiled code is made again."""
    without, _, _ = train(lambda: Net(2, functional=True, kind=Otherwise), lambda i: batch(seed=i), watched=False, steps=12)
    with caplog.at_level(logging.WARNING, "resmon"):
        losses, sink, _ = train(lambda: Net(2, functional=True, kind=Otherwise), lambda i: batch(seed=i), watched=True, steps=12)
    assert losses == pytest.approx(without, rel=1e-6)  # some more steps are eager
    present = [bool(record.blocks_present[0].all()) for record in sink.steps]
    assert present == [True, False] * 4 + [False] * 4
    assert all("other additions" in site.observed for site in sink.now)
    assert sum("other additions" in record.getMessage() for record in caplog.records) == 1


def begun(*, watched: bool) -> tuple[Net, torch.optim.Optimizer, Memory]:
    """The same training each time, of which nothing is compiled yet."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, watch(model, optimizer)[1] if watched else Memory()


def test_compiled_autograd_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """It compiles the backward pass, too, and modules are made while it does; torch fails there on graphs that hold our cells."""

    def training(*, watched: bool) -> tuple[list[float], Memory]:
        model, optimizer, sink = begun(watched=watched)

        @torch.compile(backend="aot_eager")
        def backward(x: Tensor) -> Tensor:
            loss: Tensor = model(x).square().mean()
            loss.backward()
            return loss

        losses = []
        for i in range(3):
            optimizer.zero_grad()
            losses.append(backward(batch(seed=i)).item())
            optimizer.step()
        return losses, sink

    with torch._dynamo.config.patch(compiled_autograd=True), caplog.at_level(logging.WARNING, "resmon"):
        bare, _ = training(watched=False)
        losses, sink = training(watched=True)
    assert losses == pytest.approx(bare, rel=1e-6)
    assert all("compiled autograd" in site.observed for site in sink.now) and sink.now
    assert "compiled autograd" in caplog.text
    assert sink.newest.errors_total == 0
    assert (sink.newest.run_value("gradient_square") or 0) > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_autograd_that_a_loop_enters(compiled: bool) -> None:
    """As torch's own loops do, around the forward pass too; there a hook that broke the backward graph would fail the loop."""
    enabled = torch._dynamo.compiled_autograd._enable

    def training(*, watched: bool) -> tuple[list[float], Memory]:
        model, optimizer, sink = begun(watched=watched)
        call = torch.compile(model, backend="aot_eager") if compiled else model
        losses = []
        for i in range(6):
            optimizer.zero_grad()
            with enabled(torch.compile(backend="aot_eager", fullgraph=True)):
                loss = call(batch(seed=i)).square().mean()
                loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, sink

    bare, _ = training(watched=False)
    losses, sink = training(watched=True)
    assert losses == bare
    assert sink.newest.errors_total == 0
    assert (sink.newest.run_value("gradient_square") or 0) > 0
    if compiled:
        assert all("compiled autograd" in site.observed for site in sink.now) and sink.now
    else:
        assert sink.newest.blocks_present[0].all()
        assert any("output_gradient_norm" in said for site in sink.now for said in site.absent)


def test_what_the_loop_clears_between_two_passes_of_a_graph() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, sink = watch(model, optimizer)
    call = torch.compile(model, backend="aot_eager")
    for i in range(3):
        for part in range(2):
            optimizer.zero_grad()
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            call(batch(seed=10 * i + part)).square().mean().backward()
        optimizer.step()
        twin = Net()
        twin.load_state_dict(weights)
        outputs: list[Tensor] = []
        for block in twin.blocks:
            block.register_forward_hook(lambda _, args, output, outputs=outputs: (output.retain_grad(), outputs.append(output))[0])
        twin(batch(seed=10 * i + 1)).square().mean().backward()
        expected = [float(output.grad.double().square().sum()) for output in outputs if output.grad is not None]
        assert sink.newest.blocks[OUTPUT_GRADIENT].tolist() == pytest.approx(expected, rel=1e-4)
