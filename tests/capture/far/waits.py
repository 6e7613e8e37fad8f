"""Run by test_far.py with the plugin: that nothing of resmon's waits for the device, whatever the loop does."""

from __future__ import annotations

import copy
import ctypes
import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from resmon.capture.probes.positions import EVERY
from resmon.records import BLOCK_VALUES
from tests.capture import models
from tests.capture.far.plugin import FAR, waits
from tests.capture.loop.test_session import assert_operands
from tests.capture.loops import Memory, assert_gradients, norms, watch

Loop = Callable[[nn.Module, torch.optim.Optimizer, int], Tensor]

STEPS = EVERY + 4  # so that what is not looked at in every step has had its turn


def test_the_device_is_as_far_as_it_should_be() -> None:
    tensor = torch.ones(4)
    assert tensor.device == FAR and type(tensor) is Tensor
    if not (child := os.fork()):
        ctypes.string_at(tensor.data_ptr(), 4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    for look in (Tensor.item, Tensor.cpu, bool, lambda each: each.nonzero().tolist()):
        before = waits()
        look(tensor[:1])  # type: ignore[operator]
        assert waits() > before


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> Tensor:
    optimizer.zero_grad()
    loss = model(models.images(8, seed=i)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def clipped(model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> Tensor:
    optimizer.zero_grad()
    loss = model(models.images(8, seed=i)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    return loss


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> Tensor:
    optimizer.zero_grad()
    for part in range(3):
        loss = model(models.images(4, seed=3 * i + part)).square().mean() / 3
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            model(models.images(2, seed=i))
    optimizer.step()
    return loss


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> Tensor:
    scaler = torch.amp.GradScaler("far", init_scale=4.0)
    optimizer.zero_grad()
    loss = model(models.images(8, seed=i)).square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    return loss


def halves(model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> Tensor:
    """In bfloat16, where largest magnitudes are looked for."""
    model.bfloat16()
    optimizer.zero_grad()
    loss = model(models.images(8, seed=i).bfloat16()).float().square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def compiled(model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> Tensor:
    if i == 0:
        model.compile(backend="aot_eager")
    return plain(model, optimizer, i)


@pytest.mark.parametrize("loop", [plain, clipped, accumulated, scaled, halves, compiled], ids=lambda loop: loop.__name__)
def test_the_host_waits_as_often_as_without_resmon_and_training_is_the_same(loop: Loop) -> None:
    first = models.mixed()
    trained: list[tuple[list[int], nn.Module, Memory | None]] = []
    for watched in (False, True):
        model, sink = copy.deepcopy(first), None
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if watched:
            session, sink = watch(model, optimizer)
        waited = []
        for i in range(STEPS):
            torch.manual_seed(i)
            before = waits()
            loss = loop(model, optimizer, i)
            if watched:
                session.log({"loss": loss})
            waited.append(waits() - before)
        trained.append((waited, model, sink))
    (bare, plainly, _), (ours, closely, sink) = trained
    # While the model is traced, and where code is compiled, nobody counts on speed.
    assert ours[2:] == bare[2:]
    assert all(map(torch.equal, plainly.state_dict().values(), closely.state_dict().values()))
    assert sink is not None and sink.newest.errors_total == 0 and len(sink.steps) == len(sink.logged) == STEPS
    always = [BLOCK_VALUES.index(f"{name}_square") for name in ("skip", "branch", "output", "gradient", "output_gradient")]
    assert sink.newest.blocks_present[always].all()


def test_operands_and_gradients_equal_float64() -> None:
    model = models.mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    _, sink = watch(model, optimizer)
    for i in range(4):
        plain(model, optimizer, i)
        assert_operands(sink.newest, models.kept(model))
        assert_gradients(sink.newest, sink.now, norms(model))
        assert sink.newest.magnitude_buckets.sum() > 0
