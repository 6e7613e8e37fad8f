from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resmon.detectors.divergence import LASTS, SUDDEN, WINDOW, Divergence, DivergenceOptions
from resmon.detectors.options import Tuned
from resmon.records import Finding, Floats
from tests.detectors import digits
from tests.detectors.scores import feed, healthy_loss, replay


def said(losses: Floats, rates: Floats | None = None, name: str = "loss") -> list[Finding]:
    return feed(
        Divergence(), ((i, {name: float(loss)}) for i, loss in enumerate(losses)), None if rates is None else rates.tolist()
    )


def falling(count: int, seed: int = 0, noise: float = 0.1) -> Floats:
    random = np.random.default_rng(seed)
    return (0.3 + 2.0 * (1 + np.arange(count) / 50) ** -1.0) * np.exp(noise * random.normal(0, 1, count))


def test_a_loss_that_leaves_its_level_for_good() -> None:
    losses = falling(1000)
    losses[600:] *= 3.0
    (finding,) = said(losses)
    assert (finding.kind, finding.severity, finding.state, finding.block) == ("loss_divergence", "page", "opened", "")
    assert 600 + WINDOW * (LASTS - 1) <= finding.opened_step <= 600 + WINDOW * (LASTS + 1)
    assert abs(finding.evidence["since"] - 600) <= WINDOW
    assert finding.evidence["level"] == pytest.approx(np.median(losses[640:700]), rel=0.2)
    assert finding.evidence["best"] == pytest.approx(np.median(losses[560:600]), rel=0.2)
    assert finding.runbook == "loss-divergence"


def test_a_loss_that_is_back_where_it_began_however_noisy_it_was_at_its_best() -> None:
    """As where labels are no longer those of their samples: it is chance again, and as quiet as chance is."""
    random = np.random.default_rng(3)
    losses = 0.12 + 2.18 * np.exp(-np.arange(1200) / 60)
    losses *= np.exp(np.where(losses < 1.0, 0.65, 0.05) * random.normal(0, 1, 1200))
    assert said(losses[:900]) == []
    losses[800:] = 2.303 * np.exp(0.02 * random.normal(0, 1, 400))
    opened = said(losses)[0]
    assert 800 + WINDOW * (LASTS - 1) <= opened.opened_step <= 800 + WINDOW * (LASTS + 1)
    raised = np.where(np.arange(1200) < 800, 0.1, 1.0)  # a restart of a schedule begins there too
    assert all(event.opened_step > opened.opened_step for event in said(losses, raised))


def test_a_sudden_explosion_needs_no_window() -> None:
    losses = falling(1000)
    losses[600:] *= 10.0 ** (1 + np.arange(400) / 4)
    losses[700:] = np.nan
    finding = said(losses)[0]
    assert 600 + SUDDEN - 1 <= finding.opened_step <= 600 + SUDDEN + 4


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3])
def test_a_plateau_and_a_small_rise_are_none(factor: float) -> None:
    losses = falling(2000)
    losses[1000:] = losses[1000:] * factor
    assert said(losses) == []


def test_spikes_are_none() -> None:
    losses = falling(2000)
    losses[500:515] *= 8.0  # not two whole windows
    losses[900:907] *= 1000.0
    losses[::97] *= 50.0
    assert said(losses) == []


def test_a_loss_next_to_zero_may_rise_a_thousandfold() -> None:
    """All has been learned by heart, and in float16 the loss underflows: the fault bench's healthy runs have such stretches."""
    random = np.random.default_rng(0)
    losses = falling(3000) * np.exp(-np.arange(3000) / 100)
    losses[losses < 1e-7] = 0.0
    for at in (2000, 2300, 2600):
        losses[at : at + 20] = 4e-4 * np.exp(random.normal(0, 0.3, 20))
    assert said(losses) == []
    losses[2800:] = 2.0
    (finding,) = said(losses)
    assert finding.opened_step == 2800 + SUDDEN - 1 and "its level of 1e-12" in finding.summary


def test_one_that_comes_back_is_closed() -> None:
    losses = falling(2000)
    losses[600:800] *= 5.0
    opened, closed = said(losses)
    assert (opened.state, closed.state, opened.id) == ("opened", "closed", closed.id)
    assert 800 <= closed.step <= 800 + 2 * WINDOW
    assert "closed because the loss came back" in closed.summary


def test_what_is_open_is_closed_by_the_end() -> None:
    losses = falling(1000)
    losses[600:] *= 5.0
    detector = Divergence()
    feed(detector, ((i, {"loss": float(loss)}) for i, loss in enumerate(losses)))
    (closed,) = detector.end(999, 7.0)
    assert (closed.state, closed.step) == ("closed", 999)
    assert list(detector.end(999, 7.0)) == []


def test_a_higher_learning_rate_explains_that_the_best_is_lost_but_not_the_beginning() -> None:
    losses, rates = falling(2000), np.full(2000, 0.01)
    rates[1000:] = 0.1  # a restart of the schedule
    losses[1000:1300] = 1.5
    assert said(losses, rates) == []
    assert len(said(losses)) == 2  # under the same learning rate it is a fault
    losses[1000:] = 9.0  # no better than where it began
    (finding,) = said(losses, rates)
    assert "after the learning rate had risen from 0.01 to 0.1" in finding.summary


def test_a_loss_below_zero() -> None:
    """A likelihood of densities, say: no logarithm, and no division by what is near zero."""
    random = np.random.default_rng(3)
    losses = 3.0 - 8.0 * (1 - np.exp(-np.arange(2000) / 200)) + 0.2 * random.normal(0, 1, 2000)
    assert said(losses) == []
    losses[1500:] += 6.0
    (finding,) = said(losses)
    assert 1500 < finding.opened_step < 1600
    assert finding.evidence["best"] == pytest.approx(-5.0, abs=0.5)


def test_what_is_no_number_is_passed_over() -> None:
    losses = falling(1000)
    losses[::3] = np.nan
    losses[100:200] = np.inf
    assert said(losses) == []
    assert said(np.full(300, np.nan)) == []
    assert said(np.zeros(300)) == []


@pytest.mark.parametrize(
    ("names", "found"), [(("loss",), 1), (("train/loss",), 1), (("val_loss",), 0), (("accuracy",), 0), (("loss", "train_loss"), 1)]
)
def test_which_loss(names: tuple[str, ...], found: int) -> None:
    losses = falling(1000)
    losses[600:] *= 3.0
    events = feed(Divergence(), ((i, dict.fromkeys(names, float(loss))) for i, loss in enumerate(losses)))
    assert len(events) == found


def test_it_is_the_same_in_every_replay() -> None:
    losses = falling(1000)
    losses[600:700] *= 4.0
    assert said(losses) == said(losses)


def false_alarms(runs: int, count: int) -> int:
    return sum(bool(said(*healthy_loss(np.random.default_rng(seed), count))) for seed in range(runs))


@pytest.mark.parametrize("runs", [80, pytest.param(300, marks=pytest.mark.slow)])
def test_healthy_runs_are_silent(runs: int) -> None:
    assert false_alarms(runs, 800) == 0


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("optimizer", "rate", "warm_up"),
    [("sgd", 0.01, 0), ("sgd", 0.1, 0), ("sgd", 0.1, 60), ("adam", 1e-3, 0), ("adam", 1e-2, 60), ("adam", 1e-4, 0)],
)
def test_real_healthy_trainings_are_silent(optimizer: str, rate: float, warm_up: int, seed: int, tmp_path: Path) -> None:
    folder = digits.train(tmp_path, seed=seed, optimizer=optimizer, rate=rate, warm_up=warm_up, steps=400)
    assert replay(folder, Divergence()) == []


@pytest.mark.parametrize("rate", [0.1, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_learning_rate_that_grows_too_large_diverges(rate: float, seed: int, tmp_path: Path) -> None:
    """Trains well first, then at a rate that such a network does not take."""
    folder = digits.train(tmp_path, seed=seed, optimizer="adam", rate=1e-3, steps=500, rate_at={300: rate})
    events = replay(folder, Divergence())
    assert events and {event.kind for event in events} == {"loss_divergence"}
    assert 300 < events[0].opened_step <= 300 + WINDOW * (LASTS + 1)
    assert f"after the learning rate had risen from 0.001 to {rate:g}" in events[0].summary


def test_it_is_tuned() -> None:
    """Two windows more take two windows longer; a rise to three times the best is none where five are asked for."""
    losses = falling(1000)
    losses[600:] *= 3.0
    usual, patient, deaf = (
        feed(Divergence(Tuned(options)), ((i, {"loss": float(loss)}) for i, loss in enumerate(losses)))
        for options in (DivergenceOptions(), DivergenceOptions(windows=LASTS + 2), DivergenceOptions(factor=5.0))
    )
    assert patient[0].opened_step - usual[0].opened_step == 2 * WINDOW
    assert deaf == []
