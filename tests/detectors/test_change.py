"""Changes of a level or a spread in the streams of blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resmon.detectors.change import BEGIN, Change
from resmon.detectors.options import Tuned
from resmon.detectors.streams import REMEMBERED
from resmon.detectors.window import WINDOW
from resmon.records import Floats
from tests import synthetic
from tests.detectors.course import course, recorded, said
from tests.failing import Training, normed

BEFORE = 1500  # steps


def level(factor: float, sites: list[int], steps: int = 1800, at: int = BEFORE, count: int = 6) -> Floats:
    found = np.ones((steps, count))
    found[at:, sites] *= factor
    return found


@pytest.mark.parametrize("factor", [0.5, 1.5, 40.0])
@pytest.mark.parametrize("statistic", ["skip_rms", "branch_rms", "gradient_norm", "output_gradient_norm"])
def test_a_level_that_moves(statistic: str, factor: float) -> None:
    opened, *_ = said(Change(), course(1800, **{statistic: level(factor, [3])}))
    assert (opened.kind, opened.severity, opened.block, opened.runbook) == ("change", "ticket", "h.3", "change")
    assert BEFORE <= opened.opened_step <= BEFORE + 4 * WINDOW
    assert abs(opened.evidence["since"] - BEFORE) <= 4
    streams = {each["statistic"]: each["factor"] for each in opened.evidence["streams"]}
    assert streams[statistic] == pytest.approx(factor, rel=0.1)
    assert {each["block"] for each in opened.evidence["streams"]} == {"h.3"}


@pytest.mark.parametrize("offset", [5, 9, 10])
def test_a_level_that_moves_within_a_window(offset: int) -> None:
    """Neither lost nor told as noise, whatever share of the window it has."""
    began = BEFORE - BEFORE % WINDOW + offset
    events = said(Change(), course(1800, jitter=0.12, gradient_norm=level(0.5, list(range(6)), at=began)))
    assert events and began < events[0].opened_step <= began + 3 * WINDOW
    streams = events[0].evidence["streams"]
    assert {each["direction"] for each in streams} == {"down"}
    assert np.median([each["factor"] for each in streams]) == pytest.approx(0.5, rel=0.25)


def test_a_small_change_is_nobodys_concern() -> None:
    assert said(Change(), course(2200, branch_rms=level(1.15, [3], 2200))) == []


def test_a_stream_that_becomes_noisy() -> None:
    branch = level(1.0, [])
    branch[BEFORE:, 2] *= np.exp(0.4 * np.random.default_rng(1).normal(0, 1, len(branch) - BEFORE))
    opened, *_ = said(Change(), course(1800, branch_rms=branch))
    assert opened.block == "h.2"
    assert "wider" in {each["direction"] for each in opened.evidence["streams"]}


def test_blocks_that_follow_stand_in_one_finding() -> None:
    gradient = level(3.0, [4])
    gradient[BEFORE + 6 :, 3] *= 3.0
    opened, *others = said(Change(), course(1800, gradient_norm=gradient))
    assert opened.block == "h.4" and opened.evidence["followers"] == ["h.3"]
    assert {event.id for event in others} <= {opened.id}


def test_what_all_blocks_do_is_the_networks() -> None:
    opened, *_ = said(Change(), course(1800, gradient_norm=level(3.0, list(range(6)))))
    assert opened.evidence["network"] and "nearly all blocks" in opened.summary
    opened, *_ = said(Change(), course(1800, gradient_norm=level(3.0, [1])))
    assert not opened.evidence["network"]


@pytest.mark.parametrize("moved", [0.1, 10.0])
def test_a_learning_rate_that_moves_explains_it(moved: float) -> None:
    rate = np.where(np.arange(1800) < BEFORE - 20, 0.1, 0.1 * moved)
    assert said(Change(), course(1800, run={"learning_rate": rate}, gradient_norm=level(3.0, list(range(6))))) == []


@pytest.mark.parametrize(("times", "at"), [(0.25, BEFORE), (3.0, BEFORE), (3.0, BEFORE - 4)])
def test_a_batch_of_another_size_explains_it(times: float, at: int) -> None:
    batch = np.where(np.arange(1800) < at, 32, 32 * times)
    batch[::40] = 20  # the last one of an epoch
    quieter = level(times**-0.5, list(range(6)), at=at)
    assert said(Change(), course(1800, run={"samples": batch}, gradient_norm=quieter)) == []
    assert said(Change(), course(1800, run={"samples": np.where(batch == 20, 20, 32)}, gradient_norm=quieter))
    texts = np.random.default_rng(2).integers(8, 64, 1800)  # as many as there is room for
    assert said(Change(), course(1800, run={"samples": texts}, gradient_norm=quieter))


def test_a_new_level_is_news_once() -> None:
    opened, closed = said(Change(), course(4000, branch_rms=level(3.0, [3], 4000)))
    assert (opened.state, closed.state) == ("opened", "closed")
    assert closed.step < BEFORE + 20 * WINDOW
    back = level(3.0, [3], 4000)
    back[3000:, 3] /= 3.0
    events = said(Change(), course(4000, branch_rms=back))
    assert [event.state for event in events] == ["opened", "closed"] * 2
    assert abs(events[2].evidence["since"] - 3000) <= 4


def test_a_spike_is_no_change() -> None:
    spikes = np.ones((3000, 6))
    spikes[1500::97] *= 20.0
    assert said(Change(), course(3000, gradient_norm=spikes)) == []


@pytest.mark.parametrize("seed", range(3))
def test_streams_that_only_learn(seed: int) -> None:
    """They fall as power laws, with noise that is correlated over steps."""
    random, steps, blocks = np.random.default_rng(seed), 6000, 12
    noise = np.empty((steps, blocks))
    state = np.zeros(blocks)
    for i, white in enumerate(random.normal(0, 1, (steps, blocks))):
        state = 0.8 * state + 0.6 * white
        noise[i] = state
    falls = (1 + np.arange(steps)[:, None] / random.uniform(50, 500, blocks)) ** -random.uniform(0.1, 1.0, blocks)
    courses = {name: falls * np.exp(0.1 * noise) for name in ("branch_rms", "gradient_norm", "output_gradient_norm")}
    assert said(Change(), course(steps, blocks, seed=seed, **courses)) == []


def loss(factor: float, steps: int = 2200, every: int = 1) -> Floats:
    """Falls slowly and is `factor` times as large from BEFORE on, with noise; logged `every` so many steps."""
    steady = 2.0 / (1 + np.arange(steps) / 2000) * np.exp(0.03 * np.random.default_rng(7).normal(0, 1, steps))
    steady[BEFORE:] *= factor
    steady[np.arange(steps) % every != 0] = np.nan
    return steady


@pytest.mark.parametrize("factor", [1.4, 4.0])
def test_a_loss_that_rises_for_good_is_the_runs(factor: float) -> None:
    opened, *others = said(Change(), course(2200, scalars={"train/loss": loss(factor)}))
    assert (opened.kind, opened.severity, opened.block) == ("change", "ticket", "")
    assert BEFORE <= opened.opened_step <= BEFORE + 4 * WINDOW and abs(opened.evidence["since"] - BEFORE) <= 4
    assert [(each["block"], each["statistic"]) for each in opened.evidence["streams"]] == [("", "loss")]
    assert opened.evidence["streams"][0]["factor"] == pytest.approx(factor, rel=0.1)
    assert opened.summary.startswith("The loss changed by a factor of ")
    assert [event.state for event in others] == ["closed"]


def test_a_loss_that_falls_is_no_news() -> None:
    assert said(Change(), course(2200, scalars={"loss": loss(0.4)})) == []


def test_a_loss_that_is_logged_now_and_then() -> None:
    steps = 8000
    seldom = np.full(steps, np.nan)
    seldom[::10] = 2.0 * np.exp(0.03 * np.random.default_rng(7).normal(0, 1, steps // 10))
    seldom[5000:] *= 1.6
    opened, *_ = said(Change(), course(steps, 2, scalars={"loss": seldom}))
    assert 5000 <= opened.opened_step <= 5000 + 40 * 10
    assert abs(opened.evidence["since"] - 5000) <= 40  # four logged values


def test_a_loss_that_was_negative_is_not_followed() -> None:
    shifted = loss(4.0)
    shifted[100] = -0.5
    assert said(Change(), course(2200, scalars={"loss": shifted})) == []


def test_a_gradient_norm_of_the_model() -> None:
    square = np.where(np.arange(2200) < BEFORE, 1.0, 9.0) * np.exp(0.1 * np.random.default_rng(3).normal(0, 1, 2200))
    opened, *_ = said(Change(), course(2200, run={"gradient_square": square}))
    assert opened.block == "" and "gradient norm of the model changed by a factor of 3" in opened.summary


def test_blocks_that_moved_with_the_loss_are_the_finding() -> None:
    events = said(Change(), course(2200, scalars={"loss": loss(3.0)}, branch_rms=level(3.0, [3], 2200)))
    assert {event.block for event in events} == {"h.3"}
    assert {"h.3", ""} <= {each["block"] for each in events[0].evidence["streams"]}


@pytest.mark.parametrize("moved", [0.1, 10.0])
def test_a_learning_rate_explains_a_loss(moved: float) -> None:
    rate = np.where(np.arange(2200) < BEFORE - 20, 0.1, 0.1 * moved)
    assert said(Change(), course(2200, run={"learning_rate": rate}, scalars={"loss": loss(3.0)})) == []


def test_a_block_that_skips_steps_changes_since_the_step_that_it_did() -> None:
    branch, kept = level(3.0, [3], 3000, at=2000), np.ones((3000, 6))
    kept[np.arange(3000) % 3 != 0, 3] = np.nan  # stochastic depth
    opened, *_ = said(
        Change(), course(3000, **{name: branch * kept if name == "branch_rms" else kept for name in ("branch_rms", "skip_rms")})
    )
    assert opened.block == "h.3" and abs(opened.evidence["since"] - 2000) <= 12


def test_nothing_is_said_at_the_beginning() -> None:
    early = level(5.0, [3], steps=2 * BEGIN * WINDOW, at=600)
    assert said(Change(), course(len(early), branch_rms=early)) == []  # nor later, of the same change


def test_what_is_known_of_blocks_stays_with_them() -> None:
    sites = synthetic.sites(4)
    fewer = (sites[3], sites[1])
    events = said(
        Change(),
        course(BEFORE, sites, branch_rms=np.array([0.1, 0.2, 0.3, 0.4])),
        course(200, fewer, first=BEFORE, seed=1, branch_rms=np.array([0.4, 0.2])),
        course(200, fewer, first=BEFORE + 200, seed=2, branch_rms=np.array([0.4, 0.5])),
    )
    assert [event.block for event in events[:1]] == ["h.1"]
    assert abs(events[0].evidence["since"] - BEFORE - 200) <= 4


def test_options_for_blocks() -> None:
    deaf = Change(Tuned(Change.options(), {"h.3": {"factor": 10.0}}))
    assert said(deaf, course(1800, branch_rms=level(3.0, [3]))) == []
    assert said(deaf, course(1800, branch_rms=level(3.0, [2])))


def test_memory_reaches_back_as_far_as_a_chart_looks() -> None:
    assert REMEMBERED * WINDOW > 2 * 256


def test_a_real_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = Training("change", str(tmp_path), normed(), agent="off")
    training.train(1200)
    with torch.no_grad():
        training.model[2].down.weight *= 3  # type: ignore[index, union-attr, operator]
    for _ in range(60):
        training.step(*training.batch())
    training.monitor.close()
    events = said(Change(), recorded(tmp_path / "change"))
    assert events and all(event.evidence["since"] >= 1180 for event in events)
    assert "2" in {each["block"] for event in events for each in event.evidence["streams"]}
