"""Norms before clipping and what clipping left, against the model's own gradients in float64."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.capture.loops import Norms, assert_gradients, assert_same_training, factor, network, norms, watch


def backward(model: nn.Module, seed: int = 0, weight: float = 1.0) -> None:
    batch = torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))
    (model(batch).square().mean() * weight).backward()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def total(squares: Norms) -> float:
    return math.fsum(squares.values())


def expected_factor(before: Norms, after: Norms) -> float:
    return math.sqrt(total(after) / total(before))


@pytest.mark.parametrize(
    "clip",
    [
        pytest.param(lambda p, n: clip_grad_norm_(p, n), id="imported by name"),
        pytest.param(lambda p, n: torch.nn.utils.clip_grad_norm_(p, n), id="through its module"),
        pytest.param(lambda p, n: clip_grad_norm_((each for each in list(p)), n), id="a generator"),
        pytest.param(lambda p, n: clip_grad_norm_(p, n, norm_type=math.inf), id="another norm"),
        pytest.param(lambda p, n: clip_grad_norm_(p, n, foreach=False), id="one by one"),
        pytest.param(
            lambda p, n: torch.nn.utils.clip_grads_with_norm_(
                (each for each in list(p)), n, torch.nn.utils.get_total_norm([each.grad for each in p])
            ),
            id="in two halves",
        ),
    ],
)
def test_norms_are_those_before_clipping(clip: Callable[[list[Tensor], float], object]) -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    for i in range(3):
        optimizer.zero_grad()
        backward(model, i)
        before = norms(model)
        clip(list(model.parameters()), 1e-3)
        after = norms(model)
        optimizer.step()
        assert_gradients(sink.newest, sink.now, before)
        assert factor(sink.newest) == pytest.approx(expected_factor(before, after), rel=1e-5)
        assert factor(sink.newest) < 0.5  # type: ignore[operator]
        assert sink.newest.clipped_total == i + 1


def test_gradients_that_are_small_enough_are_untouched() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    clip_grad_norm_(model.parameters(), 1e6)
    optimizer.step()
    assert factor(sink.newest) == 1.0
    assert sink.newest.clipped_total == 0


def test_without_clipping_there_is_no_factor() -> None:
    model, other = network(), nn.Linear(3, 3)
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    other(torch.ones(3)).sum().backward()
    clip_grad_norm_(other.parameters(), 1e-3)  # a model that is not watched
    expected = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, expected)
    assert factor(sink.newest) is None
    assert sink.newest.clipped_total == 0


def test_the_next_step_is_read_anew() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    backward(model, 1)
    expected = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, expected)
    assert factor(sink.newest) is None


def test_clipping_twice() -> None:
    """Globally and then in parts: the first reading stands, and what was left is what the last clipping left."""
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    before = norms(model)
    clip_grad_norm_(model.parameters(), 0.05)
    clip_grad_norm_(model[1].parameters(), 1e-3)
    clip_grad_norm_(model[3].parameters(), 1e-2)
    after = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, before)
    assert factor(sink.newest) == pytest.approx(expected_factor(before, after), rel=1e-5)


def test_clipping_a_part_of_the_parameters() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    before = norms(model)
    clip_grad_norm_(model[1].attn.weight, 1e-4)
    after = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, before)
    assert factor(sink.newest) == pytest.approx(expected_factor(before, after), rel=1e-5)


def test_clipping_between_micro_batches() -> None:
    """What a clipping left and the next micro-batch added to is as good as new: the norm is that before the last clipping."""
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    for i in range(3):
        backward(model, i)
        before = norms(model)
        clip_grad_norm_(model.parameters(), 1e-2)
    after = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, before)
    assert factor(sink.newest) == pytest.approx(expected_factor(before, after), rel=1e-5)


def test_clipping_before_the_last_micro_batch_is_no_clipping_of_the_step() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model, 0)
    clip_grad_norm_(model.parameters(), 1e-2)
    backward(model, 1)
    stepped = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, stepped)
    assert factor(sink.newest) is None  # as stepped


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_given_up_after_clipping_are_forgotten(micro_batches: int) -> None:
    """New gradients may lie where the old ones lay, with as many changes to their account."""
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        backward(model, 0, weight=100.0)
        clip_grad_norm_(model.parameters(), 1e-2)
        optimizer.zero_grad()  # the loop found the batch to be bad
        for i in range(micro_batches):
            backward(model, i + 1)
        expected = norms(model)
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)
        assert factor(sink.newest) is None


def test_changes_after_clipping_are_seen() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    clip_grad_norm_(model.parameters(), 1e-3)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.add_(0.01)
    expected = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, expected)


@pytest.mark.parametrize("value", [1e-3, 1e3])
def test_clipping_by_value(value: float) -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    before = norms(model)
    torch.nn.utils.clip_grad_value_(model.parameters(), value)
    after = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, before)
    assert factor(sink.newest) == pytest.approx(expected_factor(before, after), rel=1e-5)
    assert sink.newest.clipped_total == (value < 1)


def test_a_norm_that_overflowed_makes_clipping_zero_everything() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model, weight=1e25)
    before = norms(model)
    clip_grad_norm_(model.parameters(), 1.0)
    assert total(norms(model)) == 0
    optimizer.step()
    assert_gradients(sink.newest, sink.now, before)
    assert factor(sink.newest) == 0.0


def test_clipping_nonfinite_gradients_leaves_no_number() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    assert model[3].weight.grad is not None
    model[3].weight.grad[0, 0] = math.inf
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert sink.newest.run_value("gradient_square") == math.inf
    assert math.isnan(factor(sink.newest))  # type: ignore[arg-type]
    assert np.isfinite(sink.newest.blocks[3]).all()  # no block's gradient was infinite before clipping
    assert sink.newest.errors_total == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    model(torch.randn(6, 16, dtype=dtype)).square().mean().backward()
    before = norms(model)
    clip_grad_norm_(model.parameters(), 1e-2)
    after = norms(model)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, before)
    assert factor(sink.newest) == pytest.approx(expected_factor(before, after), rel=4e-3 if dtype is torch.bfloat16 else 1e-6)


def test_all_zero_gradients_are_untouched() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model, weight=0.0)
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert sink.newest.run_value("gradient_square") == 0.0
    assert factor(sink.newest) == 1.0


ALONE = """
import torch
from torch.amp import GradScaler
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.utils import clip_grad

def places():
    return [
        clip_grad._clip_grads_with_norm_, torch.nn.utils.clip_grads_with_norm_, clip_grad.clip_grad_value_,
        torch.nn.utils.clip_grad_value_, GradScaler.step, GradScaler.unscale_, ShardedGradScaler.unscale_,
    ]

bare = places()
from tests.capture.loops import network, watch
assert places() == bare, "something happened at import"
model, other = network(), network(seed=1)
sessions = [watch(each, torch.optim.SGD(each.parameters()))[0] for each in (model, other)]
wrapped = places()
assert not any(a is b for a, b in zip(wrapped, bare))
sessions[0].detach()
assert places() == wrapped
sessions[1].detach()
assert places() == bare
assert not any("resmon" in repr(each) for each in vars(torch.optim.Optimizer).values())
"""


def test_the_wrappers_are_there_only_while_somebody_watches() -> None:
    """In a process of its own: other tests leave their models watched."""
    subprocess.run([sys.executable, "-c", ALONE], check=True)


def test_two_monitors_each_see_their_own() -> None:
    model, other = network(), network(seed=1)
    optimizers = [sgd(model), sgd(other)]
    sinks = [watch(each, optimizer)[1] for each, optimizer in zip((model, other), optimizers, strict=True)]
    backward(model)
    backward(other, weight=3.0)
    before = [norms(model), norms(other)]
    clip_grad_norm_([*model.parameters(), *other.parameters()], 1e-2)
    after = [norms(model), norms(other)]
    for i, (optimizer, sink) in enumerate(zip(optimizers, sinks, strict=True)):
        optimizer.step()
        assert_gradients(sink.newest, sink.now, before[i])
        assert factor(sink.newest) == pytest.approx(expected_factor(before[i], after[i]), rel=1e-5)


def test_what_clipping_raises_reaches_the_loop_and_nothing_is_left_undone() -> None:
    model = network()
    optimizer = sgd(model)
    _, sink = watch(model, optimizer)
    backward(model)
    assert model[3].weight.grad is not None
    model[3].weight.grad[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    with pytest.raises(ValueError, match="much"):
        torch.nn.utils.clip_grads_with_norm_(list(model.parameters()), "much", torch.tensor(1.0))  # type: ignore[arg-type]
    optimizer.zero_grad()
    backward(model)
    before = norms(model)
    assert float(clip_grad_norm_(model.parameters(), 1e-2)) == pytest.approx(math.sqrt(total(before)), rel=1e-5)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, before)


def test_training_with_clipping_is_the_same_to_the_last_bit() -> None:
    def train(model: nn.Module, watched: bool) -> list[object]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        session = watch(model, optimizer)[0] if watched else None
        said: list[object] = []
        for i in range(30):
            optimizer.zero_grad()
            loss = model(torch.randn(6, 16)).square().mean()
            loss.backward()
            said.append(float(clip_grad_norm_(model.parameters(), 0.05)))
            if i % 5 == 0:
                clip_grad_value_(model.parameters(), 0.01)
            optimizer.step()
            said.append(loss.item())
        if session is not None:
            session.detach()
        return said

    assert_same_training(train)
