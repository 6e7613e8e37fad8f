"""Trainings that really break, each in its own way: which cause the post-mortem puts first, and what it says of it.

Those that end their process run in one of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from resmon.flight.frames import load
from resmon.postmortem.report import Report, make
from tests.postmortem import trainings

ROOT = Path(__file__).parents[2]

# What is told of a training: the cause that comes first, and words of the third sentence.
FAST = {
    "logarithm_of_zero": ("operation", "log in block 2 made -Inf of finite numbers"),
    "root_of_zero": ("operation", "sqrt in block 1 made gradients that are not finite of finite ones in the backward pass"),
    "learning_rate_at_once": ("explosion", "the gradient norm reached"),
    "half_precision_slowly": ("precision", "computed in float16, which ends at 65,504"),
    "rows": ("data", "rows 3, 4 of the batch"),
    "weights": ("weights", "2.up.weight was not finite before the step"),
    "healthy": ("", "No cause is needed"),
}
SLOW = {
    "shapes": ("shape_mismatch", "8×8×4×4"),
    "killed": ("killed", "left no end mark"),
    "zero_by_zero": ("operation", "div in block 1 made NaN of finite numbers"),
    "mean_over_nothing": ("operation", "the outputs of the model were finite and the loss"),
    "learning_rate": ("explosion", "the gradient norm reached"),
    "diverging": ("explosion", "the gradient norm reached"),
    "half_precision": ("precision", "computed in float16, which ends at 65,504"),
    "rows_from_the_start": ("data", "rows 3, 4 of the batch"),
    "outlier": ("data", "the inputs of that step were large"),
    "update": ("optimizer", "whose gradients were finite"),
    "schedule": ("optimizer", "whose gradients were finite"),
    "vanishing": ("vanishing", "it fades on its way"),
    "dead": ("vanishing", "the branch of 2 adds nothing any more from step 101 on"),
    "overfitting": ("overfitting", "validation loss"),
    "stochastic_depth": ("stochastic_depth", "3 kept fewer than half of their branches"),
    "never_kept": ("stochastic_depth", "the branches of 3 were never kept"),
    "slow_data": ("latency", "a step took"),
    "out_of_memory": ("out_of_memory", "main memory ran out in the forward pass"),
    "shapes_at_once": ("shape_mismatch", "skip 32×32"),
    "exception": ("exception", "KeyError: 'image-70.png'"),
    "preempted": ("killed", "SIGTERM"),
    "hang": ("stalled", "sigterm ended it. it was outside of any pass, at"),
    "by_hand": ("killed", "somebody stopped it by hand"),
}
HEALTHY = ("healthy_sgd", "healthy_warm_up", "healthy_zero_init", "healthy_half", "healthy_scaled", "healthy_depth")

SEEDS = (0, 1)

Telling = Callable[..., Report]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Telling:
    """The report on a training, which runs once."""

    directory = tmp_path_factory.mktemp("runs")

    def run(to: Path, seed: int, *names: str) -> str:
        command = [sys.executable, "-m", "tests.postmortem.trainings", "--seed", str(seed), str(to), *names]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False).stderr

    @cache
    def report(name: str, seed: int = 0) -> Report:
        to = directory / str(seed)
        together = next((group for group in (tuple(FAST), HEALTHY) if name in group), (name,))
        said = "" if (to / name).exists() else run(to, seed, *together)
        runs = sorted((to / name).glob("training/attempt-*"))
        assert runs, said
        return make(runs)

    return report


def check(report: Report, cause: str, words: str) -> None:
    indicated = [(each.key, each.score) for each in report.suspects if each.is_indicated]
    assert (indicated[0][0] if indicated else "") == cause, (indicated, report.summary)
    assert words.lower() in report.summary[2].lower()


@pytest.mark.parametrize("name", FAST)
def test_the_first_cause_is_the_true_one(name: str, told: Telling) -> None:
    check(told(name), *FAST[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_first_cause_is_the_true_one_of_others_too(name: str, told: Telling) -> None:
    check(told(name), *SLOW[name])


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", HEALTHY)
def test_a_training_that_is_well_has_no_cause(name: str, seed: int, told: Telling) -> None:
    check(told(name, seed), "", "No cause is needed")


def test_a_seed_decides_about_all_of_a_training(tmp_path: Path) -> None:
    losses = []
    for i, seed in enumerate((0, 0, 1)):
        trainings.run("update", tmp_path / str(i), seed)
        losses.append(load(tmp_path / str(i) / "training").steps()["loss"].to_numpy(dtype=float))
    assert np.array_equal(losses[0], losses[1], equal_nan=True)
    assert not np.isclose(losses[0], losses[2]).any()


def test_what_stands_in_the_flight_from_the_failure_on_is_no_evidence(told: Telling) -> None:
    """The gradient norm of the step is infinite because log 0 was, so it says nothing for an explosion."""
    suspects = {suspect.key: suspect for suspect in told("logarithm_of_zero").suspects}
    explosion = suspects["explosion"]
    assert not explosion.is_indicated
    assert not [each.text for each in explosion.evidence if "gradient norm became" in each.text]
    assert any("read nothing above" in each.text for each in explosion.evidence)
