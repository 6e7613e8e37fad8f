"""The sums over a model's inputs, against the tensors that it was given."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import resmon
from resmon.capture.host import fetch
from resmon.capture.host.fetch import Fetch
from resmon.capture.probes.inputs import Inputs
from tests.capture import loops

WIDTH = 16
ELEMENTS, SUM, SQUARE = "input_elements", "input_sum", "input_square"


class Taken(nn.Module):
    """Takes floats by one way or another, and tokens besides."""

    def __init__(self) -> None:
        super().__init__()
        self.body = loops.network(WIDTH)

    def forward(self, tokens: Any = None, x: Any = None, *, more: Any = None) -> Tensor:
        found: Tensor = self.body((x if more is None else more["deep"][1]).float())
        return found


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
    optimizer.zero_grad()
    model(*args, **kwargs).square().mean().backward()
    optimizer.step()


def assert_sums(record: Any, *tensors: Tensor) -> None:
    """Of small tensors, which are summed whole."""
    assert record.run_value(ELEMENTS) == sum(t.numel() for t in tensors)
    assert record.run_value(SUM) == pytest.approx(sum(float(t.double().sum()) for t in tensors), rel=1e-12, abs=1e-12)
    assert record.run_value(SQUARE) == pytest.approx(sum(float(t.double().square().sum()) for t in tensors), rel=1e-12)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_first_floats_of_each_pass(where: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "elsewhere":
        monkeypatch.setattr(fetch, "is_here", lambda tensor: False)
    torch.manual_seed(0)
    model = Taken()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, sink = loops.watch(model, optimizer)
    tokens = torch.arange(10)
    x = (torch.randn(10, WIDTH) * 3 + 1).to(dtype)
    for given_ in ((tokens, x), (None, x), ([tokens], x)):
        step(model, optimizer, *given_)
        assert_sums(sink.newest, x)
    step(model, optimizer, tokens=tokens, more={"deep": (tokens, x), "later": torch.full((4,), 100.0)})
    assert_sums(sink.newest, x)
    step(model, optimizer, None, x.t().contiguous().t())  # other layouts
    assert_sums(sink.newest, x)
    wide = torch.randn(10, 2 * WIDTH).to(dtype)
    step(model, optimizer, None, wide[:, ::2])
    assert_sums(sink.newest, wide[:, ::2])
    step(model, optimizer, None, x[:1].expand(10, WIDTH))
    assert_sums(sink.newest, x[:1].expand(10, WIDTH))
    optimizer.zero_grad()
    for part in x.chunk(3):  # micro-batches add up
        model(None, part).square().mean().backward()
    optimizer.step()
    assert_sums(sink.newest, x)
    session.detach()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_first_integers_where_there_are_no_floats(where: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "elsewhere":
        monkeypatch.setattr(fetch, "is_here", lambda tensor: False)
    embedding = nn.Sequential(nn.Embedding(60_000, WIDTH), loops.network(WIDTH))
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.01)
    session, sink = loops.watch(embedding, optimizer)
    tokens = torch.randint(0, 60_000, (4, 7), dtype=dtype)
    for given_ in (tokens, tokens.t(), tokens[:, ::2]):
        step(embedding, optimizer, given_)
        assert_sums(sink.newest, given_)
    session.detach()


def test_a_mask_and_a_number_are_no_tokens() -> None:
    inputs, by, tokens = Inputs(256), Fetch(), torch.tensor([5, 7])
    inputs.see(
        "model", (torch.tensor(3), torch.ones(2, dtype=torch.bool)), {"tokens": tokens, "later": torch.zeros(9, dtype=torch.int64)}
    )
    assert inputs.take(by).values(arrived=True) == {ELEMENTS: 2.0, SUM: 12.0, SQUARE: 74.0}
    inputs.see("model", (torch.ones(2, dtype=torch.bool),), {})
    assert inputs.take(by).values(arrived=True) == {}


def test_of_steps_without_a_pass() -> None:
    model = loops.network(WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, sink = loops.watch(model, optimizer)
    step(model, optimizer, torch.ones(2, WIDTH))
    with torch.no_grad():
        model(torch.full((2, WIDTH), 1000.0))  # evaluation counts nothing
    copy.deepcopy(model)(torch.full((2, WIDTH), 1000.0))  # nor does a copy
    optimizer.step()
    assert [record.run_value(SUM) for record in sink.steps] == [2.0 * WIDTH, None]
    session.detach()


def test_what_is_not_finite_is_flagged() -> None:
    model = loops.network(WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session, sink = loops.watch(model, optimizer)
    x = torch.ones(4, WIDTH)
    x[0, 3] = math.nan
    step(model, optimizer, x)
    assert math.isnan(sink.newest.run_value(SUM) or 0.0) and math.isnan(sink.newest.run_value(SQUARE) or 0.0)
    x[0, 3] = -math.inf
    step(model, optimizer, x)
    assert (sink.newest.run_value(SUM), sink.newest.run_value(SQUARE)) == (-math.inf, math.inf)
    session.detach()


def test_of_several_models_the_one_that_was_given_floats_first_speaks() -> None:
    generator, critic = loops.network(WIDTH), loops.network(WIDTH, seed=1)
    optimizer = torch.optim.SGD([*generator.parameters(), *critic.parameters()], lr=0.01)
    session, sink = loops.watch({"critic": critic, "generator": generator}, optimizer)
    for level in (1.0, 2.0):
        noise, images = torch.full((2, WIDTH), level), torch.full((2, WIDTH), 10 * level)
        optimizer.zero_grad()
        (generator(noise).mean() + critic(images).mean()).backward()
        optimizer.step()
        assert_sums(sink.newest, noise)
    optimizer.zero_grad()
    critic(images).mean().backward()
    optimizer.step()
    assert sink.newest.run_value(SUM) is None  # the generator did not run
    session.detach()


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(lambda shape: math.prod(shape) <= 200_000),
    gap=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_a_sample_of_a_large_tensor_is_like_it(shape: list[int], gap: bool, seed: int) -> None:
    """The mean of n sampled elements is off by a few times the spread over sqrt(n)."""
    most = 256
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.normal(2, 1, [*shape[:-1], 2 * shape[-1]])[..., :: 2 if gap else 1])
    inputs, by = Inputs(most), Fetch()
    inputs.see("model", (x,), {})
    taken = inputs.take(by)
    by.send()
    values = taken.values(arrived=True)
    count = values[ELEMENTS]
    assert count == x.numel() if x.numel() <= most else 0 < count <= 2 * most
    mean, square = values[SUM] / count, values[SQUARE] / count
    assert abs(mean - float(x.mean())) <= 6 / math.sqrt(count)
    assert abs(square - float(x.square().mean())) <= 6 * math.sqrt(18) / math.sqrt(count)  # Var(x²) = 2 + 4 · 2² here


@pytest.mark.parametrize("way", ["given back", "in place", "wrapped", "inlined"])
def test_compiled(way: str) -> None:
    """Also where the pass begins inside a graph; nowhere a graph breaks."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = loops.network(WIDTH)
    call: Any = model
    if way == "in place":
        model.compile(backend="aot_eager")
    elif way != "inlined":
        call = torch.compile(model, backend="aot_eager")
    else:
        call = torch.compile(lambda x: model(x) * 1, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, sink = loops.watch(call if way == "given back" else model, optimizer)
    for level in (1.0, 2.0, 3.0, 4.0):
        optimizer.zero_grad()
        call(torch.full((2, WIDTH), level)).square().mean().backward()
        optimizer.step()
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_sums(sink.newest, torch.full((2, WIDTH), 4.0))
    assert sink.newest.run_value("samples") == 2
    session.detach()


def test_in_the_frames_of_a_flight(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = loops.network(WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = [torch.randn(8, WIDTH) * (1 + i) + i for i in range(3)]
    with resmon.watch(model, optimizer, run="inputs", directory=tmp_path, agent="off"):
        for batch in batches:
            step(model, optimizer, batch)
    frame = resmon.load(tmp_path / "inputs").steps()
    assert frame["input_mean"].tolist() == pytest.approx([float(b.double().mean()) for b in batches])
    assert frame["input_rms"].tolist() == pytest.approx([float(b.double().square().mean().sqrt()) for b in batches])


def test_training_is_not_changed() -> None:
    def train(model: nn.Module, watched: bool) -> list[object]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        session = loops.watch(model, optimizer)[0] if watched else None
        losses: list[object] = []
        for _ in range(4):
            x = torch.randn(8, WIDTH, requires_grad=True)
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            assert x.grad is not None
            losses += [loss.item(), x.grad.tolist()]
        if session is not None:
            session.detach()
        return losses

    loops.assert_same_training(train)
