from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.vanishing_gradients import VanishingGradients
from resmon.records import Floats
from tests import failing, synthetic
from tests.detectors.course import course, recorded, said


def outputs(steps: int = 900) -> Floats:
    return np.full((steps, 6), 0.01)


def test_a_fall_names_the_block_and_where_it_is_lost() -> None:
    output = outputs()
    output[200:600, :3] = 1e-4
    opened, updated_or_closed = said(VanishingGradients(), course(900, output_gradient_norm=output, scalars={"loss": 1.0}))
    assert (opened.kind, opened.severity, opened.block) == ("vanishing_gradients", "ticket", "h.2")
    assert opened.opened_step == 208 + 4 * 16 - 1 and opened.evidence["since"] == 208  # half of a window and more
    assert opened.evidence["lost_in"] == "h.3" and opened.evidence["followers"] == ["h.0", "h.1"]
    assert updated_or_closed.state == "closed"


def test_one_that_lasts_is_a_page() -> None:
    output = outputs(1600)
    output[208:] = 0.0
    events = said(VanishingGradients(), course(1600, output_gradient_norm=output, scalars={"loss": 1.0}))
    assert [(each.state, each.severity) for each in events] == [("opened", "ticket"), ("updated", "page")]
    assert events[1].step == 208 + 32 * 16 - 1 and events[0].evidence["lost_in"] == ""


def test_learning_that_is_over_is_healthy() -> None:
    """Gradients fall with the loss, both to nothing, slowly or at once; in 16 bits both become 0."""
    for loss in (np.exp(-np.arange(1500) / 60), np.where(np.arange(1500) < 300, 1.0, 1e-4)):
        loss = np.where(loss < 1e-8, 0.0, loss)
        items = course(1500, output_gradient_norm=0.01 * loss[:, None], scalars={"loss": loss})
        assert said(VanishingGradients(), items, end=True) == []


def test_without_a_loss_only_blocks_that_fall_alone_count() -> None:
    output = outputs()
    output[208:] = 1e-5
    assert said(VanishingGradients(), course(900, output_gradient_norm=output)) == []
    output[208:, 4:] = 0.01
    opened, paged = said(VanishingGradients(), course(900, output_gradient_norm=output))
    assert opened.block == "h.3" and paged.severity == "page"


def test_loss_with_depth_needs_no_history() -> None:
    depth = np.array([1e-6, 1e-6, 1e-5, 1e-3, 1e-2, 1e-2])
    (opened,) = said(VanishingGradients(), course(100, output_gradient_norm=depth, scalars={"loss": 1.0}))
    assert (opened.block, opened.opened_step) == ("h.3", 63)
    assert opened.evidence["depth"] == pytest.approx(1e4, rel=0.2)
    fine = np.array([2e-4, 2e-4, 2e-4, 1e-2, 1e-2, 1e-2])  # encoder and decoder
    assert said(VanishingGradients(), course(100, output_gradient_norm=fine, scalars={"loss": 1.0})) == []


def test_zero_initialised_and_frozen_blocks_pass_gradients_on() -> None:
    gradient = np.full((900, 6), 0.1)
    gradient[:, 1], gradient[300:, 4] = 0.0, np.nan
    assert said(VanishingGradients(), course(900, gradient_norm=gradient, scalars={"loss": 1.0}), end=True) == []


def test_models_are_judged_apart() -> None:
    sites = synthetic.sites(3, "actor") + synthetic.sites(3, "critic")
    output = np.full((300, 6), 10.0)
    output[:, :3] = 1e-4
    assert said(VanishingGradients(), course(300, sites, output_gradient_norm=output, scalars={"loss": 1.0})) == []


def test_a_real_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    failing.vanishing_gradients(str(tmp_path))
    (opened,) = said(VanishingGradients(), recorded(tmp_path / "vanishing-gradients"))
    assert (opened.block, opened.evidence["lost_in"], opened.evidence["since"]) == ("2", "3", 208)
