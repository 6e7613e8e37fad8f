"""Compiled models: what is recorded, against the same weights in float64 without torch.compile; and what compiling costs them."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.output_code import CompiledFxGraph
from torch.utils.checkpoint import checkpoint

import resmon
from resmon.capture.host import compiler
from resmon.capture.loop.session import Session
from resmon.capture.probes import cells, entrance
from resmon.records import StepRecord
from tests.capture import loops
from tests.capture.loop.test_session import BRANCH, GRADIENT, OUTPUT, OUTPUT_GRADIENT, SKIP
from tests.capture.loops import Memory

pytestmark = pytest.mark.usefixtures("fresh_compiler")

WIDTH = 16
Loss = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """Its operands are module outputs, or (`functional`) hidden from hooks by a dropout that keeps everything."""

    def __init__(self, width: int, functional: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(width, width)
        self.functional = functional
        self.skipping = False

    def branch(self, x: Tensor) -> Tensor:
        h: Tensor = self.fc2(self.act(self.fc1(self.norm(x))))
        return F.dropout(h, 0.0, self.training) if self.functional else h

    def forward(self, x: Tensor) -> Tensor:
        return x if self.skipping else x + self.branch(x)


class InPlaceBlock(Block):
    """As torchvision writes it: the sum in the branch's place, and ReLU in place on the sum."""

    def __init__(self, width: int, functional: bool = False) -> None:
        super().__init__(width, functional)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += x
        return self.relu(out)


class Net(nn.Module):
    """`reentrant` says by which kind of checkpoint blocks are called, if by any."""

    def __init__(self, blocks: int = 3, functional: bool = False, kind: type[Block] = Block, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(kind(width, functional) for _ in range(blocks))
        self.head = nn.Linear(width, 4)
        self.reentrant: bool | None = None
        self.order: Sequence[int] = range(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in self.order:
            block = self.blocks[i]
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def loss_of(module: nn.Module) -> Loss:
    return lambda x: module(x).square().mean()


# -- ways to compile -----------------------------------------------------------------------------------------------------


def whole(**options: Any) -> Callable[[Net], Loss]:
    return lambda model: loss_of(torch.compile(model, backend="aot_eager", **options))


def in_place(model: Net) -> Loss:
    model.compile(backend="aot_eager")
    return loss_of(model)


def by_block(model: Net) -> Loss:
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return loss_of(model)


def blocks_replaced(model: Net) -> Loss:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block, backend="aot_eager")
    return loss_of(model)


def in_a_function(**options: Any) -> Callable[[Net], Loss]:
    return lambda model: torch.compile(loss_of(model), backend="aot_eager", **options)


WAYS = {
    "torch.compile": whole(),
    "fullgraph": whole(fullgraph=True),
    "dynamic": whole(dynamic=True),
    "in place": in_place,
    "by block": by_block,
    "blocks replaced": blocks_replaced,
    "function": in_a_function(),
    "function, fullgraph": in_a_function(fullgraph=True),
}


# Each compiles for some seconds: those that differ most by default, the others with `make test-slow`.
MAIN = ("torch.compile", "by block", "function")
EVERY_WAY = [pytest.param(way, marks=() if way in MAIN else pytest.mark.slow) for way in WAYS]
ONE_WAY_OF_ALL = [pytest.param(way, marks=() if way == "torch.compile" else pytest.mark.slow) for way in WAYS]
ONE_WAY_OF_MAIN = [pytest.param(way, marks=() if way == "torch.compile" else pytest.mark.slow) for way in MAIN]


# -- what is true --------------------------------------------------------------------------------------------------------


def truth(model: Net, batches: Sequence[Tensor]) -> dict[int, np.ndarray]:
    """Per site the squares, by the same weights in float64, block by block and by hand."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    model.double()
    calls = [i for i in model.order if not model.blocks[i].skipping]
    squares = np.zeros((5, len(calls)))
    groups = [[p for n, p in getattr(model.blocks[i], "_orig_mod", model.blocks[i]).named_parameters()] for i in calls]
    for batch in batches:
        x = model.stem(batch.double())
        sums = []
        for place, i in enumerate(calls):
            block = getattr(model.blocks[i], "_orig_mod", model.blocks[i])
            branch = block.branch(x)
            total = x + branch
            total.retain_grad()
            sums.append(total)
            for row, tensor in ((SKIP, x), (BRANCH, branch), (OUTPUT, total)):
                squares[row, place] += float(tensor.detach().square().sum())
            x = F.relu(total) if isinstance(block, InPlaceBlock) else total
        (model.head(x).square().mean() / len(batches)).backward()
        for place, total in enumerate(sums):
            assert total.grad is not None
            squares[OUTPUT_GRADIENT, place] += float(total.grad.square().sum())
    for place, group in enumerate(groups):
        squares[GRADIENT, place] = sum(float(p.grad.square().sum()) for p in group if p.grad is not None)
    return {"squares": squares, "elements": sum(b.numel() // b.shape[-1] * WIDTH for b in batches)}


def session_of(models: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> Session:
    loops.watching.append(Session(models, optimizer))
    return loops.watching[-1]


class Loop:
    """A training loop over a compiled model, watched or bare."""

    def __init__(self, model: Net, way: Callable[[Net], Loss], *, watched: bool = True, attach: bool = True) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.sink = Memory()
        self.session = session_of({"": model}, self.optimizer)
        if watched and attach:
            self.session.attach(self.sink)
        self.loss = way(model)
        self.losses: list[float] = []

    def step(self, *batches: Tensor) -> StepRecord | None:
        self.optimizer.zero_grad()
        for batch in batches:
            loss = self.loss(batch) / len(batches)
            loss.backward()
            self.losses.append(loss.item())
        self.optimizer.step()
        return self.sink.steps[-1] if self.sink.steps else None

    def checked_step(self, *batches: Tensor, rel: float = 1e-4) -> StepRecord:
        expected = truth(self.model, batches)
        record = self.step(*batches)
        assert record is not None
        np.testing.assert_allclose(record.blocks[:5], expected["squares"], rtol=rel)
        assert record.blocks_present[:5].all()
        assert (record.counts[0] == expected["elements"]).all()
        assert not record.counts[1:].any() and record.errors_total == 0
        return record


def batch(rows: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def counted() -> dict[str, int]:
    stats = counters["stats"]
    return {"graphs": stats["unique_graphs"], "calls": stats["calls_captured"], "breaks": sum(counters["graph_break"].values())}


def bare(model: Net, way: Callable[[Net], Loss], *batches: Tensor) -> tuple[dict[str, int], list[float]]:
    """What compiling the same training counts without us, and its losses."""
    torch._dynamo.reset()
    counters.clear()
    loop = Loop(copy.deepcopy(model), way, watched=False)
    for each in batches:
        loop.step(each)
    numbers = counted()
    torch._dynamo.reset()
    counters.clear()
    return numbers, loop.losses


# -- values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("functional", [False, True], ids=["hooks", "mode"])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_values_are_true_and_nothing_breaks(way: str, functional: bool) -> None:
    model = Net(functional=functional)
    rows = [4, 4, 6, 9, 9] if way == "dynamic" else [4, 4, 4, 4]
    batches = [batch(n, i) for i, n in enumerate(rows)]
    without, losses = bare(model, WAYS[way], *batches)
    loop = Loop(model, WAYS[way])
    for each in batches:
        loop.checked_step(each)
    assert {site.observed for site in loop.sink.now} == {"mode" if functional else "hooks"}
    assert [site.name for site in loop.sink.now] == ["blocks.0", "blocks.1", "blocks.2"]
    with_us = counted()
    assert (with_us["graphs"], with_us["breaks"]) == (without["graphs"], without["breaks"]) == (1, 0)
    assert with_us["calls"] > without["calls"]  # ours are in the same graph
    assert loop.losses == losses


def test_inductor_and_a_sample_of_larger_tensors() -> None:
    model = Net(blocks=2)
    loop = Loop(model, lambda m: loss_of(torch.compile(m)))
    for _ in range(3):
        record = loop.checked_step(torch.randn(40, 5, WIDTH))
    assert counted()["graphs"] == 1
    assert record.magnitude_buckets.sum(axis=1).tolist() == pytest.approx([3 * 1024] * 2, rel=0.2)


def _each_block(model: Net) -> Loss:
    for block in model.blocks:
        block.compile()
    return loss_of(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(lambda model: loss_of(torch.compile(model)), id="whole"),
        pytest.param(_each_block, id="by block"),
        pytest.param(lambda model: torch.compile(loss_of(model)), id="function"),
    ],
)
def test_what_graphs_change_stays_where_it_is(way: Callable[[Net], Loss], monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph may change in place what keeps its address and nothing else; otherwise mode="reduce-overhead" makes none."""
    made: list[tuple[set[int], set[int]]] = []
    alias, code = cells.alias, CompiledFxGraph.__init__

    def seen(graph: CompiledFxGraph, *args: Any, **kwargs: Any) -> None:
        code(graph, *args, **kwargs)
        how = next(each for each in (*args, *kwargs.values()) if isinstance(each, dict) and "static_input_idxs" in each)
        made.append((set(graph.mutated_input_idxs), set(how["static_input_idxs"])))

    def marked(tensor: Tensor) -> Tensor:  # as on a GPU
        found = alias(tensor)
        torch._dynamo.mark_static_address(found)
        return found

    monkeypatch.setattr(CompiledFxGraph, "__init__", seen)
    monkeypatch.setattr(cells, "alias", marked)
    monkeypatch.setattr(entrance, "alias", marked)
    loop = Loop(Net(), way)
    with torch.compiler.config.patch(force_disable_caches=True):
        for i in range(3):
            loop.step(batch(seed=i))
    assert any(changed for changed, _ in made)
    assert all(changed <= stays for changed, stays in made)


def test_the_sample_is_like_the_tensor() -> None:
    model = Net(blocks=1, width=32)
    loop = Loop(model, whole())
    x = torch.randn(64, 8, 32)
    eager = loop.step(x)
    assert eager is not None
    with torch.no_grad():
        h = model.stem(x)
        values = (h + model.blocks[0].branch(h)).abs().flatten()
    compiled = loop.step(x)
    assert compiled is not None
    taken = (compiled.magnitude_buckets - eager.magnitude_buckets)[0]
    assert taken.sum() == 1024
    assert (compiled.magnitude_sum - eager.magnitude_sum)[0] / 1024 == pytest.approx(float(values.mean()), rel=0.1)
    exponents = np.frexp(values.numpy())[1]
    for column in range(44):
        share = np.mean(exponents == column - 20)
        assert taken[column] / 1024 == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("way", ONE_WAY_OF_MAIN)
def test_a_sum_changed_in_place_after_it_was_made(way: str) -> None:
    loop = Loop(Net(kind=InPlaceBlock), WAYS[way])
    for i in range(3):
        loop.checked_step(batch(seed=i))
    assert counted()["breaks"] == 0


@pytest.mark.parametrize("way", ONE_WAY_OF_MAIN)
def test_half_precision(way: str) -> None:
    model = Net()
    watched = Loop(model, lambda m: (lambda loss: lambda x: _autocast(loss, x))(WAYS[way](m)))
    for i in range(3):
        expected = truth(model, [batch(seed=i)])["squares"]
        record = watched.step(batch(seed=i))
        assert record is not None
        np.testing.assert_allclose(record.blocks[:5], expected, rtol=0.05)


def _autocast(loss: Loss, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return loss(x)


@pytest.mark.parametrize("way", ONE_WAY_OF_MAIN)
def test_nonfinite_elements_are_counted(way: str) -> None:
    model = Net()
    loop = Loop(model, WAYS[way])
    loop.step(batch())
    x = batch()
    with torch.no_grad():
        model.blocks[1].fc2.bias[3] = torch.inf  # one element of each of 4 rows; the norm after it makes all of them NaN
    record = loop.step(x)
    assert record is not None
    assert record.counts[1].tolist() == [0, 4, 4 * WIDTH]
    assert record.counts[2, 2] == 4 * WIDTH
    assert record.nonfinite_steps.tolist() == [1, 1, 1]
    assert np.isinf(record.blocks[OUTPUT, 1]) and np.isfinite(record.blocks[OUTPUT, 0])


# -- which passes count --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ONE_WAY_OF_MAIN)
def test_several_passes_of_a_step_add_up(way: str) -> None:
    loop = Loop(Net(), WAYS[way])
    for i in range(3):
        loop.checked_step(*(batch(seed=3 * i + j) for j in range(3)))


@pytest.mark.parametrize("guard", [torch.no_grad, pytest.param(torch.inference_mode, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", ONE_WAY_OF_MAIN)
def test_evaluation_counts_nothing_and_holds_nothing_of_ours(way: str, guard: Any) -> None:
    model = Net()
    loop = Loop(model, WAYS[way])
    loop.checked_step(batch())
    loop.checked_step(batch(seed=1))
    training = counted()
    with guard():
        evaluated = loop.loss(batch(seed=2))
        loop.loss(batch(seed=3))
    calls = counted()["calls"] - training["calls"]
    graphs = counted()["graphs"] - training["graphs"]
    loop.checked_step(batch(seed=4))
    assert counted()["graphs"] - graphs == training["graphs"]  # and training goes on with the graph that it had

    counters.clear()
    torch._dynamo.reset()
    bare_model = Net()
    bare_model.load_state_dict({name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()})
    bare_loss = WAYS[way](bare_model)
    with guard():
        bare_loss(batch(seed=2))
    assert (calls, graphs) == (counted()["calls"], counted()["graphs"])
    assert torch.isfinite(evaluated)


def test_evaluation_first() -> None:
    loop = Loop(Net(), WAYS["torch.compile"])
    with torch.no_grad():
        loop.loss(batch())
    for i in range(3):
        loop.checked_step(batch(seed=i))


@pytest.mark.parametrize("way", ["torch.compile", pytest.param("function", marks=pytest.mark.slow)])
def test_training_long_after_the_first_step(way: str) -> None:
    """A model that the first steps did not train (a critic that starts later) is found, a step late at most."""
    model, other = Net(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    sink = Memory()
    session = session_of({"": model, "other": other}, optimizer)
    session.attach(sink)
    loss = WAYS[way](model)
    for _ in range(2):
        other(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    for i in range(4):
        optimizer.zero_grad()
        expected = truth(model, [batch(seed=i)])["squares"]
        loss(batch(seed=i)).backward()
        optimizer.step()
    np.testing.assert_allclose(sink.steps[-1].blocks[:5], expected, rtol=1e-4)


def test_a_block_that_returns_early_leaves_nothing_behind() -> None:
    loop = Loop(Net(), WAYS["torch.compile"])
    for i, skipping in enumerate([False, False, True, False, True]):
        loop.model.blocks[1].skipping = skipping
        record = loop.step(batch(seed=i))
        assert record is not None
        assert record.counts[0].tolist() == [4 * WIDTH, 0 if skipping else 4 * WIDTH, 4 * WIDTH]


@pytest.mark.parametrize("functional", [False, True], ids=["hooks", "mode"])
def test_one_block_that_serves_several_layers(functional: bool) -> None:
    model = Net(blocks=2, functional=functional)
    model.order = [0, 1, 0, 0]
    loop = Loop(model, WAYS["torch.compile"])
    for i in range(4):
        loop.checked_step(batch(seed=i))
    assert [site.name for site in loop.sink.now] == ["blocks.0", "blocks.1", "blocks.0@2", "blocks.0@3"]
    assert counted()["graphs"] == 1


@pytest.mark.parametrize("functional", [False, True], ids=["hooks", "mode"])
def test_a_block_compiled_by_itself_that_serves_many_layers(functional: bool) -> None:
    """More layers than a function may have graphs: each layer its own graph would mean none at all."""
    model = Net(blocks=2, functional=functional)
    model.order = [0, 1, *[0] * 11]
    without, _ = bare(model, by_block, batch(), batch(seed=1), batch(seed=2))
    loop = Loop(model, by_block)
    for i in range(3):
        loop.checked_step(batch(seed=i))
    assert (
        counted()["graphs"] <= without["graphs"] + 1
    )  # that of the block whose hooks see the add, that of the one whose mode does


class Remembering(Block):
    """Changes a Python object in every forward, as caches do."""

    def __init__(self, width: int, functional: bool = False) -> None:
        super().__init__(width, functional)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.seen.append(len(self.seen))
        return out


@pytest.mark.parametrize("functional", [False, True], ids=["hooks", "mode"])
def test_what_the_model_does_to_python_objects_is_done(functional: bool) -> None:
    model = Net(blocks=2, functional=functional, kind=Remembering)
    model.order = [0, 1, 0, 0]
    loop = Loop(model, whole(fullgraph=True))
    for i in range(3):
        loop.step(batch(seed=i))
        assert [block.seen for block in model.blocks] == [[0, 1, 2], [0]]
        for block in model.blocks:
            block.seen.clear()
    assert counted()["graphs"] == 1


# -- checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint")
@pytest.mark.parametrize("functional", [False, True], ids=["hooks", "mode"])
@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("way", MAIN)
def test_checkpoints_count_once_and_keep_their_graphs(way: str, reentrant: bool, functional: bool) -> None:
    model = Net(functional=functional)
    model.reentrant = reentrant
    batches = [batch(seed=i) for i in range(3)]
    without, losses = bare(model, WAYS[way], *batches)
    loop = Loop(model, WAYS[way])
    plain = copy.deepcopy(model)
    for each in batches:
        plain.load_state_dict({k.replace("_orig_mod.", ""): v for k, v in model.state_dict().items()})
        expected = truth(plain, [each])
        record = loop.step(each)
        assert record is not None
        np.testing.assert_allclose(record.blocks[:5], expected["squares"], rtol=1e-4)
        assert (record.counts[0] == expected["elements"]).all()
    assert (counted()["graphs"], counted()["breaks"]) == (without["graphs"], without["breaks"])
    assert loop.losses == losses


# -- hooks that come late, and other models of the class -----------------------------------------------------------------


@pytest.mark.parametrize("way", ONE_WAY_OF_ALL)
def test_attached_after_the_first_compiled_call(way: str, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(Net(), WAYS[way], attach=False)
    loop.step(batch())
    with caplog.at_level(logging.WARNING, "resmon"):
        loop.session.attach(loop.sink)
        for i in range(1, 4):  # the first of them eagerly
            loop.checked_step(batch(seed=i))
    assert counted()["breaks"] == 0
    assert sum(compiler.TOO_EARLY in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("way", ONE_WAY_OF_MAIN)
def test_another_model_of_the_class_was_compiled_before(way: str) -> None:
    other, model = Net(), Net()
    other_loss = WAYS[way](other)
    loop = Loop(model, WAYS[way])
    for i in range(4):
        other_loss(batch(seed=i)).backward()
        loop.checked_step(batch(seed=i))
    assert all(not module._forward_hooks for module in other.modules())


def test_both_of_two_models_of_a_class_are_watched() -> None:
    models = {"student": Net(), "teacher": Net()}
    optimizer = torch.optim.SGD([p for model in models.values() for p in model.parameters()], lr=0.1)
    sink = Memory()
    session = session_of(models, optimizer)
    session.attach(sink)
    losses = {key: WAYS["torch.compile"](model) for key, model in models.items()}
    for i in range(3):
        optimizer.zero_grad()
        expected = [truth(model, [batch(seed=i)])["squares"] for model in models.values()]
        for loss in losses.values():
            loss(batch(seed=i)).backward()
        optimizer.step()
        np.testing.assert_allclose(sink.steps[-1].blocks[:5], np.concatenate(expected, axis=1), rtol=1e-4)


# -- without a trace -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ONE_WAY_OF_ALL)
def test_closing_leaves_no_trace(way: str) -> None:
    model = Net()
    without, _ = bare(model, WAYS[way], batch(), batch(seed=1))
    loop = Loop(model, WAYS[way])
    loop.step(batch())
    loop.step(batch(seed=1))
    loop.session.detach()
    for module in loop.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    before = counted()
    loop.step(batch(seed=2))
    assert 0 < counted()["calls"] - before["calls"] <= without["calls"]  # made again, without ours
    assert len(loop.sink.steps) == 2


def test_watching_what_torch_compile_gave_back(tmp_path: Any) -> None:
    model = Net()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    with resmon.watch(compiled, optimizer, run="r", directory=tmp_path, agent="off") as monitor:
        for i in range(3):
            optimizer.zero_grad()
            compiled(batch(seed=i)).square().mean().backward()
            optimizer.step()
        assert [site.name for site in monitor.sites] == ["blocks.0", "blocks.1", "blocks.2"]
    flight = resmon.load(tmp_path / "r")
    assert flight.info["models"] == {"": "Net"}
    blocks = flight.blocks()
    assert len(blocks) == 9 and blocks[["skip_rms", "gradient_norm", "output_gradient_norm"]].notna().all(axis=None)


def test_discover_in_a_compiled_model() -> None:
    names = [site.name for site in resmon.discover(torch.compile(Net(), backend="aot_eager"), batch())]
    assert names == ["blocks.0", "blocks.1", "blocks.2"]
    assert counted()["graphs"] == 0


@pytest.mark.parametrize("strict", [False, True])
def test_export_and_copies_of_a_watched_model(strict: bool) -> None:
    loop = Loop(Net(), WAYS["in place"])
    loop.step(batch())
    loop.step(batch(seed=1))
    x = batch(seed=2)
    model = loop.model
    exported = torch.export.export(model, (x,), strict=strict).module()
    torch.testing.assert_close(exported(x), model.forward(x))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), model.forward(x))
        twin(x).sum().backward()
    loop.checked_step(batch(seed=3))


@pytest.mark.parametrize("way", ONE_WAY_OF_MAIN)
def test_a_pass_that_raised_leaves_nothing_behind(way: str) -> None:
    loop = Loop(Net(), WAYS[way])
    loop.step(batch())
    loop.step(batch())
    with pytest.raises(Exception, match=r"shape|size"):
        loop.loss(torch.randn(4, WIDTH + 1))
    loop.checked_step(batch(seed=1))
    assert not compiler.PAUSE


def test_a_compiled_optimizer() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = Memory()
    session = session_of({"": model}, optimizer)
    session.attach(sink)
    loss = WAYS["torch.compile"](model)
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for i in range(4):
        optimizer.zero_grad()
        expected = truth(model, [batch(seed=i)])["squares"]
        loss(batch(seed=i)).backward()
        step()
        assert len(sink.steps) == i + 1
        np.testing.assert_allclose(sink.steps[-1].blocks[:5], expected, rtol=1e-4)
