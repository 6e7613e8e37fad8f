"""The random states are those that their owners tell, however the numbers were drawn since they were taken last."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from resmon.capture.host.randomness import Randomness, kept


def told() -> Any:
    """What torch, Python and numpy say themselves."""
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


DRAWS: dict[str, Callable[[int], Any]] = {
    "python": lambda count: [random.random() for _ in range(count)],
    "python, gauss": lambda count: [random.gauss(0, 1) for _ in range(count)],
    "python, bits": lambda count: [random.getrandbits(32) for _ in range(count)],
    "python, seed": random.seed,
    "numpy": np.random.rand,
    "numpy, seed": np.random.seed,
    "torch": torch.rand,
}


@given(st.lists(st.tuples(st.sampled_from(sorted(DRAWS)), st.sampled_from([0, 1, 2, 623, 624, 625, 1248])), max_size=6))
def test_what_is_put_back_is_what_was_there(draws: list[tuple[str, int]]) -> None:
    for name, count in draws:
        DRAWS[name](count)
        taken, before = Randomness.now(), told()
        for each in DRAWS.values():
            each(3)
        taken.restore()
        assert told() == before


def test_all_words_may_be_new_at_the_same_place() -> None:
    random.seed(0)
    first = Randomness.now()
    for _ in range(624):
        random.getrandbits(32)
    assert random.getstate()[1][-1] == first.python[1][-1]
    assert Randomness.now().python == random.getstate() != first.python


def test_numpy_may_draw_from_another_generator() -> None:
    usual = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        taken, before = Randomness.now(), told()
        np.random.rand(3)
        taken.restore()
        assert told() == before
    finally:
        np.random.set_bit_generator(usual)


def test_a_normal_number_in_reserve_is_kept() -> None:
    np.random.seed(0)
    np.random.randn()
    Randomness.now()
    np.random.randn()  # the one in reserve: no word is read
    before = told()
    with kept():
        for each in DRAWS.values():
            each(3)
        np.random.randn(5)
    assert told() == before


def test_nobody_is_asked_twice_for_the_same_state() -> None:
    first, second = Randomness.now(), Randomness.now()
    assert first.python is second.python and first.numpy is second.numpy
