"""docs/attach.md: every snippet runs, and records a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import resmon
from tests.integrations.networks import network
from tests.integrations.test_lightning import Regression
from tests.integrations.test_transformers import Numbers, model

PAGE = (Path(__file__).parents[2] / "docs" / "attach.md").read_text()
SNIPPETS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))


def loop() -> dict[str, Any]:
    net = network()
    data = TensorDataset(torch.randn(12, 8), torch.randn(12, 1))
    return {"model": net, "optimizer": SGD(net.parameters(), 0.1), "loader": DataLoader(data, 4), "loss_fn": nn.functional.mse_loss}


def trainer() -> dict[str, Any]:
    arguments = transformers.TrainingArguments(
        "out", run_name="trainer", max_steps=3, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no"
    )
    return {"Trainer": transformers.Trainer, "model": model(), "arguments": arguments, "data": Numbers()}


def lightning() -> dict[str, Any]:
    return {"Trainer": pl.Trainer, "module": Regression(), "loader": loop()["loader"]}


def accelerate() -> dict[str, Any]:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return loop() | {"accelerator": Accelerator(cpu=True)}


WORLDS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "Your own loop": ("own", loop),
    "transformers' Trainer": ("trainer", trainer),
    "Lightning": ("lightning", lightning),
    "Accelerate": ("accelerate", accelerate),
}


def test_every_snippet_is_tried() -> None:
    assert set(SNIPPETS) == set(WORLDS)


@pytest.mark.parametrize("title", WORLDS)
def test_a_snippet_records_its_run(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESMON_AGENT", "off")
    run, world = WORLDS[title]
    exec(compile(SNIPPETS[title], "docs/attach.md", "exec"), world())  # noqa: S102 - the page is ours
    flight = resmon.load(tmp_path / "runs" / run)
    assert flight.outcome == "finished"
    assert len(flight.steps()) == 3
    assert len(flight.blocks()) > 0


def test_the_commands_are_those_that_there_are() -> None:
    """test_script.py runs each of these ways; here, that the page names them as they are."""
    commands = re.search(r"```\n(resmon run .*?)```", PAGE, re.DOTALL)
    assert commands is not None
    assert [line.split("#")[0].split("resmon run")[1].split() for line in commands[1].splitlines()] == [
        ["train.py", "--epochs", "3"],
        ["-r", "digits", "-m", "package.train"],
        ["-r", "digits", "train.py"],
    ]
