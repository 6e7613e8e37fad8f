"""What an error says to do next."""

from __future__ import annotations

from resmon.errors import nearest


def test_what_may_have_been_meant_is_named() -> None:
    assert nearest("objectiv", ["objective", "name"]) == "; the nearest is objective"
    assert nearest("x", ["b", "a"]) == "; there are a, b"
