"""Silences as a person reads them, and as programs do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.table import Table
from rich.text import Text

from resmon.quantities import printable
from resmon.rules.durations import written
from resmon.servers.alertmanager.values import Silence, moment

_STYLES = {"active": "green", "pending": "yellow", "expired": "dim"}


def table(silences: Sequence[Silence], now: datetime) -> Table:
    """One row a silence; times are told from `now`, which is the server's."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("id", "state", "silences"):
        made.add_column(name, no_wrap=name != "silences", overflow="fold")
    for each in silences:
        state = Text.assemble((each.state, _STYLES[each.state]), f" {time_of(each, now)}")
        why = Text(printable(f"{each.comment} ({each.author})"), style="dim")
        made.add_row(Text(printable(each.id)), state, Text("\n").join([Text(covers(each)), why]))
    return made


def time_of(silence: Silence, now: datetime) -> str:
    """When it begins or ends."""
    if silence.state == "pending":
        return f"in {_rounded(silence.starts - now)}"
    if silence.state == "active":
        return f"for {_rounded(silence.ends - now)}"
    return f"since {_rounded(now - silence.ends)}"


def _rounded(length: timedelta) -> str:
    """To the minute, from an hour on."""
    seconds = length.total_seconds()
    return written(60 * round(seconds / 60) if seconds >= 3570 else seconds)


def covers(silence: Silence) -> str:
    """Its matchers."""
    return printable(", ".join(map(str, silence.matchers)))


def as_json(silence: Silence) -> dict[str, Any]:
    return {
        "id": silence.id,
        "state": silence.state,
        "starts": moment(silence.starts),
        "ends": moment(silence.ends),
        "author": silence.author,
        "comment": silence.comment,
        "matchers": [str(each) for each in silence.matchers],
    }
