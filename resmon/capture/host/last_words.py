"""The end mark of a process that ends without a word from Python: by a signal, or with an exit status that only exit() is told.

_last_words.h does it, in whatever state Python is; here is what it is told while the process lives.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from resmon.capture import _native

# Seconds for which a signal that the program took itself explains that it ends. Schedulers give a program that is to go from half a
# minute to some minutes for its checkpoint.
GRACE = 600.0

LONGEST = 300  # characters of what may stand behind an exit status; escaped six times as many bytes


class LastWords:
    """Of one flight: its end mark is written into the file `reserved`, which is there, and then renamed to `end`.

    Raises ValueError where the paths are too long, or there are too many flights at once.
    """

    def __init__(self, reserved: Path, end: Path) -> None:
        self._handle = _native.last_words_begin(os.fsencode(reserved), os.fsencode(end))

    def step(self, step: int) -> None:
        """The newest step that is over."""
        _native.last_words_step(self._handle, step)

    def signal(self) -> str | None:
        """The signal that told the program to end, by name, where the program has taken it itself, a moment ago."""
        number, when = _native.last_words_noted(self._handle)
        return signal.Signals(number).name if number and abs(time.time() - when) < GRACE else None

    def leave(self, reason: str) -> bool:
        """Let the exit status say how the run ended; `reason` is added where it is a failure. False where that cannot be."""
        return _native.last_words_leave(self._handle, json.dumps(reason[:LONGEST])[1:-1].encode())

    def end(self) -> None:
        """The end mark is written by now."""
        _native.last_words_end(self._handle)
