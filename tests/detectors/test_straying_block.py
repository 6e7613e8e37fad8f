from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.options import Tuned
from resmon.detectors.straying_block import ACCEPTED, StrayingBlock, StrayingBlockOptions
from resmon.detectors.window import WINDOW
from resmon.records import Floats
from tests import synthetic
from tests.detectors.course import course, recorded, said
from tests.failing import Training, normed


def branches(steps: int = 800, blocks: int = 6) -> Floats:
    """Attention and MLP by turns, of different size."""
    return np.full((steps, blocks), 0.1) * np.where(np.arange(blocks) % 2, 8.0, 1.0)


@pytest.mark.parametrize("factor", [0.3, 2.5, 10.0])
def test_one_block_leaves_its_level(factor: float) -> None:
    branch = branches()
    branch[500:, 2] *= factor
    (finding,) = said(StrayingBlock(), course(800, branch_rms=branch))
    assert (finding.kind, finding.severity, finding.block) == ("straying_block", "ticket", "h.2")
    assert 500 + 2 * WINDOW <= finding.opened_step <= 500 + 5 * WINDOW
    assert abs(finding.evidence["since"] - 500) <= WINDOW
    assert finding.evidence["factor"] == pytest.approx(factor, rel=0.1)
    assert finding.evidence["usual"] == pytest.approx(0.1, rel=0.1)


def test_all_together_is_not_one() -> None:
    branch = branches()
    branch[500:] *= 5.0
    assert said(StrayingBlock(), course(800, branch_rms=branch)) == []


def test_the_others_may_move_too_but_not_as_far() -> None:
    branch = branches()
    branch[500:] *= np.exp(np.array([0.2, 0.1, 2.0, -0.1, 0.0, 0.2]))
    (finding,) = said(StrayingBlock(), course(800, branch_rms=branch))
    assert finding.block == "h.2"
    branch = branches()
    branch[500:] *= np.exp(np.array([0.2, -1.5, 2.0, -1.6, 1.7, 0.2]))
    assert said(StrayingBlock(), course(800, branch_rms=branch)) == [], "a change of the whole"


def test_a_restless_block_is_judged_by_its_own_unrest() -> None:
    random = np.random.default_rng(0)
    branch = branches(2000)
    branch[:, 2] *= np.repeat(np.exp(random.normal(0, 0.5, 125)), WINDOW)
    assert said(StrayingBlock(), course(2000, branch_rms=branch)) == []


def test_slow_learning_is_followed() -> None:
    branch = branches(6000)
    branch[:, 2] *= np.exp(np.linspace(0, 3, 6000))
    assert said(StrayingBlock(), course(6000, branch_rms=branch)) == []


def test_a_new_level_becomes_usual() -> None:
    branch = branches(3000)
    branch[500:, 2] *= 4.0
    _, closed = said(StrayingBlock(), course(3000, branch_rms=branch))
    assert closed.state == "closed"
    assert closed.step == pytest.approx(500 + (ACCEPTED + 4) * WINDOW, abs=6 * WINDOW)


def test_of_two_blocks_nobody_knows_which() -> None:
    branch = branches(800, 2)
    branch[500:, 1] *= 10
    assert said(StrayingBlock(), course(800, 2, branch_rms=branch)) == []


def test_models_are_looked_at_apart() -> None:
    sites = synthetic.sites(4, "actor") + synthetic.sites(4, "critic")
    branch = branches(800, 8)
    branch[500:, :4] *= 6.0
    branch[600:, 5] *= 6.0
    (finding,) = said(StrayingBlock(), course(800, sites, branch_rms=branch))
    assert (finding.model, finding.block) == ("critic", "h.1")


def test_one_that_is_larger_than_all_others_from_the_start() -> None:
    branch = np.full(6, 0.1) * np.array([1, 1.3, 1, 6, 1.2, 1])
    (finding,) = said(StrayingBlock(), course(100, branch_rms=branch))
    assert (finding.block, finding.evidence["since"]) == ("h.3", 0)
    assert finding.evidence["factor"] == pytest.approx(6 / 1.3, rel=0.1)
    assert said(StrayingBlock(), course(100, first=5000, branch_rms=branch)) == [], "a run that was resumed has learnt"
    wide = branch * np.array([0.02, 1, 1, 1, 0.1, 1])
    assert said(StrayingBlock(), course(100, branch_rms=wide)) == [], "they differ as much anyway"


def test_it_is_of_no_matter_later() -> None:
    """Blocks find their places: one becomes the loudest within some thousand steps."""
    branch = np.full((4000, 6), 0.1)
    branch[:, 4] *= np.minimum(8.0, 1 + np.arange(4000) / 400)
    assert said(StrayingBlock(), course(4000, branch_rms=branch)) == []


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("blocks", [3, 8, 24])
def test_noise_is_none(noise: float, blocks: int) -> None:
    """Independent from step to step, or a level that wanders."""
    random = np.random.default_rng(blocks)
    wandering = np.repeat(np.exp(np.cumsum(random.normal(0, noise / 4, (125, blocks)), axis=0)), WINDOW, axis=0)
    for levels in (np.ones((2000, blocks)), wandering):
        assert said(StrayingBlock(), course(2000, blocks, seed=blocks, jitter=noise, branch_rms=0.1 * levels)) == []


def test_what_is_tuned() -> None:
    branch = branches()
    branch[500:, 2] *= 1.4
    assert said(StrayingBlock(), course(800, branch_rms=branch)) == []
    assert len(said(StrayingBlock(Tuned(StrayingBlockOptions(factor=1.2))), course(800, branch_rms=branch))) == 1


def test_a_real_training_that_loses_a_scale(tmp_path: Path) -> None:
    torch.manual_seed(2)
    training = Training("straying", str(tmp_path), normed(), agent="off")
    training.train(430)
    training.model[1].down.register_forward_hook(lambda _module, _inputs, output: 5 * output)  # type: ignore[index, union-attr]
    training.train(90)
    training.monitor.close()
    (finding,) = said(StrayingBlock(), recorded(tmp_path / "straying"))
    assert finding.block == "1" and finding.opened_step <= 430 + 6 * WINDOW
    assert finding.evidence["factor"] > 3
