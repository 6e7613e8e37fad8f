"""Waiting for what other processes do, as long as it takes and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_for(what: Callable[[], Value], seconds: float = 60.0, said: Callable[[], str] | None = None) -> Value:
    """What `what` gives as soon as it is true; OSErrors count as not yet. `said` tells more where it never is."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            value = what()
            if value:
                return value
            last = value
        except OSError as error:
            last = error
        time.sleep(0.05)
    more = f"; {said()}" if said is not None else ""
    raise AssertionError(f"not within {seconds:g} s; last: {last!r}{more}")
