"""Training in cells, with the real IPython."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

import resmon

SETUP = """
import torch, resmon
from torch import nn
from tests.integrations.networks import batch, network

net = network()
opt = torch.optim.SGD(net.parameters(), 0.1)
monitor = resmon.watch(net, opt, run="cells", directory={folder!r}, agent="off")

def train(steps, breaks=None, error=ValueError("seven")):
    for step in range(steps):
        x, y = batch(step)
        loss = nn.functional.mse_loss(net(x), y)
        if step == breaks:
            raise error
        opt.zero_grad()
        loss.backward()
        opt.step()
"""


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Any]:
    made = InteractiveShell.instance()
    made.run_cell(SETUP.format(folder=str(tmp_path)))
    yield made
    made.run_cell("monitor.close()")
    callbacks = made.events.callbacks
    assert not [each for name in ("pre_run_cell", "post_run_cell") for each in callbacks[name] if "resmon" in each.__module__], (
        "a trace is left"
    )
    InteractiveShell.clear_instance()


def kinds(folder: Path) -> list[str]:
    return [str(kind) for kind in resmon.load(folder / "cells").incidents()["kind"]]


def test_an_exception_of_a_cell_that_trained_is_an_incident_and_the_run_goes_on(shell: Any, tmp_path: Path) -> None:
    assert shell.run_cell("train(5, breaks=3)").error_in_exec is not None
    assert kinds(tmp_path) == ["failed"]
    (incident,) = resmon.load(tmp_path / "cells").incidents().itertuples()
    assert "seven" in incident.summary
    assert incident.step == 3
    shell.run_cell("train(4)")
    shell.run_cell("monitor.close()")
    flight = resmon.load(tmp_path / "cells")
    assert flight.outcome == "finished"
    assert len(flight.steps()) == 7
    assert kinds(tmp_path) == ["failed"]


@pytest.mark.parametrize("cell", ["1 / 0", "train(3, breaks=2, error=KeyboardInterrupt())", "train(2)", "def broken(:"])
def test_what_is_no_failure_of_the_training_is_none(shell: Any, tmp_path: Path, cell: str) -> None:
    """An exception elsewhere, a stop by hand, no exception at all, a cell that is no Python."""
    shell.run_cell("train(2)")
    shell.run_cell(cell)
    assert kinds(tmp_path) == []


def test_a_shape_that_does_not_fit_is_diagnosed(shell: Any, tmp_path: Path) -> None:
    shell.run_cell("train(2)")
    shell.run_cell("net(torch.randn(4, 9))")
    assert kinds(tmp_path) == ["shape_mismatch"]
