"""A flight as a stream is the flight as a frame."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

import resmon
from resmon.errors import FlightError
from resmon.formats import story
from resmon.formats.story import Moment, Story
from resmon.statistics import STATISTICS
from tests.formats.conftest import STEPS, Rank


def everything(told: Story) -> list[Moment]:
    found: list[Moment] = []
    while (moments := told.poll()) or not told.over:
        found += moments
    return found


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-12)


def test_it_says_what_the_frames_say(attempt: Path) -> None:
    moments = everything(Story(attempt))
    flight = resmon.load(attempt)
    steps, blocks = flight.steps().set_index("step"), flight.blocks().set_index(["step", "block"])
    assert [moment.step for moment in moments] == steps.index.tolist() == list(range(STEPS))
    for moment in moments:
        row = steps.loc[moment.step]
        assert moment.time == row["time"].timestamp()
        for name in ("loss", "accuracy", "learning_rate", "gradient_norm", "clip_factor", "duration", "loss_scale"):
            assert (name in moment.run) == (row[name] is not pd.NA), (moment.step, name)
            if name in moment.run:
                assert same(moment.run[name], row[name]), (moment.step, name)
        told = moment.blocks()
        for (_, block), values in blocks.loc[[moment.step]].iterrows():
            for statistic in STATISTICS:
                value = values[statistic]
                assert (f"{statistic}/{block}" in told) == (value is not pd.NA), (moment.step, statistic, block)
                if value is not pd.NA:
                    assert same(told[f"{statistic}/{block}"], value), (moment.step, statistic, block)
    assert math.isinf(moments[8].run["loss"]) and math.isnan(moments[4].run["accuracy"])
    assert math.isnan(moments[7].blocks()["branch_rms/h.0"])
    groups = flight.groups()
    first = groups[groups["step"] == 3].set_index("group")
    for group, values in moments[3].groups.items():
        assert same(values["gradient_norm"], first["gradient_norm"][group])


def test_live_a_step_is_told_when_all_ranks_are_past_it(tmp_path: Path) -> None:
    fast, slow = (Rank(tmp_path, "digits", number, 2) for number in range(2))
    told = Story(fast.attempt)
    for step in range(5):
        fast.step()
        fast.log(step, loss=float(step))
    slow.step()
    assert told.poll() == []
    for _ in range(3):
        slow.step()
    moments = told.poll()
    assert [(moment.step, moment.run["loss"]) for moment in moments] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert not told.over
    slow.step()
    for rank in (fast, slow):
        rank.end()
    assert [moment.step for moment in everything(told)] == [3, 4]
    assert told.over


def test_a_rank_that_is_lost_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "WAITING", 8)
    lives, hangs = (Rank(tmp_path, "digits", number, 2) for number in range(2))
    told = Story(lives.attempt)
    hangs.step()
    found: list[int] = []
    for _ in range(60):
        lives.step()
        found += [moment.step for moment in told.poll()]
    assert found == list(range(len(found)))
    assert len(found) > 30, "what waits is bounded"
    for rank in (lives, hangs):
        rank.end()
    found += [moment.step for moment in everything(told)]
    assert found == list(range(60))


def test_blocks_of_several_models_bear_the_models_name(tmp_path: Path) -> None:
    rank = Rank(tmp_path, "digits", models={"a": "Net", "b": "Net"})
    rank.writer.sites((*_sites("a"), *_sites("b")), ())
    rank.training = type(rank.training)((*_sites("a"), *_sites("b")))
    rank.step()
    rank.end()
    (moment,) = everything(Story(rank.attempt))
    assert moment.names == ["a/h.0", "a/h.1", "b/h.0", "b/h.1"]


def _sites(model: str) -> tuple[resmon.ResidualSite, ...]:
    from tests import synthetic

    return synthetic.sites(2, model)


def test_no_flight_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FlightError, match="has no rank"):
        Story(tmp_path)
