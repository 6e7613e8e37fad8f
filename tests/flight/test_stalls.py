from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from resmon.flight import stalls
from resmon.records import DURATION_EDGES, Incident, StackDump, StepRecord
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
    stall = stalls.stall(INFO, record, 312.4, 5000.0, None)
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
    assert stalls.stall(INFO, None, 4000.0, 1.0, None).id == "stalled"


def dump(doing: str = "data", step: int | None = 0, **more: object) -> StackDump:
    known = {"seconds": 240.0, "since": 120.0, "line": "train.py:31: for x in loader:", "model": "", "module": "", "block": ""}
    return StackDump(step=step, doing=doing, calls=("train.py:31 in main",), **known | more)  # type: ignore[arg-type]


def stood(stack: StackDump, rank: int = 0, world_size: int = 1, newest: StepRecord | None = None) -> Incident:
    info = replace(INFO, world_size=world_size)
    return replace(stalls.stall(info, newest or after([0.2] * 9), 312.4, 5000.0, stack), rank=rank)


def test_where_it_stands() -> None:
    stall = stood(dump())
    assert stall.summary == (
        "No step for 5 min 12 s after step 0, where half of the steps take less than 0.25 s; the process lives. "
        "For 2 min at least it has been waiting for data, at train.py:31: for x in loader:."
    )
    assert stall.advice.startswith("See whether the storage that the data come from answers") and "`ps --ppid 4711" in stall.advice
    assert (stall.line, stall.evidence["doing"]) == ("train.py:31: for x in loader:", "data")
    assert stall.evidence["stack"] == ["train.py:31 in main"]
    ended = stalls.ended(stall, "SIGTERM ended it")
    assert ended.summary == (
        "No step came after step 0, until SIGTERM ended it. It was waiting for data, at train.py:31: for x in loader:."
    )
    assert "py-spy" not in ended.advice


def test_the_block_in_which_it_stands() -> None:
    stall = stood(dump("forward", model="gpt", module="h.3.mlp", block="h.3"))
    assert (stall.model, stall.module, stall.block) == ("gpt", "h.3.mlp", "h.3")
    assert "it has been in the forward pass, in block h.3, at train.py:31" in stall.summary


def test_what_was_seen_once_may_have_gone_on() -> None:
    assert "After 4 min of that it was waiting for data" in stood(dump(since=240.0)).summary


@pytest.mark.parametrize(("step", "counts"), [(None, False), (-1, False), (0, True), (1, True)])
def test_a_stack_from_an_earlier_wait_is_of_no_use(step: int | None, counts: bool) -> None:
    """One of a step that is not on file yet is: a GPU's numbers are written down later."""
    assert ("stack" in stood(dump(step=step)).evidence) is counts


def test_before_the_first_step_a_stack_is_of_it() -> None:
    assert "stack" in stalls.stall(INFO, None, 4000.0, 1.0, dump(step=None)).evidence


def test_a_backward_pass_waits_for_other_ranks_where_there_are_some() -> None:
    assert "waits for another rank" in stood(dump("backward"), world_size=2).advice
    assert "another rank" not in stood(dump("backward")).advice
    assert "another rank" in stood(dump("collective")).advice


def test_a_later_versions_words_are_taken_as_they_come() -> None:
    assert "it has been outside of any pass" in stood(dump("hibernating")).summary


LATER = replace(after([0.2] * 9), step=1)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], ""),
        ([stood(dump())], ""),
        ([stood(dump(), 0), stood(dump(), 1)], ""),  # the storage hangs: nobody waits for anybody
        ([stood(dump("backward"), 0), stood(dump("collective"), 1)], ""),
        (
            [stood(dump("backward"), 0), stood(dump(), 1), stood(dump("collective"), 2)],
            "Look first at rank 1, which did not wait for others: ranks 0 and 2 probably wait for it.",
        ),
        (
            [stood(dump("backward"), 0), stood(dump(""), 1), stood(dump("forward"), 2)],
            "Look first at ranks 1 and 2, which did not wait for others: rank 0 probably waits for them.",
        ),
        (
            [stood(dump("backward"), 0), stood(dump("backward", 1), 1, newest=LATER)],
            "Look first at rank 0, which fell behind: rank 1 probably waits for it.",
        ),
        ([stood(dump("backward"), 0), stalls.resumed(stood(dump(), 1), LATER)], ""),
        ([stood(dump("backward"), 0), stalls.ended(stood(dump(), 1), "SIGTERM ended it")], "Look first at rank 1"),
    ],
)
def test_which_rank_the_others_wait_for(found: list[Incident], said: str) -> None:
    first, sentence = stalls.apart(found)
    assert sentence.startswith(said) and bool(sentence) == bool(said) == bool(first)
    assert all(str(rank) in said for rank in first)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.5, "0.5 s"), (59.0, "59 s"), (60.0, "1 min"), (61.6, "1 min 2 s"), (7320.0, "2 h 2 min")]
)
def test_durations_for_people(seconds: float, said: str) -> None:
    assert stalls.spoken(seconds) == said
