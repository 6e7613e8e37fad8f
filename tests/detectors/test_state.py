"""State as JSON and back: whatever a detector may hold comes back as it was, and nothing else comes in."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from resmon.detectors import Bank, Detector, state
from resmon.detectors.history import History
from resmon.detectors.state import StateError
from resmon.records import Columns, StepRecord
from tests import synthetic
from tests.detectors.stimuli import dead_branch


@dataclass
class Part:
    """An object of a class in the detector's own module."""

    value: Any


class Keeper(Detector):
    name = "keeper"

    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.kept = kept


def back(kept: Any) -> Any:
    """What comes back of it, by way of text."""
    new = Keeper()
    state.restore(new, json.loads(json.dumps(state.save(Keeper(kept)))))
    return new.kept


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.integers() | st.text(max_size=3) | st.tuples(st.integers(), st.text(max_size=2))
ARRAYS = st.sampled_from(["<f8", "<i8", "bool", "<u4", "<f4"]).flatmap(
    lambda kind: arrays.arrays(np.dtype(kind), arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
HELD = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=5))
        | inner.map(Part)
    ),
    max_leaves=8,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, Part):
        return same(one.value, other.value)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        lengths = getattr(one, "maxlen", None) == getattr(other, "maxlen", None) and len(one) == len(other)
        return lengths and all(map(same, one, other))
    return one == other or (one != one and other != other)


@given(HELD)
def test_what_a_detector_holds_comes_back(kept: Any) -> None:
    assert same(back(kept), kept)


@given(st.sets(st.integers() | st.text(max_size=3), max_size=5), st.frozensets(st.integers(), max_size=5))
def test_sets_come_back(some: set[Any], fixed: frozenset[int]) -> None:
    assert back([some, fixed]) == [some, fixed]


def test_what_was_one_object_is_one_again() -> None:
    part = Part([1])
    one, other, items = back([part, part, part.value])
    assert one is other and one.value is items
    record = synthetic.Training(synthetic.sites(2)).step()
    first, second = back([record, record])
    assert first is second and isinstance(first, StepRecord)
    assert np.array_equal(first.blocks, record.blocks)


def test_an_array_that_comes_back_can_be_written_to_and_is_nobody_elses() -> None:
    kept = np.zeros(3)
    made = back(kept[::-1])
    made[0] = 5
    assert kept.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "thing", [object(), lambda: 1, len, np.array(["a"]), np.array([object()]), int, open], ids=lambda thing: type(thing).__name__
)
def test_what_is_no_state_is_refused(thing: object) -> None:
    with pytest.raises(TypeError, match="is no state"):
        state.save(Keeper(thing))


def saved() -> dict[str, Any]:
    return json.loads(json.dumps(state.save(Keeper({"part": Part(np.arange(3.0)), "more": deque([1, (2,)], 4)}))))


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: made["objects"].append({"object": "Popen", "of": "subprocess", "fields": {}}),
        lambda made: made["objects"].append({"object": "sys", "of": "resmon.detectors.state", "fields": {}}),
        lambda made: made["objects"].append({"object": "np.ndarray", "of": "resmon.detectors.state", "fields": {}}),
        lambda made: made["objects"].append({"object": "Nothing", "of": "resmon.detectors.state", "fields": {}}),
        lambda made: made["objects"].append({"object": "Bank", "of": "resmon.detectors.nowhere", "fields": {}}),
        lambda made: made["objects"].append({"array": "!", "dtype": "<f8", "shape": [1]}),
        lambda made: made["objects"].append({"array": "AAAA", "dtype": "<f8", "shape": [1]}),
        lambda made: made["objects"].append({"array": "", "dtype": "<f8", "shape": [1 << 40]}),
        lambda made: made["objects"].append({"array": "", "dtype": "O", "shape": [0]}),
        lambda made: made["objects"].append({"array": "", "dtype": "<f8", "shape": [-1]}),
        lambda made: made["objects"].append({"eval": ["1"]}),
        lambda made: made["objects"].append({"list": [[99]]}),
        lambda made: made["objects"].append({"list": [[-1]]}),
        lambda made: made["objects"].append({"set": [[0]]}),
        lambda made: made["objects"].append({"deque": [], "most": -1}),
        lambda made: made["objects"].append(3),
        lambda made: made["attributes"].update(other=1),
        lambda made: made["attributes"].clear(),
        lambda made: made["attributes"].update(kept={"list": []}),
        lambda made: made.pop("objects"),
        lambda made: made.update(objects=None),
    ],
)
def test_what_is_no_state_of_this_detector_is_refused_and_changes_nothing(damage: Callable[[dict[str, Any]], Any]) -> None:
    made, new = saved(), Keeper("before")
    damage(made)
    with pytest.raises(StateError):
        state.restore(new, made)
    assert new.kept == "before"


def test_an_array_of_another_form_is_refused() -> None:
    made = state.save(History(8))
    with pytest.raises(StateError, match="_values is"):
        state.restore(History(8), made | {"attributes": made["attributes"] | {"_values": None}})


def bank_at(steps: int) -> tuple[Bank, list[Any]]:
    bank, columns, items = Bank(), Columns(), dead_branch()
    for item in items[:steps]:
        if isinstance(item, Columns):
            columns = item
        elif isinstance(item, StepRecord):
            bank.step(item, columns.sites)
    return bank, items


BANK = json.dumps(bank_at(400)[0].state())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.large_base_example])
@given(data=st.data())
def test_a_bank_takes_a_damaged_state_or_refuses_it_and_goes_on_either_way(data: st.DataObject) -> None:
    text = list(BANK)
    for _ in range(data.draw(st.integers(1, 8))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from('0123456789"[]{}:,aZ'))
    try:
        made = json.loads("".join(text[: data.draw(st.sampled_from([len(text), len(text) // 2]))]))
    except ValueError:
        return
    bank = Bank()
    try:
        bank.restore(made)
    except StateError:
        return
    training = synthetic.Training(synthetic.sites(6))
    training.steps = 400
    for _ in range(20):  # a detector that fails over what it was given is off; no more
        bank.step(training.step(), training.sites)
