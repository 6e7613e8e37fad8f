"""Durations as Prometheus writes them: 30m, 2h, 1d12h.

https://prometheus.io/docs/prometheus/latest/querying/basics/#time-durations: the units from the largest to the smallest, each at
most once, a day being 24 hours and a year 365 days. What is none raises ValueError; where it stood, only the caller knows.
"""

from __future__ import annotations

import re

UNITS = {"y": 365 * 86400, "w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}  # and ms

_FORM = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in (*UNITS, "ms")))


def seconds(text: str) -> float:
    """The length of a duration, which may be 0. Raises ValueError that says what a duration looks like."""
    match = _FORM.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"must be a duration such as 30m, 2h or 1d12h (got {text!r:.40})")
    lengths = (*UNITS.values(), 0.001)
    return sum(int(count) * length for count, length in zip(match.groups(), lengths, strict=True) if count)


def window(text: str) -> int:
    """The length of a window of a query: whole seconds, and more than none. Raises ValueError."""
    length = seconds(text)
    if length <= 0 or length != int(length):
        raise ValueError(f"must be a duration of whole seconds and longer than 0s, such as 5m, 6h or 30d (got {text!r:.40})")
    return int(length)


def written(length: float) -> str:
    """A length in seconds, to the second, as Prometheus prints it: 1d12h, but 4w and not 28d.

    Years and weeks stand only where nothing is left beside them:
    https://github.com/prometheus/common/blob/v0.37.0/model/time.go, Duration.String. What is below 0 is 0s.
    """
    rest, parts = round(max(0.0, length)), []
    for unit, each in UNITS.items():
        if unit in "yw" and rest % each:
            continue
        count, rest = divmod(rest, each)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
