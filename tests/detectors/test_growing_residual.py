from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.detectors.growing_residual import GrowingResidual
from resmon.detectors.window import WINDOW
from resmon.records import Floats
from tests.detectors.course import course, recorded, said
from tests.failing import Training, normed


def stream(steps: int, at: int, rate: float, most: float = 1e6) -> Floats:
    grown: Floats = np.minimum(most, np.exp(rate * np.maximum(0, np.arange(steps) - at)))[:, None] * np.ones(6)
    return grown


@pytest.mark.parametrize("rate", [0.005, 0.01, 0.03])
def test_exponential_growth(rate: float) -> None:
    found = stream(2600, 800, rate)
    opened, *rest = said(GrowingResidual(), course(2600, output_rms=found))
    assert (opened.kind, opened.severity, opened.block) == ("growing_residual", "ticket", "h.0")
    assert opened.evidence["followers_count"] == 5
    assert found[opened.opened_step, 0] / found[512, 0] > 8.0
    assert opened.opened_step - 800 < np.log(70) / rate + 8 * WINDOW
    assert "page" in [each.severity for each in rest]


@settings(max_examples=8, deadline=None)
@given(power=st.floats(0.0, 1.2), begin=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_growth_with_the_run_is_healthy(power: float, begin: float, seed: int) -> None:
    """As of weights that wander (the root of the steps) or that every update pushes the same way (the steps)."""
    step = np.arange(3000.0)[:, None] + 20
    assert said(GrowingResidual(), course(3000, seed=seed, output_rms=begin * step**power * np.ones(6))) == []


def test_early_learning_is_healthy() -> None:
    """From small weights to their size within some hundred steps, as a sigmoid."""
    step = np.arange(3000.0)[:, None]
    for middle in (150, 400, 700):
        assert (
            said(GrowingResidual(), course(3000, output_rms=0.05 + 1.0 / (1 + np.exp((middle - step) / 60)) + 0 * np.ones(6))) == []
        )


def test_a_jump_that_is_held_is_none() -> None:
    found = np.where(np.arange(3000) < 1500, 1.0, 40.0)[:, None] * np.ones(6)
    assert said(GrowingResidual(), course(3000, output_rms=found)) == []


def test_growth_over_depth_is_healthy() -> None:
    assert said(GrowingResidual(), course(2000, 48, output_rms=1.045 ** np.arange(48) * 3)) == []


def test_one_that_has_ceased_is_closed() -> None:
    events = said(GrowingResidual(), course(2600, output_rms=stream(2600, 800, 0.01, most=60.0)))
    assert events[-1].state == "closed" and "ceased to grow" in events[-1].summary


def headroom(values: Floats) -> Floats:
    filled: Floats = 2.0**-values
    return filled


def test_a_dtype_that_runs_out() -> None:
    room = np.maximum(0.3, 6.0 - 0.01 * np.maximum(0, np.arange(1200.0) - 300))[:, None] * np.ones(6)
    opened, page, *_ = said(GrowingResidual(), course(1200, fill=headroom(room)))
    assert (opened.severity, page.severity) == ("ticket", "page")
    assert "end of their dtype" in opened.summary
    assert 1.0 < opened.evidence["headroom"] <= 2.0
    assert page.step == pytest.approx(300 + 500, abs=3 * WINDOW)


def test_a_headroom_that_is_small_and_stays_is_healthy() -> None:
    """Attention scores that were always near the end of float16, at 1.8 doublings; and a bfloat16 with a hundred."""
    for room in (1.8, 118.0):
        assert said(GrowingResidual(), course(1200, fill=headroom(np.full((1200, 6), room)))) == []


def test_a_real_training(tmp_path: Path) -> None:
    """The weights before the first block grow by 3 % a step, and nobody sees it in the loss."""
    torch.manual_seed(0)
    training = Training("growing", str(tmp_path), normed(), agent="off")
    training.train(300)
    for _ in range(320):
        training.step(*training.batch())
        with torch.no_grad():
            training.model[0].weight.mul_(1.03)  # type: ignore[index, operator, union-attr]
    training.monitor.close()
    opened = said(GrowingResidual(), recorded(tmp_path / "growing"))[0]
    assert (opened.block, opened.evidence["followers"]) == ("1", ["2", "3"])
