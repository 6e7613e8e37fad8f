from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from resmon.detectors.stochastic_depth import RECENT, REFERENCE, StochasticDepth, compare
from resmon.detectors.window import WINDOW
from resmon.records import Finding, Floats
from tests.detectors.course import course, recorded, said
from tests.failing import Dropping, Training, normed


def training(rates: Floats, batch: int = 32, seed: int = 0, together: bool = False) -> list[Finding]:
    """What is said of keep rates [steps, S]; samples of a step may lose their branches together."""
    random = np.random.default_rng(seed)
    kept = batch * random.binomial(1, rates) if together else random.binomial(batch, rates)
    steps, blocks = rates.shape
    square = np.where(kept > 0, 24.0, np.nan)
    return said(StochasticDepth(), course(steps, blocks, jitter=0.0, samples=batch, kept=kept, kept_square=square))


def steady(steps: int = 1600, blocks: int = 6, rate: float = 0.8) -> Floats:
    return np.full((steps, blocks), rate)


@pytest.mark.parametrize(("rate", "batch"), [(0.8, 8), (0.5, 64), (0.95, 32)])
def test_a_rate_of_one_block_changes(rate: float, batch: int) -> None:
    rates = steady(rate=rate)
    rates[1000:, 3] = rate - 0.2
    (finding, *_) = training(rates, batch)
    assert (finding.kind, finding.severity, finding.block) == ("stochastic_depth", "ticket", "h.3")
    assert 1000 < finding.opened_step <= 1000 + 12 * WINDOW
    assert finding.evidence["usual"] == pytest.approx(rate, abs=0.03)
    assert finding.evidence["keep_ratio"] == pytest.approx(rate - 0.2, abs=0.1)


def test_a_model_left_in_evaluation_mode() -> None:
    rates = steady()
    rates[1000:] = 1.0
    (finding, *_) = training(rates)
    assert "is the model in evaluation mode?" in finding.summary and finding.evidence["blocks_count"] == 6


def test_a_change_by_less_than_chance_does_is_none() -> None:
    rates = steady()
    rates[1000:, 3] += 0.03
    assert training(rates, 256) == []


@pytest.mark.parametrize("steps", [3000, 8000])
def test_a_schedule_that_moves_slowly_is_followed(steps: int) -> None:
    moving = 1 - np.linspace(0, 0.5, steps)[:, None] * np.linspace(0, 1, 6)
    assert training(moving, 64) == []


def test_a_schedule_over_depth() -> None:
    linear = steady(1000, 12) * 0 + 1 - 0.3 * np.arange(12) / 11
    assert training(linear, 64) == []
    layers = steady(1000, 12) * 0 + 1 - 0.3 * (np.arange(12) // 2) / 5  # attention and MLP of a layer alike
    assert training(layers, 64) == []
    linear[:, 4] -= 0.25
    (finding,) = training(linear, 64)
    assert finding.block == "h.4" and "line over depth" in finding.expected
    assert finding.evidence["schedule"] == pytest.approx(1 - 0.3 * 4 / 11, abs=0.03)


def test_blocks_without_a_schedule_are_compared_with_themselves_only() -> None:
    rates = steady(1000, 8) * 0 + np.array([0.9, 0.5, 0.7, 0.95, 0.6, 0.8, 0.5, 0.9])
    assert training(rates, 64) == []


def test_samples_that_are_dropped_together_are_no_alarm() -> None:
    """A block skipped for the whole batch: as many samples as steps count, not as many as there are."""
    for seed in range(3):
        assert training(steady(2400, 20, 0.8), 64, seed=seed, together=True) == []


def test_a_model_without_stochastic_depth() -> None:
    assert said(StochasticDepth(), course(1200)) == []


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_deviations_are_those_of_a_normal_distribution(rate: float, together: bool) -> None:
    """So that what is told of chance is true: spread 1, and as many beyond 3 as there should be."""
    random, batch, trials = np.random.default_rng(1), 16, 20_000
    shape = (RECENT + REFERENCE, trials)
    kept = batch * random.binomial(WINDOW, rate, shape) if together else random.binomial(WINDOW * batch, rate, shape)
    samples = np.full(shape, float(WINDOW * batch))
    _, _, z, trend = compare(samples, kept.astype(float), np.full(trials, float(batch) if together else 1.0))
    for found in (z, trend):
        assert found.std() == pytest.approx(1.0, abs=0.05)
    beyond = np.mean(np.abs(z) > 3)
    expected = 2 * stats.norm.sf(3)
    assert beyond < 2.5 * expected + 4 * np.sqrt(expected / trials), "near 1, a binomial is skewed"


@pytest.mark.slow
def test_false_alarms() -> None:
    """200 blocks over 20,000 steps: none in 250,000 windows of blocks."""
    random = np.random.default_rng(5)
    rates = random.uniform(0.5, 0.98, 200) * np.ones((20_000, 1))
    assert training(rates, 16) == []


def test_a_real_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = Training("depth", str(tmp_path), normed(Dropping), agent="off")
    training.train(660)
    training.model.eval()
    training.train(120)
    training.monitor.close()
    (finding,) = said(StochasticDepth(), recorded(tmp_path / "depth"))
    assert finding.evidence["usual"] == pytest.approx(2 / 3, abs=0.05)
    assert finding.evidence["blocks_count"] == 3 and "evaluation mode" in finding.summary
