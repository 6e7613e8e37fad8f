from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.detectors.dead_branch import DeadBranch, DeadBranchOptions
from resmon.detectors.options import Tuned
from resmon.detectors.window import WINDOW
from tests.detectors.course import course, recorded, said
from tests.failing import Training


def test_a_branch_that_falls_to_zero() -> None:
    branch = np.full((600, 6), 0.3)
    branch[195:400, 3] = 0.0
    opened, closed = said(DeadBranch(), course(600, branch_rms=branch))
    assert (opened.kind, opened.severity, opened.block) == ("dead_branch", "ticket", "h.3")
    assert 195 + 7 * WINDOW <= opened.opened_step <= 195 + 9 * WINDOW
    assert abs(opened.evidence["since"] - 195) <= WINDOW
    assert opened.evidence["usual"] == pytest.approx(0.3, rel=0.1)
    assert opened.evidence["branch_skip_ratio"] == 0
    assert closed.state == "closed" and "the branches were back" in closed.summary


def test_one_that_stays_so_is_a_page() -> None:
    branch = np.full((200 + 70 * WINDOW, 6), 0.3)
    branch[200:, 1:3] = 1e-7
    opened, page = said(DeadBranch(), course(len(branch), branch_rms=branch))
    assert (opened.severity, page.severity, page.state) == ("ticket", "page", "updated")
    assert page.step - 200 == pytest.approx(64 * WINDOW, abs=2 * WINDOW)
    assert page.block == "h.1" and page.evidence["followers"] == ["h.2"]


@pytest.mark.parametrize("level", [1e-2, 1e-4])
def test_a_quiet_branch_is_alive(level: float) -> None:
    branch = np.full((600, 6), 0.3)
    branch[200:, 3] = level
    assert said(DeadBranch(), course(600, branch_rms=branch), end=True) == []


def test_a_zero_initialised_branch_is_not_dead() -> None:
    """From nothing it grows, as its gradient is not 0; nor is one that is frozen at 0, where no gradient is known."""
    step = np.arange(4000.0)[:, None]
    assert said(DeadBranch(), course(4000, branch_rms=np.where(step < 2500, 0.0, 1e-3 * (step - 2500)) + 0 * np.zeros(6))) == []
    branch, gradient = np.full(6, 0.3), np.full(6, 0.1)
    branch[2], gradient[2] = 0.0, np.nan
    assert said(DeadBranch(), course(4000, branch_rms=branch, gradient_norm=gradient)) == []


def test_one_to_which_no_gradient_comes_is_dead_from_the_start() -> None:
    branch, gradient = np.full(6, 0.3), np.full(6, 0.1)
    branch[2] = gradient[2] = 0.0
    (finding,) = said(DeadBranch(), course(3000, branch_rms=branch, gradient_norm=gradient))
    assert (finding.severity, finding.block, finding.evidence["since"]) == ("ticket", "h.2", 0)
    assert 128 * WINDOW <= finding.opened_step <= 137 * WINDOW
    assert "since the start and its gradient is 0" in finding.summary


def test_where_no_block_learns_none_is_named() -> None:
    assert said(DeadBranch(), course(3000, branch_rms=0.0, gradient_norm=0.0)) == []


def test_dead_units_whose_bias_is_still_added() -> None:
    units = np.full((1600, 6), 0.1)
    units[200:, 4] = 1.0
    (finding,) = said(DeadBranch(), course(1600, dead=units))  # and it never is a page
    assert finding.severity == "ticket"
    assert finding.block == "h.4" and "what its branch adds is constant" in finding.summary
    assert finding.evidence["dead_unit_ratio"] == 1.0
    assert said(DeadBranch(), course(600, dead=np.full((600, 6), 1.0))) == [], "it has never been another"


def test_a_branch_that_is_dropped_for_every_sample() -> None:
    kept = np.full((600, 6), 6)
    kept[200:, 3] = 0
    square = np.where(kept == 0, np.nan, 24.0)
    branch = np.where(kept == 0, 0.0, 0.3)
    items = course(600, samples=np.full((600, 6), 8), kept=kept, kept_square=square, branch_rms=branch)
    assert [finding.block for finding in said(DeadBranch(), items)] == ["h.3"]


def test_what_is_tuned() -> None:
    branch = np.full((600, 6), 0.3)
    branch[200:, 3] = 1e-4
    tuned = Tuned(DeadBranchOptions(ratio=1e-3, windows=2))
    (finding,) = said(DeadBranch(tuned), course(600, branch_rms=branch))
    assert finding.opened_step <= 200 + 3 * WINDOW
    alone = Tuned(DeadBranchOptions(), {"h.3": {"ratio": 1e-3}})
    assert len(said(DeadBranch(alone), course(600, branch_rms=branch))) == 1
    assert said(DeadBranch(Tuned(DeadBranchOptions(), {"h.[12]": {"ratio": 1e-3}})), course(600, branch_rms=branch)) == []


@settings(max_examples=8, deadline=None)
@given(dead=st.integers(0, 5), at=st.integers(130, 300), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_whichever_block_and_whatever_the_scale_of_the_stream(dead: int, at: int, scale: float, seed: int) -> None:
    branch = np.full((520, 6), 0.3 * scale)
    branch[at:, dead] = 0.0
    (finding,) = said(DeadBranch(), course(520, seed=seed, skip_rms=scale, branch_rms=branch))
    assert finding.block == f"h.{dead}" and abs(finding.evidence["since"] - at) <= WINDOW


@pytest.mark.parametrize("last", ["down", "up"])
def test_a_real_training(tmp_path: Path, last: str) -> None:
    """The last layer becomes 0; or its units die, and its bias remains."""
    torch.manual_seed(0)
    training = Training("dead", str(tmp_path), agent="off")
    training.train(120)
    with torch.no_grad():
        for parameter in getattr(training.model[2], last).parameters():  # type: ignore[index]
            parameter.fill_(0.0) if last == "down" else parameter.copy_(-parameter.abs() if parameter.dim() > 1 else parameter - 50)
            parameter.requires_grad_(False)
    training.train(240 if last == "down" else 700)
    training.monitor.close()
    events = said(DeadBranch(), recorded(tmp_path / "dead"))
    assert [(event.kind, event.block) for event in events if event.state == "opened"] == [("dead_branch", "2")]
    assert events[0].evidence["since"] >= 112
