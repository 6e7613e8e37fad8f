"""The real Trainer, with the callback."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import resmon
from resmon.integrations.transformers import ResmonCallback


class Numbers(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x = torch.randint(0, 50, (16,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": x, "labels": x}


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16))


def trainer(folder: Path, *callbacks: Any, net: Any = None, **options: Any) -> Trainer:
    given = {
        "output_dir": str(folder / "out"),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    made = Trainer(
        net or model(),
        TrainingArguments(**(given | options)),
        train_dataset=Numbers(),
        eval_dataset=Numbers(),
        callbacks=list(callbacks),
    )
    made.train(resume_from_checkpoint=options.get("resume_from_checkpoint"))
    return made


def test_it_records_every_step_and_brings_what_the_trainer_knows(tmp_path: Path) -> None:
    watched = trainer(tmp_path, ResmonCallback(directory=tmp_path, agent="off"), run_name="digits")
    flight = resmon.load(tmp_path / "digits")
    steps = flight.steps()
    assert flight.outcome == "finished"
    assert steps["step"].tolist() == list(range(6))
    assert sorted(set(flight.blocks()["block"])) == [f"transformer.h.{i}.{part}" for i in range(2) for part in ("attn", "mlp")]
    history = watched.state.log_history
    logged = {entry["step"] - 1: entry for entry in history if "loss" in entry}
    assert dict(steps["loss"].dropna()) == {step: entry["loss"] for step, entry in logged.items()}
    # What the Trainer clips to is what it logs; the flight has it before clipping at every step.
    for step, entry in logged.items():
        assert steps["gradient_norm"][step] == pytest.approx(entry["grad_norm"], rel=1e-4)
        assert steps["epoch"][step] == entry["epoch"]
    scores = {entry["step"] - 1: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert {step: steps["val_loss"][step] for step in scores} == scores
    assert steps["learning_rate"].notna().all()
    checkpoints = flight.checkpoints()
    assert checkpoints["step"].tolist() == [3, 5]
    assert all(Path(path).is_dir() for path in checkpoints["path"])


def test_training_is_not_changed_and_the_trainer_can_be_used_again(tmp_path: Path) -> None:
    bare = trainer(tmp_path / "bare")
    callback = ResmonCallback(directory=tmp_path, agent="off", run="run")
    watched = trainer(tmp_path / "watched", callback)
    for a, b in zip(bare.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert callback.monitor is None
    watched.train()
    assert resmon.load(tmp_path / "run").attempt == 2


def test_a_resumed_training_goes_on_with_its_step(tmp_path: Path) -> None:
    trainer(tmp_path)
    trainer(
        tmp_path,
        ResmonCallback(directory=tmp_path, agent="off", run="run"),
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"),
    )
    assert resmon.load(tmp_path / "run").steps()["step"].tolist() == [4, 5]


def test_attached_twice_the_second_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "resmon"):
        trainer(tmp_path, *(ResmonCallback(directory=tmp_path, agent="off", run=run) for run in ("first", "second")))
    assert "watched already" in caplog.text
    assert len(resmon.load(tmp_path / "first").steps()) == 6
    assert not (tmp_path / "second").exists()
