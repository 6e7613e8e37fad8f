"""The real Lightning, with the callback."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import resmon
from resmon.integrations.lightning import ResmonCallback
from tests.integrations.networks import Block

CALL = nn.Module.__call__


class Regression(pl.LightningModule):
    """`how` its step calls the network: itself, one part that holds all, or two parts."""

    def __init__(self, how: str = "itself") -> None:
        super().__init__()
        self.how = how
        self.encoder = nn.Sequential(nn.Linear(8, 16), Block(), Block())
        self.head = nn.Sequential(Block(), nn.Linear(16, 1))
        self.whole = nn.Sequential(self.encoder, self.head)
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y = batch
        made = {"itself": self, "one part": self.whole, "two parts": lambda x: self.head(self.encoder(x))}[self.how](x)
        loss = nn.functional.mse_loss(made, y)
        self.losses.append(loss.item())
        self.log("train_error", loss.sqrt())
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


def fit(folder: Path, module: Regression, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    torch.manual_seed(0)
    x = torch.randn(32, 8)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    given = {
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(callbacks=list(callbacks), **(given | options))
    trainer.fit(module, DataLoader(data, 8), DataLoader(data, 8))
    assert nn.Module.__call__ is CALL, "a trace is left"
    return trainer


def callback(folder: Path, run: str = "run") -> ResmonCallback:
    return ResmonCallback(directory=folder, agent="off", run=run)


def test_it_records_every_step_and_brings_what_lightning_knows(tmp_path: Path) -> None:
    module = Regression()
    trainer = fit(tmp_path, module, callback(tmp_path))
    flight = resmon.load(tmp_path / "run")
    steps = flight.steps()
    assert flight.outcome == "finished"
    assert steps["step"].tolist() == list(range(8))
    assert steps["loss"].tolist() == pytest.approx(module.losses)
    assert steps["train_error"].tolist() == pytest.approx([loss**0.5 for loss in module.losses])
    assert steps["epoch"].tolist() == [0.0] * 4 + [1.0] * 4
    assert steps["val_loss"].notna().tolist() == [False] * 3 + [True] + [False] * 3 + [True]
    assert steps["val_loss"][7] == pytest.approx(float(trainer.callback_metrics["val_loss"]))
    assert set(flight.blocks()["block"]) == {"encoder.1", "encoder.2", "head.0"}
    assert set(flight.blocks()["model"]) == {"Regression"}
    assert steps["gradient_norm"].notna().all()
    checkpoints = flight.checkpoints()
    assert checkpoints["step"].tolist() == [3, 7]
    assert Path(checkpoints["path"].iloc[-1]).is_file()
    assert not trainer.loggers


@pytest.mark.parametrize(
    ("how", "first", "blocks"),
    [
        ("one part", 0, {("Regression", "0.1"), ("Regression", "0.2"), ("Regression", "1.0")}),
        ("two parts", 1, {("encoder", "1"), ("encoder", "2"), ("head", "0")}),
    ],
)
def test_parts_that_the_step_calls(tmp_path: Path, how: str, first: int, blocks: set[tuple[str, str]]) -> None:
    fit(tmp_path, Regression(how), callback(tmp_path), limit_val_batches=0)
    flight = resmon.load(tmp_path / "run")
    assert flight.steps()["step"].tolist() == list(range(first, 8))
    table = flight.blocks()
    assert set(zip(table["model"], table["block"], strict=True)) == blocks


def test_training_is_not_changed(tmp_path: Path) -> None:
    made = []
    for callbacks in ([], [callback(tmp_path)]):
        torch.manual_seed(0)
        module = Regression()
        fit(tmp_path, module, *callbacks, accumulate_grad_batches=2, gradient_clip_val=0.5)
        made.append(module)
    bare, watched = made
    assert bare.losses == watched.losses
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))
    assert resmon.load(tmp_path / "run").steps()["step"].tolist() == list(range(4))


def test_attached_twice_the_second_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "resmon"):
        fit(tmp_path, Regression(), callback(tmp_path, "first"), callback(tmp_path, "second"))
    assert "two callbacks" in caplog.text
    assert len(resmon.load(tmp_path / "first").steps()) == 8
    assert not (tmp_path / "second").exists()


def test_a_training_that_fails_is_a_failed_run(tmp_path: Path) -> None:
    class Failing(Regression):
        def training_step(self, batch: Any, index: int) -> Tensor:
            if index == 2:
                raise ValueError("seven")
            return super().training_step(batch, index)

    with pytest.raises(ValueError, match="seven"):
        fit(tmp_path, Failing(), callback(tmp_path))
    flight = resmon.load(tmp_path / "run")
    assert flight.outcome == "failed"
    assert flight.steps()["step"].tolist() == [0, 1]
    assert nn.Module.__call__ is CALL
