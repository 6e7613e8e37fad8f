"""How fast the agent answers: so that whoever reads it does not slow the training that it tells of, however many ask however fast.

Answering may take a small share of the machine's processors, and half of what nobody else uses of them. When it has taken more it
rests until that is paid, two seconds at the most or, where a crowd waits, three, so nothing fails because of it. What is asked
meanwhile waits, which costs nothing, and is answered all at once, which costs less than one by one. While it owes, the loop looks
at its connections ten times a second only: each look takes a training's place in a processor's caches.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable

import psutil

# Of the machine. Trainings that take all of it lose half a percent, and what the readers themselves take.
SHARE = 0.005
# CPU seconds that may be spent at once after a pause; opening the page takes half of it.
BURST = 0.5
# Seconds of a rest at most. A scrape's usual timeout is 10, and Prometheus' shortest usual interval 5.
LONGEST = 1.8
# Answers that wait together are a crowd's, and then so many seconds: it takes more than is paid in less.
CROWD, CROWDED = 8, 3.0
# Of the machine: what nobody uses beyond it is to spare. Trainings that take all cores wait for something now and then.
RESERVE = 0.1
LOOK = 0.5  # seconds between two looks at what is to spare
NAP = 0.1  # seconds until a loop that owes looks at its connections again


class Pace:
    """Of one event loop, and to be used in its thread. `used` tells how many CPU seconds answering has taken so far, `idle` how
    many nobody has used, of all the machine's `cores`."""

    def __init__(
        self, used: Callable[[], float] = time.process_time, idle: Callable[[], float] | None = None, cores: int | None = None
    ) -> None:
        self._used = used
        self._idle = idle or _idle
        self._cores = cores or psutil.cpu_count() or 1
        self._left = BURST
        self._looked, self._was_used = time.monotonic(), used()
        self._spared, self._was_idle = self._looked, self._idle()
        self._rest: asyncio.Event | None = None  # set when it is over
        self._rested = 0.0  # since when
        self._is_over = False
        self._waiting = self._waited = 0  # answers, for the end of the rest and of the one before
        self.held_seconds = 0.0  # that answers have waited, added up

    async def turn(self) -> None:
        """Wait until answering may go on."""
        if self._rest is None:
            if not self.owes():
                self._waited = 0
                return
            self._rest, self._rested = asyncio.Event(), time.monotonic()
            self._look()
        before = time.monotonic()
        self._waiting += 1
        await self._rest.wait()
        self.held_seconds += time.monotonic() - before

    @property
    def is_crowded(self) -> bool:
        """Whether many have had to wait together, or do."""
        return max(self._waiting, self._waited) >= CROWD

    def owes(self) -> float:
        """Seconds until what answering has taken is paid."""
        if self._is_over:
            return 0.0
        now, used = time.monotonic(), self._used()
        each = SHARE * self._cores  # CPU seconds a second
        self._left = min(BURST, self._left + each * (now - self._looked)) - (used - self._was_used)
        self._looked, self._was_used = now, used
        if self._left < 0 and (since := now - self._spared) >= LOOK:
            idle = self._idle()
            self._left += max(0.0, idle - self._was_idle - RESERVE * self._cores * since) / 2
            self._spared, self._was_idle = now, idle
        # Who comes when a crowd has gone does not pay for it.
        self._left = min(BURST, max(-CROWDED * each, self._left))
        return max(0.0, -self._left / each)

    def end(self) -> None:
        """Hold nobody back from here on."""
        self._is_over = True
        self._wake()

    @property
    def _longest(self) -> float:
        return CROWDED if self.is_crowded else LONGEST

    def _look(self) -> None:
        """End the rest, or look again: it is paid sooner than it seemed where the machine has become idle."""
        seconds = min(self.owes(), self._rested + self._longest - time.monotonic(), LOOK)
        if seconds > 0:
            asyncio.get_running_loop().call_later(seconds, self._look)
        else:
            self._wake()

    def _wake(self) -> None:
        if self._rest is not None:
            self._rest.set()
            self._rest = None
            self._waited, self._waiting = self._waiting, 0
            self._left = max(0.0, self._left)  # what is not paid by now is nobody's


def _idle() -> float:
    return float(psutil.cpu_times().idle)


class Drowsy(selectors.DefaultSelector):
    """Waits for a loop's connections; while the loop owes, it looks seldom, whatever comes."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:  # else the loop has something to do
            nap = min(self._pace.owes(), NAP if timeout is None else min(timeout, NAP))
            if nap > 0:
                time.sleep(nap)
                timeout = None if timeout is None else max(0.0, timeout - nap)
        return super().select(timeout)
