"""Requests that were not let in, as the agent's log tells them: one line at first, then one a minute with how many there were.

So whoever reads the log sees that somebody guesses passwords, and nobody who guesses can fill the disk with it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

log = logging.getLogger("resmon.agent")

PAUSE = 60.0


@dataclass(slots=True)
class _Told:
    when: float
    since: int = 0  # that many were not told


@dataclass(slots=True)
class Refusals:
    """One note for each kind of refusal."""

    _told: dict[str, _Told] = field(default_factory=dict)

    def note(self, reason: str, client: str) -> None:
        """Count one, and say it unless it was said a moment ago. There are few reasons; who it was is told of the newest only."""
        now = time.monotonic()
        told = self._told.get(reason)
        if told is not None and now - told.when < PAUSE:
            told.since += 1
            return
        before = told.since if told is not None else 0
        self._told[reason] = _Told(now)
        log.warning(
            "a request from %s was refused: %s%s", client, reason, f" ({before:,} more since the last line)" if before else ""
        )
