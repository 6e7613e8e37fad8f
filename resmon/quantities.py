"""Numbers, and texts of anybody's, as people read them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import takewhile


def number(value: float) -> str:
    """Three digits that count: 0.0123, 4.56, 1,230, 1.2e+08; words for what is none."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite" if value > 0 else "−infinite"
    if value == 0 or 1e-4 <= abs(value) < 999.5:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.2e}"


def size(count: float) -> str:
    """Bytes, in the units that torch and the kernel report."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def duration(seconds: float) -> str:
    """Seconds as the two largest units that count."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for length, unit, lower, lower_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // lower} {lower_unit}"
    return f"{whole} s"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def raised(exponent: int) -> str:
    """⁻¹²"""
    return str(exponent).translate(_RAISED)


def power(base: int, exponent: int) -> str:
    """10⁻¹²; and what can be read as easily, as it is."""
    value = float(base) ** exponent
    return number(value) if 1e-3 <= value <= 1e4 else f"{base}{raised(exponent)}"


def in_units(statistic: str, value: float) -> str:
    """A value of what is measured by that name, with its unit."""
    if not math.isfinite(value):
        return number(value)
    if statistic == "duration" or statistic.endswith("_seconds"):
        return duration(value)
    return size(value) if "memory" in statistic else number(value)


def became(value: float) -> str:
    """What a quantity did: "became infinite", "reached 12"."""
    return f"reached {number(value)}" if math.isfinite(value) else f"became {number(value)}"


def moment(unix: float) -> str:
    """A time, in UTC; the machine that the page is read on may be in another zone than the one that trained."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(unix)) + " UTC"
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


def printable(text: str) -> str:
    """A text in one line, of which what would steer a terminal is escaped: names and messages may be anybody's."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def count(number_: int, noun: str, plural: str = "") -> str:
    """1 block, 12 blocks."""
    return f"{number_:,} {noun if number_ == 1 else plural or noun + 's'}"


def listed(things: Iterable[object], most: int = 4) -> str:
    """a, b and 3 more."""
    names = list(map(str, things))
    if len(names) <= most:
        return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + "".join(names[-1:])
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"


def shortened(names: Sequence[str], longest: int) -> list[str]:
    """Blocks' names side by side: where one does not fit, all of them without the modules that hold every block.

    What is too long even so keeps its end, which tells it from others.
    """
    if len(names) > 1 and max(map(len, names)) > longest:
        parts = [name.split(".") for name in names]
        columns = zip(*(part[:-1] for part in parts), strict=False)
        same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        if same:
            names = [f"…{'.'.join(part[same:])}" for part in parts]
    return [name if len(name) <= longest else f"…{name[1 - longest :]}" for name in names]
