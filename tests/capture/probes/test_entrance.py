"""What models are given whose passes begin inside graphs: as a model that is not compiled is told, without a graph more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resmon.capture.host.fetch import Fetch
from resmon.capture.probes.entrance import Entrance
from tests.capture import loops
from tests.capture.loops import Memory

WIDTH = 8
NAMES = ("samples", "input_elements", "input_sum", "input_square")


class Embeds(nn.Module):
    """Takes tokens and, by name, a mask and how loud they are; of all that it is given the floats are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, loudness: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.linear(x)
        if mask is not None:
            x = x * mask[..., None]
        return x if loudness is None else x * loudness[..., None]


def recorded(model: nn.Module, batches: list[list[tuple[tuple[Any, ...], dict[str, Any]]]], **compiled: Any) -> Memory:
    """A training with these passes in each step, whose outer function is compiled where `compiled` says how."""
    torch._dynamo.reset()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def outer(*args: Any, **kwargs: Any) -> Tensor:
        return model(*args, **kwargs).square().mean()

    call = torch.compile(outer, backend="aot_eager", fullgraph=True, **compiled) if compiled else outer
    session, sink = loops.watch(model, optimizer)
    for passes in batches:
        optimizer.zero_grad()
        for args, kwargs in passes:
            call(*args, **kwargs).backward()
        with torch.no_grad():  # evaluation counts nothing
            call(*passes[0][0], **passes[0][1])
        optimizer.step()
    session.detach()
    return sink


def assert_told_alike(batches: list[list[tuple[tuple[Any, ...], dict[str, Any]]]], model: Any = Embeds, **compiled: Any) -> None:
    torch.manual_seed(1)
    bare = recorded(model(), batches)
    torch.manual_seed(1)
    found = recorded(model(), batches, dynamic=False, **compiled)
    for i, (one, other) in enumerate(zip(bare.steps, found.steps, strict=True)):
        for name in NAMES:
            assert other.run_value(name) == pytest.approx(one.run_value(name), rel=1e-9), (i, name)
        assert one.samples_total == other.samples_total


def tokens(batch: int, length: int = 5) -> Tensor:
    return torch.randint(50, (batch, length))


def test_tokens_alone() -> None:
    assert_told_alike([[((tokens(3),), {})] for _ in range(4)])


def test_floats_among_the_named() -> None:
    assert_told_alike([[((tokens(3),), {"mask": torch.ones(3, 5), "loudness": torch.rand(3, 5)})] for _ in range(4)])


def test_micro_batches_add_up() -> None:
    assert_told_alike([[((tokens(3),), {}), ((tokens(3),), {})] for _ in range(4)])


def test_batches_of_another_size() -> None:
    """Their sizes become symbols in the graph, which are then no numbers of ours."""
    torch.manual_seed(1)
    batches = [[((tokens(size),), {})] for size in (3, 3, 4, 5, 6, 7)]
    torch._dynamo.utils.counters.clear()
    found = recorded(Embeds(), batches, dynamic=None)
    assert [step.run_value("samples") for step in found.steps] == [3, 3, 4, 5, 6, 7]
    for step, ((args, _),) in zip(found.steps, batches, strict=True):
        assert step.run_value("input_sum") == args[0].sum().item()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # one size, then any; for training and for evaluation


def test_of_a_large_input_a_sample_is_summed() -> None:
    torch.manual_seed(1)
    x = torch.randn(4096, WIDTH) * 3 + 1
    found = recorded(loops.network(WIDTH), [[((x,), {})]] * 3, dynamic=False).newest
    elements = found.run_value("input_elements")
    assert elements is not None
    assert 512 <= elements < x.numel()
    # Within five standard errors.
    total, square = found.run_value("input_sum"), found.run_value("input_square")
    assert total is not None
    assert square is not None
    assert total / elements == pytest.approx(1.0, abs=5 * 3 / elements**0.5)
    assert square / elements == pytest.approx(10.0, abs=5 * 14.7 / elements**0.5)  # (4 * 9 + 2 * 81) ** 0.5


@pytest.mark.parametrize(
    "given",
    [
        (),
        (5, "text", [torch.ones(2)]),
        (torch.tensor(3.0),),
        (torch.ones(2, device="meta"),),
        (torch.eye(2).to_sparse(),),
    ],
)
def test_what_cannot_be_summed_is_absent(given: tuple[Any, ...]) -> None:
    entrance = Entrance(torch.device("cpu"), 16)
    entrance.see(given, {})
    assert entrance.take(Fetch()) is None


def test_an_empty_batch_is_no_sample() -> None:
    entrance = Entrance(torch.device("cpu"), 16)
    entrance.see((torch.zeros(0, 3),), {})
    fetch = Fetch()
    taken = entrance.take(fetch)
    fetch.send()
    assert taken is not None
    assert (taken.samples(), taken.sums()) == (0, (0, 0.0, 0.0))
