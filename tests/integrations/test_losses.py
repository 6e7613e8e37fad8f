"""The loss of a loop that does not tell it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

import resmon
from resmon.integrations.losses import Losses
from resmon.monitor.watch import Monitor, watch
from tests.integrations.networks import batch, network


class Loop:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = network()
        self.optimizer = SGD(self.model.parameters(), 0.1)
        self.monitor: Monitor = watch(self.model, self.optimizer, run="run", directory=folder, agent="off")
        self.losses = Losses(self.monitor)

    def loss(self, step: int) -> torch.Tensor:
        x, y = batch(step)
        return nn.functional.mse_loss(self.model(x), y)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def recorded(self) -> list[float]:
        self.losses.close()
        self.monitor.close()
        found: list[float] = resmon.load(self.folder / "run").steps()["loss"].tolist()
        return found


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    backward, scale = torch.autograd.backward, torch.amp.GradScaler.scale
    made = Loop(tmp_path)
    yield made
    made.losses.close()
    made.monitor.close()
    assert torch.autograd.backward is backward
    assert torch.amp.GradScaler.scale is scale


def test_it_is_what_backward_is_called_on(loop: Loop) -> None:
    expected = []
    for step in range(3):
        loss = loop.loss(step)
        expected.append(loss.item())
        loss.backward()
        loop.step()
    assert loop.recorded() == expected


def test_micro_batches_add_up(loop: Loop) -> None:
    expected = []
    for step in range(3):
        parts = [loop.loss(10 * step + i) / 4 for i in range(4)]
        expected.append(sum(part.item() for part in parts))
        for part in parts:
            part.backward()
        loop.step()
    assert loop.recorded() == pytest.approx(expected, rel=1e-6)


def test_a_gradient_scaler_does_not_count(loop: Loop) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = []
    for step in range(3):
        loss = loop.loss(step)
        expected.append(loss.item())
        scaler.scale(loss).backward()
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()
    assert loop.recorded() == expected


def test_what_is_no_loss_is_none(loop: Loop) -> None:
    """A vector with a gradient of its own, several roots at once."""
    x, _ = batch()
    out = loop.model(x)
    out.backward(torch.ones_like(out))
    loop.step()
    torch.autograd.backward([loop.loss(1), loop.loss(2)])
    loop.step()
    loss = loop.loss(3)
    torch.autograd.backward([loss])
    loop.step()
    loop.losses.close()
    loop.monitor.close()
    found = resmon.load(loop.folder / "run").steps()["loss"]
    assert found.isna().tolist() == [True, True, False]
    assert found.tolist()[2] == loss.item()
