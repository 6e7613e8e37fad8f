"""The bank: all detectors over one rank, together, cut anywhere, and one that fails."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pytest

from resmon.detectors import DETECTORS, Account, Bank, Detector, Episodes, Window, state
from resmon.records import Columns, Finding, ScalarRecord, StepRecord
from tests.detectors.course import Item, course
from tests.detectors.test_contract import stimulus


class Loud(Detector):
    name = "loud"

    def __init__(self, tuned: object = None) -> None:
        super().__init__(tuned)  # type: ignore[arg-type]
        self._episodes = Episodes("loud", "straying-block")

    def window(self, window: Window) -> Iterable[Finding]:
        bad = window.median("branch_skip_ratio") > 3.0
        return self._episodes.take(window, bad, lambda *_: Account("ticket", "loud", "quiet", "loud", 0.9))


class Failing(Detector):
    name = "failing"

    def window(self, window: Window) -> Iterable[Finding]:
        yield from ()
        raise ArithmeticError(window.step)


class Unmade(Detector):
    name = "unmade"

    def __init__(self, tuned: object = None) -> None:
        raise MemoryError


class Fed:
    """A bank and what it is told."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.columns = Columns()
        self.events: list[Finding] = []
        self.newest = (0, 0.0)

    def take(self, items: Iterable[Item]) -> Fed:
        for item in items:
            if isinstance(item, Columns):
                self.columns = item
            elif isinstance(item, ScalarRecord):
                self.events += self.bank.scalars(item)
            elif isinstance(item, StepRecord):
                self.newest = (item.step, item.time)
                self.events += self.bank.step(item, self.columns.sites)
        return self

    def end(self) -> list[str]:
        self.events += self.bank.end(*self.newest)
        return [json.dumps(asdict(event), allow_nan=False) for event in self.events]


def eventful() -> list[Item]:
    branch, broken, at = np.full((700, 6), 0.3), np.zeros((700, 6)), np.arange(700)
    branch[200:360, 3] = 0.0
    branch[150:250, 1] = 9.0
    broken[520:540, 2:] = 5
    return course(700, branch_rms=branch, nonfinite_forward=broken, scalars={"loss": np.where(at < 400, 0.99**at, 40.0)})


@pytest.mark.parametrize("seed", range(3))
def test_it_goes_on_from_its_state_wherever_it_was_cut(seed: int) -> None:
    items = eventful()
    whole = Fed(Bank(more=[Loud])).take(items).end()
    assert len({json.loads(event)["kind"] for event in whole}) >= 4
    fed, before = Fed(Bank(more=[Loud])), 0
    for cut in sorted(np.random.default_rng(seed).integers(1, len(items), 12).tolist()):
        fed.take(items[before:cut])
        saved, before = json.loads(json.dumps(fed.bank.state())), cut
        fed.bank = Bank(more=[Loud])
        fed.bank.restore(saved)
    assert fed.take(items[before:]).end() == whole


@pytest.mark.parametrize("make", DETECTORS, ids=lambda make: make.name)
def test_one_that_is_off_says_nothing_and_can_be_switched_on(make: type[Detector]) -> None:
    def kinds(**options: object) -> set[str]:
        fed = Fed(Bank({make.name: options}))
        fed.take(stimulus(make)).end()
        return {event.kind for event in fed.events if event.kind.startswith(make.name)}

    assert kinds(enabled=False) == set()
    if make.weight != "symptom":  # which others may explain
        assert kinds(enabled=True)


def test_one_that_fails_is_off_said_once_and_stays_off_after_a_restart() -> None:
    said: list[tuple[str, str]] = []
    bank = Bank(more=[Failing, Loud], fault=lambda name, error: said.append((name, repr(error))))
    fed = Fed(bank).take(eventful()[:300])
    assert said == [("failing", "ArithmeticError(15)")]
    second = Bank(more=[Failing, Loud], fault=lambda name, error: said.append((name, repr(error))))
    second.restore(json.loads(json.dumps(bank.state())))
    fed.bank = second
    fed.take(eventful()[301:]).end()
    assert len(said) == 1
    assert "loud" in {event.kind for event in fed.events}


def test_one_that_cannot_be_made_is_told() -> None:
    said: list[str] = []
    assert Fed(Bank(more=[Unmade], fault=lambda name, _: said.append(name))).take(eventful()).events
    assert said == ["unmade"]


def test_what_is_wrong_with_its_settings_is_kept_to_be_told() -> None:
    bank = Bank({"dead_branch": {"ratoi": 1}, "loud": {"enabled": False}, "x": {}}, [Loud])
    assert [each.path for each in bank.wrong] == [("x",), ("dead_branch", "ratoi")]
    assert not [event for event in Fed(bank).take(eventful()).events if event.kind == "loud"]


def test_the_state_of_another_set_of_detectors_is_refused() -> None:
    saved = Bank(more=[Loud]).state()
    with pytest.raises(state.StateError, match="no such part: detector loud"):
        Bank().restore(saved)
    with pytest.raises(state.StateError, match="no such part"):
        Bank().restore({name: part for name, part in Bank().state().items() if name != "grouping"})


def test_what_comes_together_is_told_together() -> None:
    """The loss diverges while a branch is dead: one page, and nothing twice."""
    fed = Fed(Bank()).take(eventful())
    fed.end()
    opened = [event for event in fed.events if event.state == "opened"]
    assert len({event.id for event in opened}) == len(opened)
    states = {event.id: event.state for event in fed.events}
    assert set(states.values()) == {"closed"}
