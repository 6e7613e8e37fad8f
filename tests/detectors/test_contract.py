"""What every detector promises, whatever it looks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from resmon.detectors import DETECTORS, Detector, state
from resmon.detectors.options import Tuned
from resmon.handbook import pages as handbook
from resmon.records import Columns, Finding, StepRecord
from tests import synthetic
from tests.detectors.course import Alone, Item, course, said
from tests.detectors.stimuli import STIMULI

ROOT = Path(__file__).parents[2]
every_detector = pytest.mark.parametrize("make", DETECTORS, ids=lambda make: make.name)


@cache
def stimulus(make: type[Detector]) -> tuple[Item, ...]:
    return tuple(STIMULI[make.name]())


def texts(events: Sequence[Finding]) -> list[str]:
    return [json.dumps(asdict(event), allow_nan=False) for event in events]


def test_every_detector_has_its_stimulus_and_no_name_twice() -> None:
    assert [make.name for make in DETECTORS] == list(dict.fromkeys(make.name for make in DETECTORS))
    assert set(STIMULI) == {make.name for make in DETECTORS}


@every_detector
def test_what_it_finds_is_told_whole_and_closed_in_the_end(make: type[Detector]) -> None:
    events = said(make(), stimulus(make), end=True)
    assert events
    states: dict[str, str] = {}
    for event in events:  # the life cycle: opened once, then updated, then closed once
        assert (event.state == "opened") == (event.id not in states)
        assert states.get(event.id) != "closed"
        states[event.id] = event.state
        assert event.kind.startswith(make.name)
        assert event.summary and event.expected and event.seen and 0 < event.confidence <= 1
        assert event.runbook in handbook.names(), "its page is missing"
        assert isinstance(event.evidence.get("since", event.opened_step), int)
        assert event.evidence.get("since", event.opened_step) <= event.opened_step
    assert set(states.values()) == {"closed"}


@every_detector
def test_the_same_records_give_the_same_findings(make: type[Detector]) -> None:
    assert texts(said(make(), stimulus(make), end=True)) == texts(said(make(), stimulus(make), end=True))


@every_detector
def test_its_state_can_be_taken_up_at_any_step(make: type[Detector]) -> None:
    items = stimulus(make)
    whole = texts(said(make(), items, end=True))
    for cut in np.random.default_rng(1).integers(1, len(items), 6).tolist():
        first = Alone(make())
        events = first.take(items[:cut])
        second = Alone(make())
        state.restore(second.detector, json.loads(json.dumps(state.save(first.detector))))
        state.restore(second.windows, json.loads(json.dumps(state.save(first.windows))))
        second.columns, second.newest = first.columns, first.newest
        assert texts([*events, *second.take(items[cut:]), *second.end()]) == whole


@every_detector
@pytest.mark.parametrize("kind", ["constant", "zero", "absent", "nan", "nothing logged", "no blocks"])
def test_a_training_of_which_nothing_can_be_said(make: type[Detector], kind: str) -> None:
    """Values that never move, are 0, absent or (but for the one that looks for these) NaN: silence, and no warning."""
    items = {
        "constant": lambda: course(320, jitter=0.0, scalars={"loss": 1.0, "val_loss": 1.0}),
        "zero": lambda: course(320, branch_rms=0.0, gradient_norm=0.0, output_gradient_norm=0.0, scalars={"loss": 0.0}),
        "absent": lambda: [_without(item) for item in course(320, run={"learning_rate": np.nan, "gradient_square": np.nan})],
        "nan": lambda: course(320, scalars={"loss": 1.0}, position_ratio=0.3, peak=np.nan),
        "nothing logged": lambda: course(320),
        "no blocks": lambda: course(320, 0, scalars={"loss": 1.0}),
    }[kind]()
    with np.errstate(all="raise", under="ignore"):
        assert said(make(), items, end=True) == []


def _without(item: Item) -> Item:
    return replace(item, blocks_present=np.zeros_like(item.blocks_present)) if isinstance(item, StepRecord) else item


@every_detector
def test_blocks_that_come_late_go_or_come_back(make: type[Detector]) -> None:
    """The sites change in the middle of the run, as where a module is replaced, and steps are missing: nothing is wrong."""
    few, many = synthetic.sites(3), synthetic.sites(6)
    stretches = [
        course(100, few, scalars={"loss": 1.0}),
        course(100, many, first=100, seed=1, scalars={"loss": 1.0}),
        course(7, few, first=200, seed=2, scalars={"loss": 1.0}),
        course(100, many[::-1], first=10_000, seed=3, scalars={"loss": 1.0}),
    ]
    assert said(make(), *stretches, end=True) == []


@every_detector
def test_a_clock_that_is_set_back_changes_nothing_but_times(make: type[Detector]) -> None:
    moved = [
        replace(item, time=item.time - 5e4) if not isinstance(item, Columns) and i > 100 else item
        for i, item in enumerate(stimulus(make))
    ]
    told, meant = said(make(), moved, end=True), said(make(), stimulus(make), end=True)
    assert [(event.id, event.state, event.step) for event in told] == [(event.id, event.state, event.step) for event in meant]


@every_detector
def test_steps_that_go_back_are_no_finding(make: type[Detector]) -> None:
    """A loop that takes up a checkpoint of before: the same steps come once more, and what is well stays so."""
    before, after = course(200, scalars={"loss": 1.0}), course(200, first=120, seed=1, scalars={"loss": 1.0})
    assert said(make(), before, after, end=True) == []


@every_detector
def test_it_can_be_switched_off_for_blocks(make: type[Detector]) -> None:
    off = make(Tuned(make.options(), {"*": {"enabled": False}}))
    events = [event for event in said(off, stimulus(make)) if event.block]
    assert events == [] or make.name == "nonfinite"  # which the bank keeps quiet
