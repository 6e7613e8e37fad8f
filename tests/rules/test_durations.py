"""Durations, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.rules import durations

LENGTHS = [
    ("5m", 300),
    ("1h30m15s", 5415),
    ("1d12h", 129_600),
    ("30d", 2_592_000),
    ("1w", 604_800),
    ("4w", 2_419_200),
    ("1y", 31_536_000),
    ("90s", 90),
]
NONE = ["", "2", "h", "2 h", " 2h", "30m2h", "2h2h", "-2h", "1.5h", "2H", "\u0662h", "9" * 30 + "d", "5m\n"]


@pytest.mark.parametrize(("text", "length"), LENGTHS)
def test_it_is_read(text: str, length: int) -> None:
    assert durations.seconds(text) == durations.window(text) == length


def test_a_duration_may_be_less_than_a_second_and_a_window_may_not() -> None:
    assert (durations.seconds("500ms"), durations.seconds("1s20ms"), durations.seconds("0s")) == (0.5, 1.02, 0)
    for text in ("500ms", "1s20ms", "0s", "0m", "0ms"):
        with pytest.raises(ValueError, match="must be a duration of whole seconds and longer than 0s"):
            durations.window(text)


@pytest.mark.parametrize("text", NONE)
def test_what_is_none_is_refused(text: str) -> None:
    for read in (durations.seconds, durations.window):
        with pytest.raises(ValueError, match="must be a duration such as 30m, 2h or 1d12h"):
            read(text)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (300, "5m"),
        (129_600, "1d12h"),
        (604_800, "1w"),
        (2_592_000, "30d"),
        (691_200, "8d"),
        (5399.6, "1h30m"),
        (0.4, "0s"),
        (-3, "0s"),
    ],
)
def test_it_is_written_as_prometheus_does(length: float, text: str) -> None:
    assert durations.written(length) == text


@given(st.integers(1, 10**9))
@settings(deadline=None)
def test_what_is_written_is_read(length: int) -> None:
    assert durations.window(durations.written(length)) == length
