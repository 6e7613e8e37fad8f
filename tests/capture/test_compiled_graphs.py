"""Graphs of rarer kinds: with sizes that are open, of a whole step, and such as run as torch calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

from resmon.capture.probes.cells import Cell
from tests.capture.loops import Memory, watch
from tests.capture.test_compiled import WIDTH, Block, Loop, Loss, Net, bare, batch, counted, loss_of, truth

pytestmark = pytest.mark.usefixtures("fresh_compiler")

# Batches whose sites have fewer elements than are sampled, and more.
ROWS = [4, 3, 200, 2, 70]


class Backend:
    """Counts the graphs that it is given, those made anew for other sizes, too."""

    def __init__(self, runs: str) -> None:
        self.made = 0
        self._runs = torch._dynamo.lookup_backend(runs)

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.made += 1
        return self._runs(graph, inputs)


def unbacked(rows: int, seed: int) -> Tensor:
    """A batch whose size is known from its data alone, as far as the compiler goes."""
    x = batch(rows, seed)
    torch._dynamo.decorators.mark_unbacked(x, 0)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("functional", [False, True], ids=["hooks", "mode"])
@pytest.mark.parametrize("kind", ["dynamic", "function", "unbacked"])
def test_sizes_that_a_graph_leaves_open(kind: str, functional: bool) -> None:
    make = unbacked if kind == "unbacked" else batch
    batches = [make(rows, seed) for seed, rows in enumerate(ROWS)]
    theirs, ours = Backend("aot_eager"), Backend("aot_eager")

    def way(backend: Backend) -> Callable[[Net], Loss]:
        options: dict[str, Any] = {"backend": backend, "fullgraph": True, "dynamic": None if kind == "unbacked" else True}
        if kind == "function":
            return lambda model: torch.compile(loss_of(model), **options)
        return lambda model: loss_of(torch.compile(model, **options))

    model = Net(2, functional)
    _, losses = bare(model, way(theirs), *batches)
    loop = Loop(model, way(ours))
    before = 0
    for each in batches:
        record = loop.checked_step(each)
        taken = int(record.magnitude_buckets.sum()) - before
        assert taken == 2 * min(each.shape[0] * WIDTH, 1024)
        before += taken
    assert ours.made == theirs.made  # the bare model's first step was compiled, too: no graph is made for another size
    assert loop.losses == losses
    if kind == "function":
        assert [r.run_value("samples") for r in loop.sink.steps[1:]] == ROWS[1:]
        assert [r.run_value("input_elements") for r in loop.sink.steps[1:]] == [min(n * WIDTH, 1024) for n in ROWS[1:]]
        few = batches[1].double()  # all of which are summed
        np.testing.assert_allclose(loop.sink.steps[1].run_value("input_square"), float(few.square().sum()), rtol=1e-6)
    loop.session.detach()


class Selecting(nn.Module):
    """A block whose stream is of those rows alone that begin with a number above `least`, which may be none."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(WIDTH)
        self.least = 0.0

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.nonzero(x[:, 0] > self.least).squeeze(-1)
        return x.index_copy(0, rows, self.block(x[rows]))


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str)
def test_rows_that_the_data_select(dtype: torch.dtype) -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        model = Selecting().to(dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        session, sink = watch(model, optimizer)
        call = torch.compile(model, backend="aot_eager", fullgraph=True)
        for seed, shift in enumerate((0, 0, 3, -9, 0)):
            x = (batch(200, seed) + shift).to(dtype)
            selected = x[x[:, 0] > 0]
            call(x).float().square().mean().backward()
            optimizer.step()
            assert sink.newest.counts[0].tolist() == [selected.numel()]
            if len(selected):
                np.testing.assert_allclose(sink.newest.blocks[0, 0], float(selected.double().square().sum()), rtol=1e-4)
        assert len(sink.steps) == 5 and sink.newest.errors_total == 0 and counted()["breaks"] == 0
        session.detach()


def test_a_sample_of_few_is_all_of_them() -> None:
    values = torch.arange(1.0, 5.0)
    numbers, places = torch.zeros(16, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    cell = Cell(numbers, torch.zeros(8), places, drops=False)
    graph = torch.compile(cell.offer_output, backend="aot_eager", dynamic=True, fullgraph=True)
    graph(values)
    assert cell.sample.tolist()[:4] == values.tolist()


# -- a whole step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("functional", [pytest.param(False, marks=pytest.mark.slow), True], ids=["hooks", "mode"])
@pytest.mark.parametrize("how", ["backward", pytest.param("grad", marks=pytest.mark.slow)])
def test_the_backward_pass_inside_of_the_graph(how: str, functional: bool) -> None:
    def train(model: Net, watched: bool) -> tuple[list[float], Memory]:
        torch._dynamo.reset()
        counters.clear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sink = watch(model, optimizer)[1] if watched else Memory()
        parameters = list(model.parameters())

        def run(x: Tensor) -> tuple[Tensor, Any]:
            loss = model(x).square().mean()
            if how == "backward":
                loss.backward()
                return loss.detach(), None
            return loss.detach(), torch.autograd.grad(loss, parameters)

        step = torch.compile(run, backend="aot_eager", fullgraph=True)
        losses = []
        for i in range(4):
            optimizer.zero_grad()
            expected = truth(model, [batch(seed=i)])["squares"]
            loss, gradients = (step if i or watched else run)(batch(seed=i))
            for parameter, gradient in zip(parameters, gradients or (), strict=False):
                parameter.grad = gradient
            optimizer.step()
            losses.append(loss.item())
            if watched:
                np.testing.assert_allclose(sink.newest.blocks[:5], expected, rtol=1e-4)
                assert sink.newest.errors_total == 0
        return losses, sink

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.manual_seed(0)
        bare_losses, _ = train(Net(functional=functional), watched=False)
        without = counted()
        torch.manual_seed(0)
        losses, _ = train(Net(functional=functional), watched=True)
        with_us = counted()
    assert losses == bare_losses
    assert (with_us["graphs"], with_us["breaks"]) == (without["graphs"], without["breaks"]) == (1, 0)


# -- graphs that run as torch calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gm.forward", "gm"))])
@pytest.mark.parametrize("way", ["by block", pytest.param("torch.compile", marks=pytest.mark.slow)])
def test_a_graph_that_runs_as_torch_calls_is_not_counted_twice(way: str, backend: str) -> None:
    runs: Any = {"eager": "eager", "gm.forward": lambda graph, _: graph.forward, "gm": lambda graph, _: graph}[backend]

    def compiled(model: Net) -> Loss:
        if way == "torch.compile":
            return loss_of(torch.compile(model, backend=runs))
        for block in model.blocks:
            block.compile(backend=runs)
        return loss_of(model)

    loop = Loop(Net(functional=True), compiled)
    for i in range(3):
        loop.checked_step(batch(seed=i))
    loop.session.detach()


# -- the loop's own stances ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["first step", pytest.param("watch", marks=pytest.mark.slow)])
def test_what_the_loop_asks_of_the_compiler_ends_when_it_says(around: str) -> None:
    loop = Loop(Net(2), lambda model: loss_of(torch.compile(model, backend="aot_eager")), attach=False)
    if around == "watch":
        with torch.compiler.set_stance("force_eager"):
            loop.session.attach(loop.sink)
        loop.step(batch())  # which compiles, for the loop has said so: it is traced in the next
    else:
        loop.session.attach(loop.sink)
        with torch.compiler.set_stance("force_eager"):
            loop.checked_step(batch())
    for i in range(1, 4):
        loop.checked_step(batch(seed=i))
    assert counted()["graphs"] >= 1 and torch._dynamo.eval_frame._stance.stance == "default"
    loop.session.detach()


# -- regions -------------------------------------------------------------------------------------------------------------


class Region(Block):
    @getattr(torch.compiler, "nested_compile_region", lambda forward: forward)  # torch 2.6 has none, and skips these tests
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def test_a_nested_compile_region_trains_as_if_nobody_looked_and_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def way(model: Net) -> Loss:
        return loss_of(torch.compile(model, backend="aot_eager", fullgraph=True))

    model = Net(2, kind=Region)
    batches = [batch(seed=i) for i in range(3)]
    without, losses = bare(model, way, *batches)
    with caplog.at_level(logging.WARNING, "resmon"):
        loop = Loop(model, way)
        for each in batches:
            loop.step(each)
    with_us = counted()
    assert loop.losses == losses
    assert (with_us["graphs"], with_us["breaks"]) == (without["graphs"], without["breaks"])
    assert [record.blocks_present[:3].all() for record in loop.sink.steps] == [True, False, False]
    assert [record.errors_total for record in loop.sink.steps] == [0, 0, 0]
    assert caplog.text.count("nested_compile_region") == 1
    loop.session.detach()
