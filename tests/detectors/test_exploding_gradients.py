from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.detectors.exploding_gradients import ExplodingGradients, ExplodingGradientsOptions
from resmon.detectors.options import Tuned
from resmon.records import Floats
from tests import failing, synthetic
from tests.detectors.course import course, recorded, said


def gradients(steps: int = 800, blocks: int = 6) -> Floats:
    return np.full((steps, blocks), 0.1)


def test_a_rise_is_told_with_its_size_and_closed_when_it_is_over() -> None:
    gradient = gradients()
    gradient[400:560, :4] *= 12
    opened, closed = said(ExplodingGradients(), course(800, gradient_norm=gradient, scalars={"loss": 1.0}))
    assert (opened.kind, opened.severity, opened.block) == (
        "exploding_gradients",
        "ticket",
        "h.3",
    )  # the pass backward comes there first
    assert opened.opened_step == 400 + 3 * 16 - 1 and opened.evidence["since"] == 400
    assert opened.evidence["followers"] == ["h.0", "h.1", "h.2"]
    assert opened.evidence["factor"] == pytest.approx(12, rel=0.1)
    assert opened.evidence["usual"] == pytest.approx(0.1, rel=0.1)
    assert closed.state == "closed" and closed.step == 560 + 4 * 16 - 1


def test_a_large_one_that_lasts_is_a_page() -> None:
    gradient = gradients(1400)
    gradient[400:] *= 40  # longer than what is remembered: what was usual stays so
    events = said(ExplodingGradients(), course(1400, gradient_norm=gradient, scalars={"loss": 1.0}))
    assert [(each.state, each.severity) for each in events] == [("opened", "ticket"), ("updated", "page")]
    assert events[1].step == 400 + 8 * 16 - 1


@pytest.mark.parametrize("what", ["small", "short", "within its spread", "slow", "the smallest block"])
def test_what_is_no_explosion(what: str) -> None:
    gradient, jitter = gradients(1600), 0.05
    if what == "small":
        gradient[400:] *= 4
    elif what == "short":
        gradient[400:432] *= 100
    elif what == "within its spread":
        gradient *= np.exp(np.random.default_rng(0).normal(0, 1.0, 100)).repeat(16)[:, None]
    elif what == "slow":
        gradient *= np.exp(np.arange(1600) / 600)[:, None]
    else:
        gradient[:, 2] = 1e-4
        gradient[400:, 2] = 1e-2  # still a tenth of the others'
    assert said(ExplodingGradients(), course(1600, gradient_norm=gradient, jitter=jitter, scalars={"loss": 1.0}), end=True) == []


def test_what_the_loss_explains() -> None:
    """A restart of the learning rate: the loss comes back from next to nothing, and its gradients with it."""
    level = np.where(np.arange(900) < 500, 1e-3, 0.1)
    level[:64] = 1.0
    gradient = gradients(900) * level[:, None]
    assert said(ExplodingGradients(), course(900, gradient_norm=gradient, scalars={"loss": level})) == []
    assert said(
        ExplodingGradients(), course(900, gradient_norm=gradient, scalars={"loss": np.where(np.arange(900) < 64, 1.0, 0.3)})
    )


def test_where_all_is_learnt_it_must_be_larger_than_ever() -> None:
    loss = np.where(np.arange(900) < 64, 1.0, 1e-3)
    gradient = gradients(900) * loss[:, None]
    gradient[500:] *= 100
    assert said(ExplodingGradients(), course(900, gradient_norm=gradient, scalars={"loss": loss})) == []
    gradient[500:] *= 100
    assert said(ExplodingGradients(), course(900, gradient_norm=gradient, scalars={"loss": loss}))


def test_growth_within_one_block_needs_no_history() -> None:
    output = np.full((100, 6), 0.01)
    output[:, :3] = 0.5
    (opened,) = said(ExplodingGradients(), course(100, output_gradient_norm=output))
    assert (opened.block, opened.opened_step, opened.evidence["since"]) == ("h.3", 47, 0)
    assert opened.evidence["jump"] == pytest.approx(50, rel=0.1)


def test_growth_with_depth() -> None:
    """Twice as much in every block: none jumps, all together do; stages of a convolutional network come to 460."""
    depth = np.arange(13)[::-1]
    (opened,) = said(ExplodingGradients(), course(100, 13, jitter=0.01, output_gradient_norm=1e-3 * 2.0**depth))
    assert opened.evidence["since"] == 0 and opened.evidence["jump"] == pytest.approx(2, rel=0.1)
    assert said(ExplodingGradients(), course(100, 13, output_gradient_norm=1e-3 * 1.66**depth)) == []
    assert said(ExplodingGradients(), course(100, 40, output_gradient_norm=1e-3 * 1.25 ** np.arange(40)[::-1])) == []


def test_the_first_block_is_judged_by_its_branch() -> None:
    branch = np.full((100, 6), 0.3)
    branch[:, 0] = 60.0
    (opened,) = said(ExplodingGradients(), course(100, branch_rms=branch))
    assert opened.block == "h.0" and opened.evidence["branch_skip_ratio"] == pytest.approx(60, rel=0.1)


def test_models_are_judged_apart() -> None:
    sites = synthetic.sites(3, "actor") + synthetic.sites(3, "critic")
    output = np.full((100, 6), 0.01)
    output[:, :3] = 5.0  # between the actor's last and the critic's first is no jump
    assert said(ExplodingGradients(), course(100, sites, output_gradient_norm=output)) == []


@settings(max_examples=20, deadline=None)
@given(st.floats(-20, 20), st.integers(0, 100))
def test_no_scale_matters(scale: float, seed: int) -> None:
    """Gradients and losses in any unit, healthy and not, give the same steps."""
    gradient = gradients(640)
    gradient[400:, 2:] *= 20
    unit = 2.0**scale
    items = course(640, seed=seed, gradient_norm=gradient, scalars={"loss": 1.0})
    scaled = course(640, seed=seed, gradient_norm=gradient * unit, output_gradient_norm=0.01 * unit, scalars={"loss": unit})
    (event,), (other,) = said(ExplodingGradients(), items), said(ExplodingGradients(), scaled)
    assert (event.opened_step, event.block) == (other.opened_step, other.block)


def test_patterns_are_tuned() -> None:
    gradient = gradients(640)
    gradient[400:, 2] *= 8
    items = course(640, gradient_norm=gradient, scalars={"loss": 1.0})
    assert said(ExplodingGradients(), items)
    assert said(ExplodingGradients(Tuned(ExplodingGradientsOptions(), {"h.2": {"factor": 20.0}})), items) == []


def test_a_real_bad_initialisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    failing.exploding_gradients(str(tmp_path))
    opened, _ = said(ExplodingGradients(), recorded(tmp_path / "exploding-gradients"), end=True)
    assert (opened.block, opened.evidence["since"]) == ("2", 0) and opened.evidence["jump"] > 15


def test_a_real_training_whose_loss_becomes_a_sum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    failing.hidden_explosion(str(tmp_path))
    (opened,) = said(ExplodingGradients(), recorded(tmp_path / "hidden-explosion"))
    assert opened.evidence["since"] == 320 and 6 < opened.evidence["factor"] < 20  # 16 rows
