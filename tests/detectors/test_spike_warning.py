from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.spike_warning import SpikeWarning
from resmon.records import Floats
from tests import failing
from tests.detectors.course import course, recorded, said

STEP = np.arange(1000)


def branches(level: float = 0.6) -> Floats:
    return np.full((1000, 6), level)


def growing(branch: Floats, since: int = 600, by: float = 1.02) -> Floats:
    branch[since : since + 96, 2] *= by ** np.arange(96)
    branch[since + 96 :, 2] *= by**96
    return branch


def test_a_ratio_that_rises_while_the_loss_is_fine() -> None:
    opened, closed = said(SpikeWarning(), course(1000, branch_rms=growing(branches()), scalars={"loss": 1.0}))
    assert (opened.kind, opened.severity, opened.block) == ("spike_warning", "ticket", "h.2")
    assert 600 + 3 * 16 - 1 <= opened.opened_step <= 600 + 6 * 16
    assert opened.evidence["usual"] == pytest.approx(0.6, rel=0.1) and opened.evidence["factor"] > 1.5
    assert closed.state == "closed" and closed.step < 832  # it no longer rises


def test_no_warning_comes_after_the_spike() -> None:
    loss = np.where(STEP < 600, 1.0, 1.01 ** (STEP - 600).clip(0, 200))
    assert said(SpikeWarning(), course(1000, branch_rms=growing(branches()), scalars={"loss": loss})) == []


@pytest.mark.parametrize("what", ["early", "slow", "small", "one window", "falls", "noisy"])
def test_what_is_no_warning(what: str) -> None:
    branch, jitter = branches(), 0.05
    if what == "early":
        branch = growing(branch, since=100)
    elif what == "slow":
        branch *= np.exp(STEP / 400)[:, None]
    elif what == "small":
        branch = growing(branches(0.02))
    elif what == "one window":
        branch[608:624] *= 5
    elif what == "falls":
        branch = growing(branch, by=0.98)
    else:
        branch *= np.exp(0.3 * np.random.default_rng(0).normal(0, 1, 63)).repeat(16)[:1000, None]
    items = course(1000, branch_rms=branch, jitter=jitter, scalars={"loss": 1.0})
    assert said(SpikeWarning(), items, end=True) == []


def test_zero_initialised_branches_grow_in_health() -> None:
    branch = np.maximum(0.0, 1 - np.exp(-(STEP - 20) / 80))[:, None] * np.ones(6)
    assert said(SpikeWarning(), course(1000, branch_rms=branch, scalars={"loss": np.exp(-STEP / 200)}), end=True) == []


def test_a_real_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    failing.spike_warning(str(tmp_path))
    opened, _ = said(SpikeWarning(), recorded(tmp_path / "spike-warning"), end=True)
    assert opened.block == "2" and 420 <= opened.opened_step < 500
