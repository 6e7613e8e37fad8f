from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.frozen_block import FrozenBlock, FrozenBlockOptions
from resmon.detectors.options import Tuned
from resmon.detectors.window import WINDOW
from resmon.records import Floats, StepRecord
from tests import synthetic
from tests.detectors.course import course, recorded, said
from tests.failing import Training


def gradients(steps: int = 600, blocks: int = 6) -> Floats:
    return np.full((steps, blocks), 0.1)


@pytest.mark.parametrize("gone", [0.0, np.nan])
def test_a_block_whose_gradient_goes(gone: float) -> None:
    gradient = gradients()
    gradient[203:420, 3] = gone
    opened, closed = said(FrozenBlock(), course(600, gradient_norm=gradient))
    assert (opened.kind, opened.severity, opened.block, opened.evidence["since"]) == ("frozen_block", "ticket", "h.3", 203)
    assert opened.opened_step <= 203 + 9 * WINDOW
    assert opened.seen == ("0" if gone == 0 else "there is none")
    assert opened.evidence["usual"] == pytest.approx(0.1, rel=0.1)
    assert closed.state == "closed" and "learn again" in closed.summary


def test_one_that_is_frozen_from_the_start_is_a_choice() -> None:
    for frozen in (0.0, np.nan):
        gradient = gradients(3000)
        gradient[:, :3] = frozen
        assert said(FrozenBlock(), course(3000, gradient_norm=gradient)) == []


def test_all_at_once_is_the_end_and_not_one_block() -> None:
    gradient = gradients()
    gradient[200:] = np.nan
    assert said(FrozenBlock(), course(600, gradient_norm=gradient)) == []


def test_a_model_that_waits_while_another_learns() -> None:
    """Actor and critic by turns, three hundred steps each: none of a model's own blocks learns while it waits."""
    sites = synthetic.sites(3, "actor") + synthetic.sites(3, "critic")
    gradient = gradients(1800)
    for start in range(0, 1800, 600):
        gradient[start : start + 300, :3] = np.nan
        gradient[start + 300 : start + 600, 3:] = np.nan
    assert said(FrozenBlock(), course(1800, sites, gradient_norm=gradient)) == []


def test_a_block_that_does_not_run_is_not_frozen() -> None:
    gradient, stream = gradients(), np.ones((600, 6))
    gradient[200:, 3] = stream[200:, 3] = np.nan
    assert said(FrozenBlock(), course(600, gradient_norm=gradient, skip_rms=stream, branch_rms=0.3 * stream)) == []


def test_a_gradient_now_and_then_is_enough() -> None:
    gradient = gradients()
    gradient[200:, 3] = np.where(np.arange(400) % 64 == 0, 0.1, 0.0)
    assert said(FrozenBlock(), course(600, gradient_norm=gradient)) == []


def test_values_that_are_not_finite_are_not_absent() -> None:
    """As those of one block in 16 bits; nonfinite tells them."""
    items = course(600)
    for item in items:
        if isinstance(item, StepRecord) and item.step >= 200:
            item.blocks[3, 2] = np.inf
    assert said(FrozenBlock(), items) == []


def test_a_dead_branch_is_told_as_such() -> None:
    gradient, branch = gradients(), np.full((600, 6), 0.3)
    gradient[200:, 3] = branch[200:, 3] = 0.0
    assert said(FrozenBlock(), course(600, gradient_norm=gradient, branch_rms=branch)) == []


def test_several_are_one_finding() -> None:
    gradient = gradients()
    gradient[200:, :2] = np.nan
    gradient[240:, 2:4] = np.nan
    (opened,) = said(FrozenBlock(), course(600, gradient_norm=gradient))
    assert (opened.block, opened.evidence["followers"]) == ("h.0", ["h.1", "h.2", "h.3"])


def test_it_pages_where_that_is_asked_for() -> None:
    gradient = gradients(1200)
    gradient[200:, 3] = 0.0
    assert [event.severity for event in said(FrozenBlock(), course(1200, gradient_norm=gradient))] == ["ticket"]
    tuned = Tuned(FrozenBlockOptions(page=32))
    assert [event.severity for event in said(FrozenBlock(tuned), course(1200, gradient_norm=gradient))] == ["ticket", "page"]


@pytest.mark.parametrize("how", ["requires no gradient", "detached", "thawed"])
def test_a_real_training(tmp_path: Path, how: str) -> None:
    torch.manual_seed(0)
    training = Training("frozen", str(tmp_path), agent="off")
    block = training.model[2]  # type: ignore[index]
    training.train(150)
    if how == "detached":
        block.down.register_forward_hook(lambda _module, _inputs, output: output.detach())
    else:
        block.requires_grad_(False)
    training.train(100)
    if how == "thawed":
        block.requires_grad_(True)
    training.train(100)
    training.monitor.close()
    events = said(FrozenBlock(), recorded(tmp_path / "frozen"))
    assert [(event.state, event.block) for event in events] == ([("opened", "2")] if how != "thawed" else [])
    assert all(event.evidence["since"] == 150 for event in events)
