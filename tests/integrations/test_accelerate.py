"""The real Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.optim import SGD

import resmon
from resmon.errors import ConfigurationError
from resmon.integrations.accelerate import watch
from tests.integrations.networks import batch, network


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    """Accelerate keeps what it knows of the process in classes."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for step in range(6):
        with accelerator.accumulate(model):
            x, y = batch(step)
            loss = nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            accelerator.log({"loss": loss.item(), "note": "a text"}, step=step)
    return losses


@pytest.mark.parametrize("trackers_first", [False, True])
def test_it_watches_what_was_prepared_and_hears_what_is_logged_and_saved(tmp_path: Path, trackers_first: bool) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    prepared, optimizer = accelerator.prepare(model, SGD(model.parameters(), 0.1))
    if trackers_first:
        accelerator.init_trackers("project")
    watch(accelerator, directory=tmp_path, agent="off", run="run")
    if not trackers_first:
        accelerator.init_trackers("project")
    losses = train(accelerator, prepared, optimizer)
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.end_training()
    flight = resmon.load(tmp_path / "run")
    assert flight.outcome == "finished"
    assert flight.steps()["step"].tolist() == [0, 1, 2]
    assert flight.steps()["loss"].tolist() == losses[1::2]
    assert flight.blocks().groupby("step").size().tolist() == [2, 2, 2]
    assert flight.checkpoints()["path"].tolist() == [str(tmp_path / "state")]


def test_the_plain_line_takes_what_accelerate_gives_back(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = network()
    prepared, optimizer = accelerator.prepare(model, SGD(model.parameters(), 0.1))
    with resmon.watch(prepared, optimizer, directory=tmp_path, agent="off", run="run"):
        train(accelerator, prepared, optimizer)
    steps = resmon.load(tmp_path / "run").steps()
    assert steps["step"].tolist() == list(range(6))
    assert steps["learning_rate"].tolist() == [0.1] * 6


def test_before_prepare_it_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"call accelerator\.prepare"):
        watch(Accelerator(cpu=True))
