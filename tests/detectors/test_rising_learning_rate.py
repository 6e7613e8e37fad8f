from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.rising_learning_rate import RisingLearningRate
from resmon.records import Finding, Floats
from tests import failing
from tests.detectors.course import course, recorded, said

STEPS = 1600
STEP = np.arange(STEPS)
FALLING = 0.5 + np.exp(-STEP / 60)


def found(rate: Floats, loss: Floats | None = None, seed: int = 0, **run: Floats) -> list[Finding]:
    noise = np.exp(0.1 * np.random.default_rng(seed).normal(0, 1, len(rate)))
    scalars = {"loss": loss * noise} if loss is not None else {}
    return said(RisingLearningRate(), course(len(rate), 2, run={"learning_rate": rate, **run}, scalars=scalars))


def rises(since: int = 800, by: float = 1.01) -> Floats:
    return 1e-3 * np.where(since > STEP, 1.0, by ** (STEP - since))


def turns(at: int, by: float = 1.005) -> Floats:
    return FALLING * np.where(at > STEP, 1.0, by ** (STEP - at))


def test_a_rise_that_harms() -> None:
    opened, *_ = found(rises(), turns(1000))
    assert (opened.kind, opened.severity, opened.block) == ("rising_learning_rate", "ticket", "")
    assert opened.evidence["rises_since"] == 800 and opened.evidence["learning_rate_before"] == pytest.approx(1e-3)
    assert 1000 < opened.opened_step < 1250
    assert opened.evidence["factor"] == pytest.approx(1.01 ** (opened.opened_step - 800), rel=0.01)


def test_a_jump_that_harms() -> None:
    (opened,) = found(np.where(STEP < 800, 1e-3, 3e-2), turns(800, 1.02)[:STEPS].clip(max=50))
    assert 800 + 3 * 16 - 1 <= opened.opened_step < 960 and opened.evidence["factor"] == pytest.approx(30)


def test_a_rise_that_harms_nothing() -> None:
    assert found(rises(), FALLING) == []


@pytest.mark.parametrize(
    "schedule",
    {
        "warm-up": np.minimum(1, (STEP + 1) / 400),
        "warm-up and cosine": np.minimum(1, (STEP + 1) / 100) * (1 + np.cos(np.pi * STEP / STEPS)) / 2 + 1e-6,
        "one cycle": np.interp(STEP, [0, 1100, STEPS], [0.04, 1.0, 0.001]),
        "restarts": 0.01 + (1 + np.cos(np.pi * (STEP % 400) / 400)) / 2,
        "restarts after a warm-up": np.minimum(1, (STEP + 1) / 64) * (0.01 + (1 + np.cos(np.pi * (STEP % 400) / 400)) / 2),
        "triangles": 0.1 + np.abs((STEP / 200) % 2 - 1),
        "steps": 0.1 ** (STEP // 500),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_schedule_is_none_whatever_the_loss_does(schedule: tuple[str, Floats]) -> None:
    for loss in (FALLING, turns(900), np.where(STEP % 400 < 100, 1.5, 0.5)):
        assert found(1e-3 * schedule[1], loss) == []


def test_without_a_loss_the_gradient_norm_tells() -> None:
    square = np.where(STEP < 1000, 1.0, 1.01 ** (STEP - 1000).clip(0, 500)) ** 2
    opened, *_ = found(rises(), gradient_square=square)
    assert "gradient norm" in opened.summary and opened.opened_step > 1000
    assert found(rises(), gradient_square=np.ones(STEPS)) == []


def test_the_largest_of_all_groups_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    failing.rising_learning_rate(str(tmp_path))
    (opened,) = said(RisingLearningRate(), recorded(tmp_path / "rising-learning-rate"))
    assert opened.evidence["learning_rate_before"] == pytest.approx(3e-3)
    assert abs(opened.evidence["rises_since"] - 200) <= 16
