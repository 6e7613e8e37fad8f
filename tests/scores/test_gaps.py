from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmon.scores.gaps import Gap, Gaps, role


@pytest.mark.parametrize(
    "name",
    [
        *(
            "val_loss",
            "validation_loss",
            "valid_loss",
            "eval_loss",
            "dev_loss",
            "evaluation_loss",
            "val/loss",
            "loss/val",
            "eval.loss",
        ),
        *("loss_val", "Loss/Validation", "VAL_LOSS", "val loss", "val:loss", "val-loss", "val__loss", "loss.eval"),
    ],
)
def test_names_of_validation(name: str) -> None:
    assert role(name) == ("loss", True)


@pytest.mark.parametrize("name", ["loss", "train_loss", "training_loss", "loss/train", "Train/Loss", "loss_training", "train.loss"])
def test_names_of_training(name: str) -> None:
    assert role(name) == ("loss", False)


@pytest.mark.parametrize(
    "name", ["val", "value_loss", "interval_loss", "evaluated", "trained_tokens", "best_val_loss", "", "_", "val_", "_val"]
)
def test_names_that_are_of_neither(name: str) -> None:
    assert role(name) == (name, False)


def test_only_one_word_is_taken_off() -> None:
    assert role("val_accuracy_top_5") == ("accuracy_top_5", True)
    assert role("eval_train_loss") == ("train_loss", True)


def reference(logged: list[tuple[str, float]]) -> list[tuple[int, float, float]]:
    """Index, training mean and validation value of every validation that has one, looked up anew each time."""
    finite = [(i, name, value) for i, (name, value) in enumerate(logged) if np.isfinite(value)]
    found = []
    for place, (i, name, value) in enumerate(finite):
        if name != "val_loss":
            continue
        before = [(n, v) for _, n, v in finite[:place]]
        while before and before[-1][0] == "val_loss":  # one validation in several values
            before.pop()
        stretch: list[float] = []
        while before and before[-1][0] != "val_loss":
            stretch.append(before.pop()[1])
        if stretch:
            found.append((i, float(np.mean(np.array(stretch, np.float64))), value))
    return found


VALUES = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf])


@given(st.lists(st.tuples(st.sampled_from(["loss", "train_loss", "val_loss"]), VALUES), max_size=60))
def test_it_is_the_newest_validation_minus_the_mean_of_the_training_before(logged: list[tuple[str, float]]) -> None:
    gaps = Gaps()
    found = [gap for i, (name, value) in enumerate(logged) if (gap := gaps.add(i, name, value))]
    expected = reference(logged)
    assert [gap.step for gap in found] == [step for step, _, _ in expected]
    assert [gap.validation for gap in found] == [validation for _, _, validation in expected]
    assert [gap.training for gap in found] == pytest.approx([training for _, training, _ in expected], rel=1e-9, abs=1e-6)
    assert gaps.newest == ({"loss": found[-1]} if found else {})


def test_scores_do_not_mix() -> None:
    gaps = Gaps()
    gaps.add(0, "loss", 2.0)
    gaps.add(0, "accuracy", 0.5)
    assert gaps.add(0, "val_perplexity", 7.0) is None
    assert gaps.add(0, "val_loss", 3.0) == Gap(0, "loss", 2.0, 3.0)
    gap = gaps.add(0, "val_accuracy", 0.25)
    assert gap is not None
    assert gap.gap == -0.25
    assert set(gaps.newest) == {"loss", "accuracy"}


def test_a_stretch_with_lost_steps_has_no_mean() -> None:
    gaps = Gaps()
    gaps.add(0, "loss", 1.0)
    gaps.interrupt()
    gaps.add(9, "loss", 2.0)
    assert gaps.add(9, "val_loss", 5.0) is None
    assert gaps.newest == {}
    gaps.add(10, "loss", 4.0)
    assert gaps.add(10, "val_loss", 5.0) == Gap(10, "loss", 4.0, 5.0)
    gaps.interrupt()  # between a validation and the training after it: what follows may have begun in what was lost
    gaps.add(20, "loss", 4.0)
    assert gaps.add(20, "val_loss", 6.0) is None
    assert gaps.newest["loss"].step == 10


def test_the_largest_numbers_do_not_overflow_the_mean() -> None:
    gaps = Gaps()
    for value in (1.7e308, 1.7e308, -1.7e308):
        gaps.add(0, "loss", value)
    gap = gaps.add(0, "val_loss", 0.0)
    assert gap is not None
    assert gap.training == pytest.approx(1.7e308 / 3)
