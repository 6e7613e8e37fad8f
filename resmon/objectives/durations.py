"""Durations as Prometheus writes them: 5m, 1d, 1h30m."""

from __future__ import annotations

import re

UNITS = {"y": 365 * 86400, "w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}

_FORM = re.compile("".join(rf"(?:(\d{{1,9}}){unit})?" for unit in UNITS), re.ASCII)


def parsed(text: str) -> int:
    """Raises ValueError where it is none, or none that is longer than 0."""
    found = _FORM.fullmatch(text)
    total = sum(int(count) * length for count, length in zip(found.groups(), UNITS.values(), strict=True) if count) if found else 0
    if total <= 0:
        raise ValueError(f"must be a duration such as 5m, 6h or 30d (got {text!r:.40})")
    return total


def written(length: int) -> str:
    """As Prometheus prints it and sloth names its series: 1d12h, but 4w and not 28d; years and weeks only where nothing is left."""
    parts = []
    for unit, seconds in UNITS.items():
        if unit in "yw" and length % seconds:
            continue
        count, length = divmod(length, seconds)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
