"""Backward passes beside the loss's own: penalties on gradients, perturbed inputs, inner steps, curvature, and those that fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.autograd import grad
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from resmon.capture.gradients.backwards import BACKWARDS
from tests.capture import models
from tests.capture.loops import OUTPUT_GRADIENT, Norms, assert_gradients, assert_same_training, network, norms, watch

Loss = Callable[[nn.Module, Tensor], Tensor]
SUMS = OUTPUT_GRADIENT + 1  # the values of a block that every step has


def batch(seed: int) -> Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    """On how steep a critic is."""
    x = x.clone().requires_grad_()
    scores = model(x)
    (steepness,) = grad(scores.sum(), x, create_graph=True)
    return scores.mean() + 10 * (steepness.norm(dim=1) - 1).square().mean()


def every_output(model: nn.Module, x: Tensor) -> Tensor:
    """All rows of the Jacobian in one run of the engine."""
    x = x.clone().requires_grad_()
    scores = model(x)
    unit = torch.eye(scores.shape[1], dtype=x.dtype)[:, None].expand(-1, *scores.shape)
    (rows,) = grad(scores, x, unit, create_graph=True, is_grads_batched=True)
    return scores.square().mean() + rows.square().mean()


def perturbed(model: nn.Module, x: Tensor) -> Tensor:
    """The inputs that are worst for the model, found in steps."""
    moved = x
    for _ in range(2):
        moved = moved.detach().requires_grad_()
        (uphill,) = torch.autograd.grad(model(moved).square().mean(), moved)
        moved = moved.detach() + 0.1 * uphill.sign()
    return model(moved).square().mean()


def uphill(model: nn.Module, x: Tensor) -> Tensor:
    """The inputs after one step towards a larger loss."""
    moved = x.clone().requires_grad_()
    (way,) = torch.autograd.grad(plain(model, moved), moved)
    return plain(model, x + 0.1 * way)


def weighed(model: nn.Module, x: Tensor) -> Tensor:
    """Losses that get their weights from their gradients."""
    scores = model(x)
    parts = (scores.square().mean(), scores.abs().mean())
    sizes = [grad(part, list(model.parameters()), retain_graph=True)[0].norm() for part in parts]
    return torch.stack([part / size for part, size in zip(parts, sizes, strict=True)]).sum()


def inner_step(model: nn.Module, x: Tensor) -> Tensor:
    """Meta-learning: what one step of the parameters makes of the loss."""
    here = dict(model.named_parameters())
    steps = grad(functional_call(model, here, (x,)).square().mean(), list(here.values()), create_graph=True)
    there = {name: each - 0.1 * step for (name, each), step in zip(here.items(), steps, strict=True)}
    return functional_call(model, there, (x.flip(0),)).square().mean()


def plain(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()  # type: ignore[no-any-return]


LOSSES = [penalty, every_output, perturbed, uphill, weighed, inner_step, plain]


def reference(model: nn.Module, x: Tensor, loss: Loss) -> tuple[Norms, list[float]]:
    """The loss's gradients in float64: of the parameters, and of each pass's sums at the blocks, added up."""
    model = copy.deepcopy(model).double()
    sums: list[list[Tensor]] = [[], []]
    for own, block in zip(sums, (model[1], model[2]), strict=True):  # type: ignore[index]
        block.register_forward_hook(lambda m, a, y, own=own: own.append(y))
    value = loss(model, x.double())
    squares = []
    for own in sums:
        found = torch.autograd.grad(value, own, retain_graph=True, allow_unused=True)
        squares.append(sum(float(each.square().sum()) for each in found if each is not None))
    found = torch.autograd.grad(value, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return {name: float(each.square().sum()) for name, each in zip(names, found, strict=True)}, squares


def assert_only_the_losss_own_count(model: nn.Sequential, loss: Loss, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    _, sink = watch(model, optimizer)
    for i in range(steps):
        expected, outputs = reference(model, batch(i), loss)
        optimizer.zero_grad()
        loss(model, batch(i)).backward()
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)
        assert [sink.newest.blocks[OUTPUT_GRADIENT, j] for j in (1, 2)] == pytest.approx(outputs, rel=1e-5), i
        assert sink.newest.errors_total == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_losss_own_gradients_count(loss: Loss) -> None:
    assert_only_the_losss_own_count(network(), loss, steps=3)


def test_gradients_that_the_loop_takes_itself_count() -> None:
    """`torch.autograd.grad` in the place of `backward`, once for each of two micro-batches."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    _, sink = watch(model, optimizer)
    for i in range(3):
        halves = [reference(model, batch(10 * i + j), plain) for j in range(2)]
        found = [grad(plain(model, batch(10 * i + j)), list(model.parameters())) for j in range(2)]
        for parameter, one, other in zip(model.parameters(), *found, strict=True):
            parameter.grad = one + other
        expected = norms(model)
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)
        both = [first + second for first, second in zip(halves[0][1], halves[1][1], strict=True)]
        assert [sink.newest.blocks[OUTPUT_GRADIENT, j] for j in (1, 2)] == pytest.approx(both, rel=1e-5)


def test_curvature_that_is_looked_at_after_the_backward_pass() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    _, sink = watch(model, optimizer)
    for i in range(3):
        expected, outputs = reference(model, batch(i), plain)
        optimizer.zero_grad()
        plain(model, batch(i)).backward(create_graph=True)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        grad(gradients, list(model.parameters()), [torch.ones_like(each) for each in gradients])
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)
        assert [sink.newest.blocks[OUTPUT_GRADIENT, j] for j in (1, 2)] == pytest.approx(outputs, rel=1e-5)


def test_a_backward_pass_for_the_other_model_alone() -> None:
    """A generator's loss goes through the critic, and is none of the critic's."""
    pair = {"generator": nn.Sequential(*network()[:3], nn.Linear(16, 16)), "critic": network(seed=1)}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (pair["critic"], pair["generator"])]
    _, sink = watch(pair, optimizers)
    for i in range(3):
        fake = pair["generator"](batch(i)).detach()
        _, outputs = reference(pair["critic"], fake, plain)
        for optimizer in optimizers:
            optimizer.zero_grad()
        plain(pair["critic"], fake).backward()
        optimizers[0].step()
        pair["critic"](pair["generator"](batch(i))).mean().backward(inputs=list(pair["generator"].parameters()))
        optimizers[1].step()
        critics = [j for j, site in enumerate(sink.now) if site.model == "critic"]
        found = [float(sink.newest.blocks[OUTPUT_GRADIENT, j]) for j in critics[1:]]
        assert found == pytest.approx(outputs, rel=1e-5)
        assert all(sink.newest.blocks_present[OUTPUT_GRADIENT])


@pytest.mark.slow
def test_inner_gradients_of_a_compiled_model() -> None:
    model = network()
    model[1].compile(backend="aot_eager")
    assert_only_the_losss_own_count(model, perturbed, steps=4)


@pytest.mark.slow
def test_backward_passes_inside_of_a_compiled_function_are_heard_and_break_no_graph() -> None:
    counted = []
    for watched in (False, True):
        torch._dynamo.reset()
        counters.clear()
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sink = watch(model, optimizer)[1] if watched else None

        @torch.compile(backend="aot_eager")
        def step(x: Tensor, model: nn.Module = model) -> None:
            moved = x.clone().requires_grad_()
            (uphill,) = torch.autograd.grad(plain(model, moved), moved)
            plain(model, x + 0.1 * uphill).backward()

        for i in range(3):
            _, outputs = reference(model, batch(i), uphill)
            optimizer.zero_grad()
            step(batch(i))
            optimizer.step()
            if sink is not None:
                assert [sink.newest.blocks[OUTPUT_GRADIENT, j] for j in (1, 2)] == pytest.approx(outputs, rel=1e-4), i
        counted.append((counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())))
    (bare, bare_breaks), (ours, breaks) = counted
    assert ours <= bare and breaks <= bare_breaks


@pytest.mark.parametrize("loss", LOSSES)
def test_training_with_inner_gradients_is_the_same_to_the_last_bit(loss: Loss) -> None:
    def train(model: nn.Module, watched: bool) -> list[object]:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        if watched:
            watch(model, optimizer)
        said: list[object] = []
        for i in range(6):
            optimizer.zero_grad()
            value = loss(model, batch(i))
            value.backward()
            optimizer.step()
            said.append(value.item())
        return said

    assert_same_training(train)


# -- passes that fail --------------------------------------------------------------------------------------------------


class Fails(nn.Module):
    """Whose backward pass has no memory for 6 samples."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        if y.requires_grad:
            y.register_hook(self.spoil)
        return y

    @staticmethod
    def spoil(gradient: Tensor) -> None:
        if len(gradient) == 6:
            raise torch.OutOfMemoryError("too large")


def test_a_pass_whose_backward_failed_and_that_is_done_again_with_less_does_not_count() -> None:
    """In the traced step, and in one after it."""
    model = nn.Sequential(nn.Linear(16, 16), models.TwoAdds(16), Fails(), models.Alpha(16)).eval()
    again = copy.deepcopy(model)
    _, sink = watch(model, optimizer := torch.optim.SGD(model.parameters(), lr=0.01))
    _, bare = watch(again, others := torch.optim.SGD(again.parameters(), lr=0.01))
    for i in range(4):
        if i in (0, 2):
            with pytest.raises(torch.OutOfMemoryError):
                plain(model, batch(i)).backward()
        for each, by in ((model, optimizer), (again, others)):
            by.zero_grad()
            plain(each, batch(i)[:3]).backward()
            by.step()
        assert sink.newest.step == bare.newest.step == i
        assert sink.newest.blocks[:SUMS] == pytest.approx(bare.newest.blocks[:SUMS], rel=1e-5)
        assert sink.newest.counts.tolist() == bare.newest.counts.tolist()
        assert sink.newest.run_value("samples") == bare.newest.run_value("samples") == 3


def test_nobody_hears_once_nobody_watches() -> None:
    before = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
    session, _ = watch(network(), None)
    assert torch.autograd._engine_run_backward is not before  # type: ignore[attr-defined]
    session.detach()
    assert torch.autograd._engine_run_backward is before  # type: ignore[attr-defined]
    assert not BACKWARDS._listeners


# -- passes that compute nothing ---------------------------------------------------------------------------------------


def by_values(model: nn.Module, x: Tensor) -> Any:
    return make_fx(lambda x: model(x))(x)


def by_shapes(model: nn.Module, x: Tensor) -> Any:
    return make_fx(lambda x: model(x), tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)


def by_gradients(model: nn.Module, x: Tensor) -> Any:
    def of(x: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(plain(model, x), list(model.parameters()))

    return make_fx(of)(x)


@pytest.mark.parametrize("way", [by_values, by_shapes, by_gradients])
def test_a_model_whose_operations_are_listed_in_the_middle_of_training(way: Callable[[nn.Module, Tensor], Any]) -> None:
    """The list is the bare model's, and training is observed on."""
    model = network()
    bare = way(copy.deepcopy(model), batch(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    _, sink = watch(model, optimizer)
    for i in range(3):
        listed = way(model, batch(0))
        models.kept(model)  # which cannot be copied
        assert [node.target for node in listed.graph.nodes] == [node.target for node in bare.graph.nodes]
        expected, outputs = reference(model, batch(i), plain)
        optimizer.zero_grad()
        plain(model, batch(i)).backward()
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)
        assert [sink.newest.blocks[OUTPUT_GRADIENT, j] for j in (1, 2)] == pytest.approx(outputs, rel=1e-5)
        assert sink.newest.errors_total == 0
