"""A thread that looks where the training is when no step comes, as whoever looks at a hang later cannot ask the process any more.

It sleeps, and wakes only to see that steps have come. Where none has it writes down the stack of the thread that trains, and again
each time that twice as long has passed: a hang is told from an evaluation that goes on by being in one place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from resmon.records import StackDump

log = logging.getLogger("resmon")

FIRST = 0.4  # of stall_after: a stall that is told then has been looked at twice
JOIN = 1.0  # seconds that whoever closes the monitor waits for it: it may be writing where a file system hangs


class Watchdog:
    """Calls `look` where a step has not come for some of `stall_after` seconds, and gives what it returns to `tell`.

    `moved` is when the newest step was over, by the monotonic clock; `look` is told the seconds since.
    """

    def __init__(
        self,
        stall_after: float,
        moved: Callable[[], float],
        look: Callable[[float], StackDump | None],
        tell: Callable[[StackDump], None],
    ) -> None:
        self._patience, self._moved, self._look, self._tell = FIRST * stall_after, moved, look, tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="resmon-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(JOIN)

    def _run(self) -> None:
        moved, wait = self._moved(), self._patience
        last: StackDump | None = None
        while not self._over.wait(max(0.0, moved + wait - time.monotonic())):
            if (newest := self._moved()) != moved:
                moved, wait, last = newest, self._patience, None
                continue
            try:
                found = self._look(time.monotonic() - moved)
                if found is not None:
                    if last is not None and last.calls == found.calls:
                        found = replace(found, since=last.since)
                    self._tell(found)
                    last = found
            except Exception as error:  # noqa: BLE001 - the training goes on
                log.debug("resmon: where the training is could not be written down: %r", error)
            wait *= 2
