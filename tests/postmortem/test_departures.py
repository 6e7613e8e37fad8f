"""What left its usual range: the step is the one at which it was made to, and drift, spikes and noise are none."""

from __future__ import annotations

import numpy as np
import pytest

from resmon.postmortem.case import Window
from resmon.postmortem.departures import departures
from resmon.records import Floats

STEPS = 300


def window(loss: Floats | None = None, ratio: Floats | None = None) -> Window:
    run = {} if loss is None else {"loss": loss}
    blocks = {} if ratio is None else {"branch_skip_ratio": ratio}
    return Window(np.arange(1000, 1000 + STEPS), run, blocks)


def noisy(seed: int, spread: float = 0.1) -> Floats:
    return np.exp(np.random.default_rng(seed).normal(0, spread, STEPS))


@pytest.mark.parametrize("factor", [3.0, 0.2, 1000.0, 0.0, np.inf])
def test_a_level_that_changes_for_good_departs_where_it_does(factor: float) -> None:
    values = noisy(0)
    values[250:] = values[250:] * factor if np.isfinite(factor) else np.inf
    (found,) = departures(window(loss=values), ())
    assert (found.step, found.block, found.what) == (1250, "", "loss")
    assert found.usual == pytest.approx(1, rel=0.1)
    assert found.seen == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize(("at", "factor", "departs"), [(17, 4.0, False), (17, 20.0, True), (60, 4.0, True)])
def test_what_leaves_its_initialisation_needs_more_to_depart(at: int, factor: float, departs: bool) -> None:
    values = noisy(6)
    values[at:] *= factor
    assert bool(departures(window(loss=values), ())) == departs


def test_blocks_depart_in_the_order_of_their_steps() -> None:
    ratio = np.stack([noisy(seed) for seed in range(5)], axis=1)
    for block, step in ((3, 240), (1, 255), (4, 270)):
        ratio[step:, block] *= 5
    found = departures(window(ratio=ratio), tuple(f"h.{i}" for i in range(5)))
    assert [(each.block, each.step) for each in found] == [("h.3", 1240), ("h.1", 1255), ("h.4", 1270)]
    assert found[0].what == "branch/skip ratio of h.3"


def test_a_spike_that_went_away_a_drift_and_the_very_last_step_are_none() -> None:
    spike = noisy(1)
    spike[200:220] *= 50
    assert departures(window(loss=spike), ()) == []
    assert departures(window(loss=noisy(2) * np.exp(-np.arange(STEPS) / 60)), ()) == []
    last = noisy(3)
    last[-1] *= 50
    assert departures(window(loss=last), ()) == []


def test_false_alarms_are_rare_however_noisy_it_is() -> None:
    for spread in (0.01, 0.1, 0.5, 1.0):
        ratio = np.stack([noisy(seed, spread) for seed in range(300)], axis=1)
        assert len(departures(window(ratio=ratio), tuple(map(str, range(300))))) <= 1


def test_a_value_that_is_not_there_departs_from_nothing() -> None:
    ratio = np.stack([noisy(4), noisy(5)], axis=1)
    ratio[:, 0] = np.nan
    ratio[250:, 1] = np.nan
    assert departures(window(ratio=ratio), ("a", "b")) == []


def test_too_few_steps_make_nothing_usual() -> None:
    few = Window(np.arange(8), {"loss": np.array([1, 1, 1, 1, 9, 9, 9, 9.0])}, {})
    assert departures(few, ()) == []
