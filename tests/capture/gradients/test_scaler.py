"""Gradient scalers that nobody hands over: norms without the scale, skipped steps, mixed precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn.utils import clip_grad_norm_

from resmon.records import StepRecord
from tests.capture import models
from tests.capture.loops import (
    OUTPUT_GRADIENT,
    Memory,
    Norms,
    assert_gradients,
    assert_same_training,
    factor,
    network,
    norms,
    watch,
)

SCALE = 1024.0

Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS = [
    pytest.param(lambda m: torch.optim.SGD(m.parameters(), lr=0.01), id="sgd"),
    pytest.param(lambda m: torch.optim.AdamW(m.parameters(), lr=0.01), id="adamw"),
    pytest.param(lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True), id="fused"),
]


def batch(seed: int = 0) -> Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))


def reference(model: nn.Module, x: Tensor) -> tuple[Norms, list[float]]:
    """The unscaled loss's gradients in float64: of the parameters, and of the sums at the blocks."""
    model = copy.deepcopy(model).double()
    sums: list[Tensor] = []
    for block in (model[1], model[2]):  # type: ignore[index]
        block.register_forward_hook(lambda m, a, y: y.retain_grad() or sums.append(y))
    model(x.double()).square().mean().backward()
    return norms(model), [float(each.grad.square().sum()) for each in sums if each.grad is not None]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    x: Tensor,
    before_step: Callable[[], object] = lambda: None,
) -> None:
    optimizer.zero_grad()
    scaler.scale(model(x).square().mean()).backward()
    before_step()
    scaler.step(optimizer)
    scaler.update()


def output_gradients(record: StepRecord) -> list[float]:
    return [float(record.blocks[OUTPUT_GRADIENT, i]) for i in (1, 2)]  # of the blocks, whose outputs the sums are


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("scaler_class", [GradScaler, ShardedGradScaler])
def test_norms_are_without_the_scale(make: Make, scaler_class: type[GradScaler]) -> None:
    if scaler_class is ShardedGradScaler and not torch.distributed.is_initialized():
        pytest.importorskip("torch.distributed")
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = network()
        optimizer = make(model)
        scaler = scaler_class("cpu", init_scale=SCALE)
        _, sink = watch(model, optimizer)
        for i in range(3):
            expected, outputs = reference(model, batch(i))
            train(model, optimizer, scaler, batch(i))
            assert_gradients(sink.newest, sink.now, expected)
            assert output_gradients(sink.newest) == pytest.approx(outputs, rel=1e-5)
            assert sink.newest.run_value("loss_scale") == SCALE
            assert not sink.newest.skipped
        assert len(sink.steps) == 3
    finally:
        if scaler_class is ShardedGradScaler:
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("order", ["unscale", "unscale clip", "clip", "clip unscale", "clip unscale clip"])
def test_whatever_the_loop_does_before_the_step(make: Make, order: str) -> None:
    model = network()
    optimizer = make(model)
    scaler = GradScaler("cpu", init_scale=SCALE)
    _, sink = watch(model, optimizer)
    for i in range(3):
        clipped: list[float] = []

        def act(clipped: list[float] = clipped) -> None:
            for word in order.split():
                if word == "unscale":
                    scaler.unscale_(optimizer)
                else:
                    before = norms(model)
                    clip_grad_norm_(model.parameters(), 1e-2)
                    clipped.append(math.sqrt(sum(norms(model).values()) / sum(before.values())))

        expected, outputs = reference(model, batch(i))
        train(model, optimizer, scaler, batch(i), act)
        assert_gradients(sink.newest, sink.now, expected)
        assert output_gradients(sink.newest) == pytest.approx(outputs, rel=1e-5)
        assert sink.newest.run_value("loss_scale") == SCALE
        if clipped:
            assert factor(sink.newest) == pytest.approx(math.prod(clipped), rel=1e-5)
            assert factor(sink.newest) < 0.9  # type: ignore[operator]
        else:
            assert factor(sink.newest) is None


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_skipped_step_is_a_step(make: Make, unscaled: bool) -> None:
    """The head's gradient overflows: the step is skipped, recorded, and its finite gradients are without the scale."""
    model = network()
    optimizer = make(model)
    scaler = GradScaler("cpu", init_scale=SCALE)
    _, sink = watch(model, optimizer)
    train(model, optimizer, scaler, batch())
    weights = copy.deepcopy(model.state_dict())
    expected, _ = reference(model, batch(1))
    handle = model[3].weight.register_hook(lambda g: g.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(math.inf)))
    train(model, optimizer, scaler, batch(1), lambda: unscaled and scaler.unscale_(optimizer))
    handle.remove()
    assert all(torch.equal(weights[name], each) for name, each in model.state_dict().items())
    skipped = sink.newest
    assert (skipped.step, skipped.skipped, skipped.complete) == (1, True, True)
    assert (skipped.steps_total, skipped.skipped_total) == (2, 1)
    assert not np.isfinite(skipped.run_value("gradient_square") or 0)
    for i, site in enumerate(sink.now):
        assert skipped.blocks[3, i] == pytest.approx(sum(expected[name] for name in site.parameters), rel=1e-5)
    assert skipped.nonfinite_steps.tolist() == [0] * len(sink.now)

    expected, outputs = reference(model, batch(2))
    train(model, optimizer, scaler, batch(2))
    assert_gradients(sink.newest, sink.now, expected)
    assert output_gradients(sink.newest) == pytest.approx(outputs, rel=1e-5)
    assert (sink.newest.step, sink.newest.skipped, sink.newest.skipped_total) == (2, False, 1)
    assert sink.newest.run_value("loss_scale") == SCALE / 2


def test_nonfinite_gradients_of_a_skipped_step_are_counted() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=SCALE)
    _, sink = watch(model, optimizer)
    train(model, optimizer, scaler, batch())
    handle = model[2].register_forward_hook(lambda m, a, y: y.register_hook(lambda g: g * math.inf) and None)
    train(model, optimizer, scaler, batch())
    handle.remove()
    skipped = sink.newest
    assert skipped.skipped
    assert (skipped.counts[2, :2] > 0).all()
    assert (skipped.nonfinite_steps[:2] == 1).all()
    assert not np.isfinite(skipped.blocks[3]).any()
    assert np.isfinite(skipped.blocks[:3]).all()


def test_a_search_for_the_scale() -> None:
    """float16 overflows at the first scales; every attempt is a step, until one is taken."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = GradScaler("cpu", init_scale=2.0**24)
    _, sink = watch(model, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(batch()).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(24):
        step()
    skipped = [record.skipped for record in sink.steps]
    assert any(skipped) and not skipped[-1]
    assert skipped == sorted(skipped, reverse=True)
    assert [record.run_value("loss_scale") for record in sink.steps][: sum(skipped) + 1] == [
        2.0 ** (24 - i) for i in range(sum(skipped) + 1)
    ]
    expected, outputs = reference(model, batch())
    assert_gradients(sink.newest, sink.now, expected, rel=2e-2)
    assert output_gradients(sink.newest) == pytest.approx(outputs, rel=2e-2)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 6e-2), (torch.float16, 1e-2)])
def test_autocast_norms_are_those_of_float32_within_the_precision(dtype: torch.dtype, error: float) -> None:
    """bfloat16 has 8 bits, float16 11: a norm is as wrong as its elements, not worse."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = GradScaler("cpu", init_scale=SCALE, enabled=dtype is torch.float16)
    _, sink = watch(model, optimizer)
    for i in range(3):
        plain = copy.deepcopy(model)
        models.kept(plain)
        expected, outputs = reference(plain, batch(i))
        plain(batch(i))
        operands = models.kept(plain)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            loss = model(batch(i)).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        record = sink.newest
        assert_gradients(record, sink.now, expected, rel=error)
        assert output_gradients(record) == pytest.approx(outputs, rel=error)
        for j, (skip, branch) in enumerate(operands):
            wanted = [float(each.double().square().sum()) for each in (skip, branch, skip + branch)]
            assert record.blocks[:3, j] == pytest.approx(wanted, rel=error)
        assert (record.run_value("loss_scale") is None) == (dtype is torch.bfloat16)


def test_without_an_optimizer_the_scalers_step_tells_when_to_read() -> None:
    for fused in (False, True):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        scaler = GradScaler("cpu", init_scale=SCALE)
        session, sink = watch(model, None)
        for i in range(4):
            expected, outputs = reference(model, batch(i))
            handle = model[3].weight.register_hook(lambda g, i=i: g * math.inf if i == 2 else g)
            train(model, optimizer, scaler, batch(i))
            handle.remove()
            session.step()
            record = sink.newest
            assert record.skipped == (i == 2)
            for j, site in enumerate(sink.now):
                wanted = sum(expected[name] for name in site.parameters)
                assert record.blocks[3, j] == pytest.approx(wanted, rel=1e-5)
            assert output_gradients(record) == pytest.approx(outputs, rel=1e-5)
        assert [record.skipped_total for record in sink.steps] == [0, 0, 1, 1]


def test_a_scaler_for_each_of_two_models() -> None:
    left, right = network(), network(seed=1)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (left, right)]
    scalers = [GradScaler("cpu", init_scale=scale) for scale in (64.0, 4096.0)]
    _, sink = watch({"left": left, "right": right}, optimizers)
    for i in range(2):
        expected = [reference(each, batch(i)) for each in (left, right)]
        for model, optimizer, scaler in zip((left, right), optimizers, scalers, strict=True):
            train(model, optimizer, scaler, batch(i))
        assert len(sink.steps) == i + 1
        for j, key in enumerate(("left", "right")):
            places = [k for k, site in enumerate(sink.now) if site.model == key]
            squares, outputs = expected[j]
            for k in places:
                wanted = sum(squares[name] for name in sink.now[k].parameters)
                assert sink.newest.blocks[3, k] == pytest.approx(wanted, rel=1e-5)
            assert [sink.newest.blocks[OUTPUT_GRADIENT, k] for k in places[1:]] == pytest.approx(outputs, rel=1e-5)
        assert sink.newest.run_value("loss_scale") == 4096.0


def test_unscaling_by_hand_and_stepping_oneself() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=SCALE)
    _, sink = watch(model, optimizer)
    expected, outputs = reference(model, batch())
    scaler.scale(model(batch()).square().mean()).backward()
    scaler.unscale_(optimizer)
    optimizer.step()
    assert_gradients(sink.newest, sink.now, expected)
    assert output_gradients(sink.newest) == pytest.approx(outputs, rel=1e-5)


def test_a_fused_optimizer_told_by_hand() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    _, sink = watch(model, optimizer)
    for found in (0.0, 1.0):
        expected, _ = reference(model, batch())
        optimizer.zero_grad()
        (model(batch()).square().mean() * SCALE).backward()
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(SCALE), torch.tensor(found)  # type: ignore[attr-defined]
        optimizer.step()
        assert_gradients(sink.newest, sink.now, expected)
        assert sink.newest.skipped == bool(found)


def test_a_disabled_scaler_changes_nothing() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, sink = watch(model, optimizer)
    expected, _ = reference(model, batch())
    train(model, optimizer, GradScaler("cpu", enabled=False), batch())
    assert_gradients(sink.newest, sink.now, expected)
    assert sink.newest.run_value("loss_scale") is None


def test_an_exception_in_the_step_reaches_the_loop_and_later_steps_are_seen() -> None:
    class Breaks(torch.optim.SGD):
        broken = True

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            if self.broken:
                raise ValueError("broken")
            super().step()

    model = network()
    optimizer = Breaks(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=SCALE)
    _, sink = watch(model, optimizer)
    scaler.scale(model(batch()).square().mean()).backward()
    with pytest.raises(ValueError, match="broken"):
        scaler.step(optimizer)
    optimizer.broken = False
    optimizer.zero_grad()
    expected, _ = reference(model, batch())
    model(batch()).square().mean().backward()
    optimizer.step()
    assert_gradients(sink.newest, sink.now, expected)


def other_watchers(sink: Memory) -> list[bool]:
    return [record.skipped for record in sink.steps]


def test_two_monitors_of_which_one_is_skipped() -> None:
    left, right = network(), network(seed=1)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (left, right)]
    sinks = [watch(each, optimizer)[1] for each, optimizer in zip((left, right), optimizers, strict=True)]
    scaler = GradScaler("cpu", init_scale=SCALE)
    for each, weight in ((left, 1.0), (right, math.inf)):
        scaler.scale(each(batch()).square().mean() * weight).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert [other_watchers(sink) for sink in sinks] == [[False], [True]]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_training_with_a_scaler_is_the_same_to_the_last_bit(make: Make) -> None:
    def run(model: nn.Module, watched: bool) -> list[object]:
        optimizer = make(model)
        scaler = GradScaler("cpu", init_scale=2.0**20, growth_interval=5)
        session = watch(model, optimizer)[0] if watched else None
        said: list[object] = []
        for i in range(40):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = model(torch.randn(6, 16)).float().square().mean()
            scaler.scale(loss).backward()
            if i % 3 == 0:
                scaler.unscale_(optimizer)
            if i % 2 == 0:
                clip_grad_norm_(model.parameters(), 0.05)
            scaler.step(optimizer)
            scaler.update()
            said += [loss.item(), str(scaler.state_dict())]
        if session is not None:
            session.detach()
        return said

    assert_same_training(run)
