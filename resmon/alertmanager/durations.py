"""Durations as Prometheus writes them: 30m, 2h, 1d12h.

https://prometheus.io/docs/prometheus/latest/querying/basics/#time-durations: the units from the largest to the smallest, each at
most once, a day being 24 hours and a year 365 days.
"""

from __future__ import annotations

import re

from resmon.errors import ConfigurationError

UNITS = (("y", 365 * 86400.0), ("w", 7 * 86400.0), ("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 0.001))
_FORM = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit, _ in UNITS))


def seconds(text: str) -> float:
    """The length of a duration. Raises ConfigurationError for what is none."""
    match = _FORM.fullmatch(text.strip())
    if match is None or not match[0]:
        raise ConfigurationError(f"{text!r} is no duration; write it as Prometheus does: 30m, 2h, 1d12h.")
    return sum(int(count) * length for count, (_, length) in zip(match.groups(), UNITS, strict=True) if count)


def written(length: float) -> str:
    """A length in seconds as a duration, to the second: 5400 is 1h30m."""
    rest, parts = round(max(0.0, length)), []
    for unit, each in UNITS[2:-1]:
        count, rest = divmod(rest, round(each))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
