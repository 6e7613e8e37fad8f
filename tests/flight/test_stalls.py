from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from resmon.flight import stalls
from resmon.records import DURATION_EDGES, StepRecord
from tests import synthetic

INFO = synthetic.info(pid=4711, host="node7")


def after(durations: list[float]) -> StepRecord:
    """The record of a run whose steps took these seconds."""
    record = synthetic.Training(synthetic.sites(1)).step()
    buckets = np.bincount(np.searchsorted(DURATION_EDGES, durations), minlength=len(record.duration_buckets))
    return replace(record, duration_buckets=buckets, duration_total=sum(durations), steps_total=len(durations))


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([0.2] * 9, 0.25),
        ([0.2] * 5 + [100.0] * 4, 0.25),  # some steps with an evaluation behind them
        ([3.0] * 9, 4.0),
        ([700.0] * 3, 1400.0),  # longer than the histogram is
    ],
)
def test_the_usual_step_time_is_the_median_rounded_up(durations: list[float], expected: float) -> None:
    record = after(durations)
    assert stalls.usual(record) == expected
    assert stalls.patience(INFO, record) == max(300.0, 10 * expected)


def test_before_the_first_step_there_is_more_patience() -> None:
    assert stalls.patience(INFO, None) == 1800.0
    assert stalls.patience(replace(INFO, stall_after=5000.0), None) == 5000.0


def test_who_wants_none_has_none() -> None:
    assert stalls.patience(replace(INFO, stall_after=0.0), after([1.0])) == math.inf


def test_a_stall_from_its_beginning_to_its_end() -> None:
    record = after([0.2] * 9)
    stall = stalls.stall(INFO, record, 312.4, 5000.0)
    assert (stall.id, stall.kind, stall.step, stall.since, stall.time) == ("stalled-0", "stalled", 0, 1, 5000.0)
    assert stall.summary == "No step for 5 min 12 s after step 0, where half of the steps take less than 0.25 s; the process lives."
    assert "py-spy dump --pid 4711` on node7" in stall.advice
    assert stalls.is_open(stall) and stalls.open_stall([stall]) == stall
    over = stalls.resumed(stall, replace(record, step=1, time=5100.0))
    assert not stalls.is_open(over) and over.id == stall.id
    assert over.summary == "No step for 6 min 52 s after step 0; it went on with step 1."
    assert over.evidence["resumed_time"] == 5100.0
    ended = stalls.ended(stall, "SIGTERM ended it")
    assert not stalls.is_open(ended) and ended.summary == "No step came after step 0, until SIGTERM ended it."
    assert stalls.stall(INFO, None, 4000.0, 1.0).id == "stalled"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.5, "0.5 s"), (59.0, "59 s"), (60.0, "1 min"), (61.6, "1 min 2 s"), (7320.0, "2 h 2 min")]
)
def test_durations_for_people(seconds: float, said: str) -> None:
    assert stalls.spoken(seconds) == said
