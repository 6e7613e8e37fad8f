"""Silences as a person reads them, and as programs do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from resmon.alertmanager.durations import written
from resmon.alertmanager.values import Silence, moment
from resmon.origins import printable

_STYLES = {"active": "green", "pending": "yellow", "expired": "dim"}


def table(silences: Sequence[Silence], now: datetime) -> Table:
    """One row a silence; times are told from `now`, which is the server's."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("id", "state", "time", "silences", "by", "comment"):
        made.add_column(name, no_wrap=name in ("id", "state", "time"), overflow="fold")
    for each in silences:
        made.add_row(
            Text(printable(each.id)),
            Text(each.state, style=_STYLES[each.state]),
            time_of(each, now),
            Text(covers(each)),
            Text(printable(each.author)),
            Text(printable(each.comment)),
        )
    return made


def time_of(silence: Silence, now: datetime) -> str:
    """When it begins or ends."""
    if silence.state == "pending":
        return f"in {written((silence.starts - now).total_seconds())}"
    if silence.state == "active":
        return f"{written((silence.ends - now).total_seconds())} more"
    return f"{written((now - silence.ends).total_seconds())} ago"


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
