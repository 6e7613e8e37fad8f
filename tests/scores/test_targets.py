from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmon.errors import ConfigurationError
from resmon.scores.targets import Reached, Target, first_reached, parse, readable


@pytest.mark.parametrize(
    ("text", "target", "printed"),
    [
        ("accuracy >= 0.95", Target("accuracy", ">=", 0.95), "accuracy >= 0.95"),
        ("val/loss<=1e-3", Target("val/loss", "<=", 0.001), "val/loss <= 0.001"),
        ("  top 5 accuracy  >=  90 ", Target("top 5 accuracy", ">=", 90.0), "top 5 accuracy >= 90"),
        ("a >= b >= -1", Target("a >= b", ">=", -1.0), "a >= b >= -1"),
    ],
)
def test_what_a_text_means(text: str, target: Target, printed: str) -> None:
    assert parse([text]) == readable([text]) == (target,)
    assert str(target) == printed
    assert parse([printed]) == (target,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "accuracy",
        "accuracy > 0.95",
        "accuracy = 1",
        "accuracy == 1",
        "0.95 <= accuracy",
        ">= 1",
        "x >= nan",
        "x >= inf",
        "x >= 1 2",
    ],
)
def test_what_is_no_target_is_named_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match="NAME >= NUMBER") as error:
        parse(["accuracy >= 0.95", text, "loss"])
    assert repr(text) in str(error.value)
    assert "'loss'" in str(error.value)
    assert "'accuracy >= 0.95'," not in str(error.value)  # that one is right
    assert readable([text]) == ()


def test_each_target_is_there_once() -> None:
    assert len(parse(["a >= 1", "a>=1.0", "a <= 1"])) == 2


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([">=", "<="]))
def test_a_target_is_printed_as_it_is_read(value: float, direction: str) -> None:
    (target,) = parse([f"score {direction} {value!r}"])
    assert parse([str(target)]) == (target,)
    assert target.value == value


@given(st.floats())
def test_nan_and_infinite_scores_meet_nothing(score: float) -> None:
    least, most = parse(["x >= 0.5", "x <= 0.5"])
    assert least.is_met({"x": score}) == (math.isfinite(score) and score >= 0.5)
    assert most.is_met({"x": score}) == (math.isfinite(score) and score <= 0.5)
    assert not least.is_met({"y": 1.0})


def test_of_several_ranks_the_first_step_counts() -> None:
    late, early, same = (Reached("a >= 1", step, 1, 0.0, 1.0, rank) for rank, step in ((0.0, 9), (1.0, 5), (2.0, 5)))
    assert first_reached([late, early, same]) == {"a >= 1": early}
