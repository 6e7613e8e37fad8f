from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.drifting_inputs import BEGIN, DriftingInputs
from resmon.detectors.window import WINDOW
from resmon.records import Floats
from tests import synthetic
from tests.detectors.course import course, recorded, said
from tests.failing import Training, normed


def stream(steps: int = 1000, blocks: int = 6) -> Floats:
    return np.ones((steps, blocks))


@pytest.mark.parametrize("factor", [0.5, 1.3, 10.0])
def test_what_comes_into_the_first_block_changes(factor: float) -> None:
    skip = stream()
    skip[600:] *= factor
    (opened, *_) = said(DriftingInputs(), course(1000, skip_rms=skip))
    assert (opened.kind, opened.severity, opened.block) == ("drifting_inputs", "ticket", "h.0")
    assert 600 < opened.opened_step <= 600 + 7 * WINDOW
    assert opened.evidence["factor"] == pytest.approx(factor, rel=0.1)


def test_a_change_over_some_hundred_steps() -> None:
    skip = stream() * np.exp(np.clip((np.arange(1000) - 500) / 300, 0, 1))[:, None]
    (opened, *_) = said(DriftingInputs(), course(1000, skip_rms=skip))
    assert 500 < opened.opened_step <= 800


def test_a_later_block_is_no_matter_of_the_inputs() -> None:
    skip = stream()
    skip[600:, 1:] *= 3.0
    assert said(DriftingInputs(), course(1000, skip_rms=skip)) == []


def test_a_learning_rate_that_rises_explains_it() -> None:
    skip, rate = stream(), np.full(1000, 0.1)
    skip[600:] *= 1.5
    rate[560:] = 0.2
    assert said(DriftingInputs(), course(1000, skip_rms=skip, run={"learning_rate": rate})) == []
    assert said(DriftingInputs(), course(1000, skip_rms=skip, run={"learning_rate": rate[::-1]}))


def test_a_trend_goes_on() -> None:
    skip = stream(3000) * np.exp(np.arange(3000) / 600)[:, None]
    assert said(DriftingInputs(), course(3000, skip_rms=skip)) == []


def inputs(rms: Floats, mean: Floats | float = 0.0, jitter: float = 0.01) -> dict[str, Floats]:
    """As a record holds them, of 1,000 elements."""
    rms = rms * np.exp(jitter * np.random.default_rng(0).normal(0, 1, len(rms)))
    return {"input_elements": np.full(len(rms), 1000.0), "input_sum": 1000.0 * mean * rms, "input_square": 1000.0 * rms**2}


@pytest.mark.parametrize("factor", [0.8, 1.2, 255.0])
def test_inputs_of_another_scale_name_no_block(factor: float) -> None:
    """Also where a normalisation hides it from every block."""
    rms = np.where(np.arange(1000) < 600, 1.0, factor)
    (opened, *_) = said(DriftingInputs(), course(1000, run=inputs(rms), skip_rms=stream()))
    assert (opened.kind, opened.severity, opened.block) == ("drifting_inputs", "ticket", "")
    assert 600 < opened.opened_step <= 600 + 7 * WINDOW
    assert opened.evidence["factor"] == pytest.approx(factor, rel=0.02)


def test_inputs_whose_mean_moves() -> None:
    mean = np.where(np.arange(1000) < 600, 0.0, 0.3)
    (opened, *_) = said(DriftingInputs(), course(1000, run=inputs(np.ones(1000), mean)))
    assert opened.evidence["mean_moved"] == pytest.approx(0.3, abs=0.02)
    assert "a mean of 0.3" in opened.seen


def test_inputs_that_drift_are_told_once_and_not_of_the_blocks_too() -> None:
    rms, skip = np.where(np.arange(1000) < 600, 1.0, 2.0), stream()
    skip[600:] *= 2.0
    (opened,) = said(DriftingInputs(), course(1000, run=inputs(rms), skip_rms=skip))[:1]
    events = said(DriftingInputs(), course(1000, run=inputs(rms), skip_rms=skip))
    assert {event.id for event in events} == {opened.id} and opened.block == ""


def test_inputs_of_the_usual_spread_are_fine() -> None:
    random = np.random.default_rng(3)
    rms, mean = np.exp(0.2 * random.normal(0, 1, 3000)), 0.2 * random.normal(0, 1, 3000)
    assert said(DriftingInputs(), course(3000, run=inputs(rms, mean))) == []


def test_early_learning_is_none() -> None:
    skip = stream(2000) * (1 + 4 * (1 - np.exp(-np.arange(2000) / 100)))[:, None]
    assert said(DriftingInputs(), course(2000, skip_rms=skip)) == []
    jump = stream()
    jump[(BEGIN - 10) * WINDOW :] *= 3.0
    assert all(event.opened_step > BEGIN * WINDOW for event in said(DriftingInputs(), course(1000, skip_rms=jump)))


def test_nearly_all_branches_at_once() -> None:
    """As where the tokens are others: attention gives more, the MLPs less, and the embedding has the size it had."""
    branch = 0.3 * stream(1000, 8)
    branch[600:, ::2] *= 2.5
    branch[600:, 1::2] /= 2.5
    (opened, *_) = said(DriftingInputs(), course(1000, 8, branch_rms=branch))
    assert "nearly all blocks" in opened.summary
    half = 0.3 * stream(1000, 8)
    half[600:, ::2] *= 2.5
    assert said(DriftingInputs(), course(1000, 8, branch_rms=half)) == []


def test_each_model_has_its_own_inputs() -> None:
    sites = synthetic.sites(3, "actor") + synthetic.sites(3, "critic")
    skip = stream()
    skip[600:, 3:] *= 2.0
    (opened, *_) = said(DriftingInputs(), course(1000, sites, skip_rms=skip))
    assert (opened.model, opened.block) == ("critic", "h.0")


@pytest.mark.parametrize("noise", [0.02, 0.2, 0.5])
def test_noise_is_none(noise: float) -> None:
    random = np.random.default_rng(1)
    wandering = np.repeat(np.exp(np.cumsum(random.normal(0, 0.005, (250, 6)), axis=0)), WINDOW, axis=0)
    assert said(DriftingInputs(), course(4000, jitter=noise, skip_rms=wandering)) == []


def test_a_real_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = Training("inputs", str(tmp_path), normed(), agent="off")
    training.train(520)
    for _ in range(100):
        x, labels = training.batch()
        training.step(x + 5.0, labels)
    training.monitor.close()
    events = said(DriftingInputs(), recorded(tmp_path / "inputs"))
    assert events and {event.block for event in events} == {""}, "the inputs themselves, and no block"
    assert abs(events[0].evidence["since"] - 520) <= 4 * WINDOW
