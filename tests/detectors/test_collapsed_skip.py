from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.collapsed_skip import CollapsedSkip, CollapsedSkipOptions
from resmon.detectors.options import Tuned
from resmon.detectors.window import WINDOW
from resmon.records import Floats
from tests.detectors.course import ELEMENTS, course, recorded, said
from tests.failing import Training, normed


def ratios(steps: int = 600) -> Floats:
    return np.full((steps, 6), 0.3)


def test_a_branch_that_drowns_its_skip() -> None:
    branch = ratios()
    branch[197:420, 3] = 15.0
    opened, closed = said(CollapsedSkip(), course(600, branch_rms=branch))
    assert (opened.kind, opened.severity, opened.block) == ("collapsed_skip", "ticket", "h.3")
    assert 197 + 3 * WINDOW <= opened.opened_step <= 197 + 5 * WINDOW
    assert abs(opened.evidence["since"] - 197) <= WINDOW
    assert opened.evidence["usual"] == pytest.approx(0.3, rel=0.1)
    assert opened.evidence["branch_skip_ratio"] == pytest.approx(15, rel=0.1)
    assert closed.state == "closed"


def test_one_that_lasts_is_a_page() -> None:
    branch = ratios(1000)
    branch[200:, 3] = 15.0
    opened, page = said(CollapsedSkip(), course(1000, branch_rms=branch))
    assert (opened.severity, page.severity) == ("ticket", "page")
    assert page.step - 200 == pytest.approx(24 * WINDOW, abs=2 * WINDOW)


@pytest.mark.parametrize("level", [3.0, 9.0])
def test_a_loud_branch_is_healthy(level: float) -> None:
    branch = ratios()
    branch[200:, 3] = level
    assert said(CollapsedSkip(), course(600, branch_rms=branch)) == []


def test_a_block_that_has_always_been_loud_is_healthy_up_to_a_point() -> None:
    branch = np.full(6, 0.3)
    branch[0] = 15.0
    assert said(CollapsedSkip(), course(600, branch_rms=branch)) == []
    branch[0] = 30.0
    (finding,) = said(CollapsedSkip(), course(2000, branch_rms=branch))
    assert (finding.severity, finding.block, finding.evidence["since"]) == ("ticket", "h.0", 0)
    tuned = Tuned(CollapsedSkipOptions(), {"h.0": {"outright": 100.0}})
    assert said(CollapsedSkip(tuned), course(2000, branch_rms=branch)) == []


def test_a_few_massive_positions_are_none() -> None:
    """The sums are those of one token; at the usual position the ratio is as it was."""
    branch = ratios()
    branch[200:, 1] = 300.0
    assert said(CollapsedSkip(), course(600, branch_rms=branch, position_ratio=0.3)) == []


def test_a_branch_that_takes_the_stream_back() -> None:
    """y = s + f with f near -s: the product is that of opposite vectors."""
    step = np.arange(800)[:, None] * np.ones(6)
    gone = np.where((step > 300) & (np.arange(6) == 2), 1.0, 0.0)
    branch, output = 0.3 + 0.65 * gone, 1.05 - 0.95 * gone
    product = np.where(gone > 0, -0.99 * ELEMENTS * 0.95, 0.0)
    (finding, *rest) = said(CollapsedSkip(), course(800, jitter=0.01, branch_rms=branch, output_rms=output, product=product))
    assert (finding.block, finding.severity) == ("h.2", "ticket") and "taken back the stream" in finding.summary
    assert finding.evidence["alignment"] == pytest.approx(-0.99, abs=0.03)
    assert finding.evidence["growth"] == pytest.approx(0.1, rel=0.1)
    assert [each.severity for each in rest] == ["page"]


def test_a_stream_that_shrinks_a_little_is_healthy() -> None:
    assert said(CollapsedSkip(), course(600, output_rms=0.7, product=-0.95 * 0.3 * ELEMENTS)) == []


def test_a_real_training_whose_weights_were_scaled(tmp_path: Path) -> None:
    torch.manual_seed(1)
    training = Training("collapsed", str(tmp_path), normed(), agent="off")
    training.train(130)
    with torch.no_grad():
        training.model[3].down.weight.mul_(100)  # type: ignore[index, operator, union-attr]
    training.train(110)
    training.monitor.close()
    (finding,) = said(CollapsedSkip(), recorded(tmp_path / "collapsed"))
    assert finding.block == "3" and abs(finding.evidence["since"] - 130) <= 2 * WINDOW
