"""Batch norms' running statistics, against the batches that the layers were given, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from resmon.capture import _native
from resmon.capture.host import fetch
from resmon.capture.probes.norms import Norms
from resmon.capture.probes.positions import EVERY
from resmon.records import BLOCK_VALUES, Floats
from tests.capture import loops

GAP, VARIANCE, COLLAPSED = map(BLOCK_VALUES.index, ("norm_gap", "norm_variance", "norm_collapsed"))
WIDTH = 6


@pytest.fixture(params=["here", "elsewhere"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read by the native part, or by torch's operations as on an accelerator."""
    if request.param == "elsewhere":
        monkeypatch.setattr(fetch, "is_here", lambda tensor: False)
        monkeypatch.setattr(_native, "running_statistics", lambda layers, whole: None)
    return str(request.param)


def reference(inputs: Sequence[Floats], mean: Floats, variance: Floats, eps: float) -> Floats:
    """Of each channel: how far the inputs [samples, channels] of a step, normalised with these statistics, are from mean 0 and
    standard deviation 1. Of several micro-batches the newest counts most, as it does in running statistics of momentum 0.5.
    """
    weights = np.array([0.5 ** (len(inputs) - i) for i in range(len(inputs))])
    weights /= weights.sum()
    mu = sum(w * each.mean(0) for w, each in zip(weights, inputs, strict=True))
    square = sum(w * each.var(0, ddof=1) for w, each in zip(weights, inputs, strict=True))
    spread = np.sqrt(variance + eps)
    found: Floats = np.hypot((mu - mean) / spread, np.sqrt(square + eps) / spread - 1)
    return found


class Block(nn.Module):
    """A projection block: two batch norms on its branch, of different widths and eps, and one on its projection."""

    def __init__(self, width: int = WIDTH, momentum: float | None = 0.5, inner: type[nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(width, 2 * width), nn.BatchNorm1d(2 * width, momentum=momentum, eps=0.01)
        self.down, self.last = nn.Linear(2 * width, width), inner(width)
        self.last.momentum = momentum  # type: ignore[assignment]
        self.skip, self.skip_norm = nn.Linear(width, width), nn.BatchNorm1d(width, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.last(self.down(torch.relu(self.norm(self.up(x)))))
        y: Tensor = branch + self.skip_norm(self.skip(x))
        return y

    @property
    def norms(self) -> list[nn.BatchNorm1d]:
        return [self.norm, self.last, self.skip_norm]  # type: ignore[list-item]


class Recorded:
    """The inputs of batch norms in training, of the step under way, and where their statistics were when it began."""

    def __init__(self, layers: Sequence[nn.BatchNorm1d]) -> None:
        self.layers = layers
        self.inputs: list[list[Floats]] = []
        self.handles = [layer.register_forward_pre_hook(self._keep(i)) for i, layer in enumerate(layers)]
        self.begin()

    def begin(self) -> None:
        self.inputs = [[] for _ in self.layers]
        self.before = [self._statistics(layer) for layer in self.layers]

    @staticmethod
    def _statistics(layer: nn.BatchNorm1d) -> tuple[Floats, Floats]:
        assert layer.running_mean is not None and layer.running_var is not None
        return layer.running_mean.double().numpy().copy(), layer.running_var.double().numpy().copy()

    def _keep(self, i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if module.training:
                self.inputs[i].append(args[0].detach().double().numpy())

        return hook

    def gap(self) -> float:
        gaps = [
            reference(inputs, *before, layer.eps)
            for inputs, before, layer in zip(self.inputs, self.before, self.layers, strict=True)
            if inputs
        ]
        return math.sqrt(np.mean(np.concatenate(gaps) ** 2)) if gaps else math.nan


def batches(count: int, samples: int = 24, width: int = WIDTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(samples, width, generator=generator) * (1 + i % 3) + 0.1 * i for i in range(count)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *parts: Tensor) -> None:
    optimizer.zero_grad()
    for part in parts:
        model(part).square().mean().backward()
    optimizer.step()


def turns(site: int, steps: int) -> list[int]:
    """The steps with a look at a site, whose step before was seen, too."""
    return [at for at in range(1, steps) if (at + site) % EVERY == 0]


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("micro", [1, 3])
def test_gap_variance_and_collapsed_channels_are_those_of_the_step(micro: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    first = model[0]
    assert isinstance(first, Block)
    with torch.no_grad():
        first.down.weight[2:4] = 0.0
        first.down.bias[2:4] = 3.0  # constant channels, whose variance fades
    optimizer = torch.optim.SGD([p for p in model.parameters() if p is not first.down.weight], lr=0.02)
    session, sink = loops.watch(model, optimizer)
    recorded = [Recorded(block.norms) for block in model]  # type: ignore[union-attr, arg-type]
    looked: dict[int, tuple[float, float, float]] = {}
    for at, batch in enumerate(batches(2 * EVERY + 3)):
        for each in recorded:
            each.begin()
        step(model, optimizer, *batch.chunk(micro))
        for site, each in enumerate(recorded):
            if at in turns(site, 99):
                variances = [layer.running_var.double() for layer in each.layers]  # type: ignore[union-attr]
                small = [v <= layer.eps for v, layer in zip(variances, each.layers, strict=True)]
                looked[site] = each.gap(), float(torch.cat(variances).max()), float(torch.cat(small).double().mean())
            row = sink.newest
            seen = site in looked or site == 0  # which has its turn in step 0, before which nothing was read
            assert row.blocks_present[[GAP, VARIANCE, COLLAPSED], site].tolist() == [site in looked, seen, seen]
            if site in looked:
                assert row.blocks[[GAP, VARIANCE, COLLAPSED], site] == pytest.approx(looked[site], rel=1e-4)
    assert looked[0][2] == pytest.approx(2 / 24)
    assert looked[1][2] == 0
    session.detach()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    scales=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
    shift=st.floats(-30, 30),
    momentum=st.one_of(st.none(), st.floats(0.01, 1.0)),
    seed=st.integers(0, 2**31),
)
def test_the_gap_is_that_of_the_batch(
    sizes: list[int], scales: list[float], shift: float, momentum: float | None, seed: int
) -> None:
    """Whatever the widths, the scales and the momentum: what moved the statistics is told from where they were and are."""
    random = np.random.default_rng(seed)
    layers = [nn.BatchNorm1d(size, momentum=momentum) for size in sizes]
    here, elsewhere = (Norms.of([nn.Linear(2, 2), *layers]) for _ in range(2))
    assert here is not None and elsewhere is not None
    for _ in range(4):
        inputs = [random.normal(shift, 1, (8, size)) * scale for size, scale in zip(sizes, scales, strict=False)]
        here.remember()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fetch, "is_here", lambda tensor: False)
            elsewhere.remember()
        before = [Recorded._statistics(layer) for layer in layers]
        for layer, each in zip(layers, inputs, strict=True):
            layer(torch.from_numpy(each).float())
        found = here.look() or ()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fetch, "is_here", lambda tensor: False)
            assert [float(each) for each in elsewhere.look() or ()] == pytest.approx(found, rel=1e-9)
        gaps = [reference([x], *b, layer.eps) for x, b, layer in zip(inputs, before, layers, strict=True)]
        expected = math.sqrt(np.mean(np.concatenate(gaps) ** 2))
        assert float(found[0]) == pytest.approx(expected, rel=2e-3, abs=2e-3)


@pytest.mark.usefixtures("where")
def test_layers_that_learn_nothing_of_the_step_take_no_part() -> None:
    torch.manual_seed(0)
    moving, frozen, instance = nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval(), nn.InstanceNorm1d(3, track_running_stats=True)
    norms = Norms.of([moving, frozen, instance])
    assert norms is not None
    batch = torch.randn(16, 3) + 1
    norms.remember()
    for layer in (moving, frozen):
        layer(batch)
    gap, variance, collapsed = norms.look() or ()
    expected = reference([batch.double().numpy()], np.zeros(3), np.ones(3), 1e-5)
    assert float(gap) == pytest.approx(math.sqrt(np.mean(expected**2)), rel=1e-4)
    norms.remember()
    frozen(batch)
    gap, variance, collapsed = norms.look() or ()
    assert math.isnan(gap)  # nothing has moved, so nothing is told of the step
    assert float(variance) == max(1.0, float(moving.running_var.max())) and float(collapsed) == 0.0  # type: ignore[union-attr]
    assert Norms.of([nn.LayerNorm(3), nn.GroupNorm(1, 3)]) is None
    untracked = Norms.of([nn.BatchNorm1d(3, track_running_stats=False)])
    assert untracked is not None and untracked.look() is None


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("buffer", ["running_mean", "running_var"])
def test_statistics_that_are_not_finite_are_infinite(value: float, buffer: str) -> None:
    layer = nn.BatchNorm1d(4)
    norms = Norms.of([layer])
    assert norms is not None
    norms.remember()
    getattr(layer, buffer)[1] = value
    gap, variance, _ = norms.look() or ()
    assert float(gap) == float(variance) == math.inf


def test_what_is_not_finite_stands_in_the_record() -> None:
    """One batch with an infinite element is enough, and the statistics keep it for ever."""
    torch.manual_seed(0)
    model = nn.Sequential(Block())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session, sink = loops.watch(model, optimizer)
    for at, batch in enumerate(batches(EVERY + 1)):
        if at == 4:
            batch[2, 3] = math.inf
        with torch.no_grad() if at == 4 else torch.enable_grad():
            model(batch)  # as a loop that skips what it cannot learn from: the statistics have moved all the same
        if at != 4:
            step(model, optimizer, batch)
    step(model, optimizer, batch)
    assert sink.newest.blocks[[GAP, VARIANCE], 0].tolist() == [math.inf, math.inf]
    assert sink.newest.blocks_present[[GAP, VARIANCE, COLLAPSED], 0].all()
    session.detach()


@pytest.mark.usefixtures("where")
def test_a_layer_made_anew_between_two_looks_is_not_held_against_the_old_one() -> None:
    layer = nn.BatchNorm1d(4)
    norms = Norms.of([layer])
    assert norms is not None
    norms.remember()
    layer.running_mean, layer.running_var = torch.zeros(5), torch.full((5,), 7.0)
    gap, variance, _ = norms.look() or ()
    assert math.isnan(gap) and float(variance) == 7.0
    norms.remember()
    layer.running_mean = layer.running_var = None
    assert norms.look() is None


def test_without_batch_norms_they_are_absent() -> None:
    model = loops.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, sink = loops.watch(model, optimizer)
    for _ in range(EVERY + 2):
        step(model, optimizer, torch.randn(4, 16))
    assert not sink.newest.blocks_present[[GAP, VARIANCE, COLLAPSED]].any()
    session.detach()


@pytest.mark.parametrize("way", ["wrapped", "in place", "inlined"])
def test_compiled(way: str) -> None:
    """Against the same training without torch.compile; graphs are those without batch norms' looks: none breaks, none is anew."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(WIDTH, WIDTH), Block())
    compiled = copy.deepcopy(plain)

    def train(model: nn.Module, call: Callable[[Tensor], Tensor]) -> loops.Memory:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        session, sink = loops.watch(model, optimizer)
        for batch in batches(EVERY + 4):
            optimizer.zero_grad()
            call(batch).square().mean().backward()
            optimizer.step()
        session.detach()
        return sink

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if way == "in place":
        compiled.compile(backend="aot_eager")
    call = compiled if way == "in place" else torch.compile(compiled, backend="aot_eager")
    if way == "inlined":
        call = torch.compile(lambda x: compiled(x) * 1, backend="aot_eager")
    found, expected = train(compiled, call).newest, train(plain, plain).newest
    assert expected.blocks_present[[GAP, VARIANCE, COLLAPSED], 0].all()
    assert not torch._dynamo.utils.counters["graph_break"]
    for value in (GAP, VARIANCE, COLLAPSED):
        assert found.blocks[value, 0] == pytest.approx(expected.blocks[value, 0], rel=1e-4)


def test_a_checkpoint_that_moves_the_statistics_twice() -> None:
    """torch's checkpoints run a batch norm again in the backward pass: it counts two batches, both the same."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.block, x, use_reentrant=False)  # type: ignore[assignment]
            return y

    torch.manual_seed(0)
    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session, sink = loops.watch(model, optimizer)
    recorded = Recorded(model.block.norms)
    for batch in batches(EVERY + 1):
        recorded.begin()
        step(model, optimizer, batch)
    assert len(recorded.inputs[0]) == 2
    assert sink.newest.blocks[GAP, 0] == pytest.approx(recorded.gap(), rel=1e-4)
    session.detach()


def test_evaluation_and_copies_change_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, sink = loops.watch(model, optimizer)
    recorded = Recorded(model[0].norms)  # type: ignore[union-attr, arg-type]
    for batch in batches(EVERY + 1):
        recorded.begin()
        step(model, optimizer, batch)
        expected = recorded.gap()
        twin = copy.deepcopy(model)
        twin(100 * batch)
        model.eval()
        with torch.no_grad():
            model(100 * batch)
        model.train()
    assert sink.newest.blocks[GAP, 0] == pytest.approx(expected, rel=1e-4)
    session.detach()


def test_training_is_not_changed() -> None:
    def train(model: nn.Module, watched: bool) -> list[object]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        session = loops.watch(model, optimizer)[0] if watched else None
        losses: list[object] = []
        for batch in batches(EVERY + 3):
            optimizer.zero_grad()
            loss = model(batch + torch.randn_like(batch)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if session is not None:
            session.detach()
        return losses

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Block(), Block(momentum=None))

    loops.assert_same_training(train, build)


def test_replicated_and_sharded_buffers(tmp_path: Any) -> None:
    """A DTensor's part on this rank speaks for it, unless it is one summand of several."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        from torch.distributed.tensor import Replicate, distribute_tensor

        mesh = DeviceMesh("cpu", [0])
        layer, twin = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        norms, plain = Norms.of([layer]), Norms.of([twin])
        assert norms is not None and plain is not None
        batch = torch.randn(8, 4)
        for each in (norms, plain):
            each.remember()
        twin(batch)
        for name, buffer in twin.named_buffers():
            setattr(layer, name, distribute_tensor(buffer, mesh, [Replicate()]))
        found, expected = norms.look(), plain.look()
        assert found is not None and expected is not None
        assert [float(each) for each in found] == [float(each) for each in expected]
    finally:
        torch.distributed.destroy_process_group()
