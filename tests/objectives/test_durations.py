"""Durations, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmon.objectives import durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("30d", 2_592_000), ("4w", 2_419_200), ("1y", 31_536_000), ("90s", 90)]
)
def test_it_is_read(text: str, seconds: int) -> None:
    assert durations.parsed(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "5", "m", "5 m", "-5m", "1m1h", "5m5m", "1.5h", "5ms", "٣m", "9" * 30 + "d"])
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        durations.parsed(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(300, "5m"), (129_600, "1d12h"), (604_800, "1w"), (2_592_000, "30d"), (691_200, "8d")]
)
def test_it_is_written_as_prometheus_does(seconds: int, text: str) -> None:
    assert durations.written(seconds) == text


@given(st.integers(1, 10**9))
@settings(deadline=None)
def test_what_is_written_is_read(seconds: int) -> None:
    assert durations.parsed(durations.written(seconds)) == seconds
