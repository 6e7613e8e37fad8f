from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.drift import GAP, NEWEST, REFERENCE, Drift, in_order
from resmon.detectors.window import WINDOW
from resmon.records import MAGNITUDE_COLUMNS, MAGNITUDE_NONFINITE, MAGNITUDE_ZERO, Floats
from tests import synthetic
from tests.detectors.course import course, recorded, said
from tests.failing import Training, normed

FIRST = (NEWEST + GAP + REFERENCE + 12) * WINDOW  # steps in which nothing is said


def settled(steps: int = 1000, blocks: int = 6) -> Floats:
    return np.zeros((steps, blocks))


@pytest.mark.parametrize("doublings", [-1.0, 1.0, 3.0])
def test_a_block_whose_distribution_leaves(doublings: float) -> None:
    magnitude = settled()
    magnitude[700:, 4] += doublings
    (opened, *rest) = said(Drift(), course(1000, magnitude=magnitude))
    assert (opened.kind, opened.severity, opened.block) == ("drift", "ticket", "h.4")
    assert 700 < opened.opened_step <= 700 + 6 * WINDOW
    assert 0.3 * abs(doublings) < opened.evidence["wasserstein_doublings"] < 1.1 * abs(doublings)
    assert opened.evidence["jensen_shannon_distance"] > 1.5 * opened.evidence["usual_distance"]
    assert [each.state for each in rest] in ([], ["closed"])


def test_the_first_of_those_that_follow_is_named() -> None:
    magnitude = settled()
    magnitude[700:, 2:] += 1.0
    (opened, *_) = said(Drift(), course(1000, magnitude=magnitude))
    assert opened.block == "h.2" and opened.evidence["followers"] == ["h.3", "h.4", "h.5"]


def test_learning_is_no_drift() -> None:
    """Values that grow at a steady pace, or faster at first."""
    step = np.arange(3000.0)[:, None]
    assert said(Drift(), course(3000, magnitude=step / 500 + settled(3000))) == []
    assert said(Drift(), course(3000, magnitude=4 * (1 - np.exp(-step / 400)) + settled(3000))) == []


def test_chance_is_none() -> None:
    """Forty blocks over 4,000 steps of a settled network."""
    assert said(Drift(), course(4000, 40, magnitude=0.0)) == []


def test_where_the_past_is_restless_it_says_nothing() -> None:
    random = np.random.default_rng(0)
    magnitude = np.repeat(random.normal(0, 1.0, (125, 6)), WINDOW, axis=0)
    assert said(Drift(), course(2000, magnitude=magnitude)) == []


@pytest.mark.parametrize(("restarts", "told"), [(False, True), (True, False)])
def test_a_learning_rate_that_rose_explains_it(restarts: bool, told: bool) -> None:
    magnitude = settled(1400)
    magnitude[1000:, 3] += 1.0
    falling = 0.1 * (1 + np.cos(np.pi * np.arange(1400) / 1400))
    rate = np.where(np.arange(1400) < 960, falling, 0.2) if restarts else falling
    assert bool(said(Drift(), course(1400, magnitude=magnitude, run={"learning_rate": rate}))) == told


def test_it_waits_until_it_knows_what_is_usual() -> None:
    magnitude = settled()
    magnitude[FIRST - 8 * WINDOW :, 3] += 3.0
    events = said(Drift(), course(1000, magnitude=magnitude))
    assert all(event.opened_step >= FIRST for event in events)


def test_sites_without_a_histogram_or_with_what_is_not_finite_are_left_out() -> None:
    histogram = np.arange(MAGNITUDE_COLUMNS)[None]
    assert in_order(histogram).shape == (1, MAGNITUDE_COLUMNS - 1)
    assert in_order(histogram)[0, 0] == MAGNITUDE_ZERO and MAGNITUDE_NONFINITE not in in_order(histogram)
    assert said(Drift(), course(1000)) == []


def test_a_run_whose_sites_change_is_compared_by_site() -> None:
    few, many = synthetic.sites(3), synthetic.sites(6)
    level = np.array([0.0, 4.0, 8.0, 1.0, 2.0, 3.0])
    stretches = [
        course(800, many, magnitude=level + settled(800)),
        course(800, few, first=800, seed=1, magnitude=level[:3] + settled(800, 3)),
        course(800, many[::-1], first=1600, seed=2, magnitude=level[::-1] + settled(800)),
    ]
    assert said(Drift(), *stretches) == []


def test_a_real_training(tmp_path: Path) -> None:
    """An activation that stands behind the second block from one step on."""
    torch.manual_seed(0)
    training = Training("drift", str(tmp_path), normed(), rate=1e-3, agent="off")
    training.train(640)
    training.model[2].register_forward_hook(lambda _module, _inputs, output: 3 * output.relu())  # type: ignore[index]
    training.train(120)
    training.monitor.close()
    events = said(Drift(), recorded(tmp_path / "drift"))
    assert [event.block for event in events] == ["3"] * len(events) and events[0].opened_step > 640
