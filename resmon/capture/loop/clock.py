"""Where the time of a step goes, as the thread that trains sees it.

One phase runs at a time: what begins inside of another (a closure's forward pass inside the optimizer) pauses it. Waiting for data
is what lies before a forward pass since the step before, the backward pass of the micro-batch before, or an evaluation: the next
batch is fetched there, with whatever else the loop does. What is in no phase (the loss, clipping, logging) is the rest of the step.
On a GPU a phase is the time to queue its work, and the waiting shows where the loop first asks for a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from resmon.capture.gradients.backwards import BACKWARDS, Run
from resmon.records import PHASES

DATA, FORWARD, BACKWARD, OPTIMIZER = range(len(PHASES))


class Clock:
    """Adds up the seconds of each phase between two calls of `take`."""

    def __init__(self) -> None:
        self._seconds = [0.0] * len(PHASES)
        self._running: list[int] = []
        self._since = perf_counter()  # the last change
        self._waiting = False

    def attach(self) -> None:
        BACKWARDS.listen(self)

    def detach(self) -> None:
        """Leave no wrapped function behind."""
        BACKWARDS.leave(self)

    def backward_begun(self, run: Run) -> None:
        self.begin(BACKWARD)

    def backward_ended(self, run: Run, *, failed: bool) -> None:
        self.end(BACKWARD)

    def begin(self, phase: int) -> None:
        now = perf_counter()
        if self._running:
            self._seconds[self._running[-1]] += now - self._since
        elif self._waiting and phase == FORWARD:
            self._seconds[DATA] += now - self._since
        self._running.append(phase)
        self._since, self._waiting = now, False

    def end(self, phase: int) -> None:
        """Of a phase that has begun; of another nothing happens."""
        if phase not in self._running:
            return
        now = perf_counter()
        self._seconds[self._running[-1]] += now - self._since
        while self._running.pop() != phase:  # what was left by an exception
            pass
        self._since = now
        self._waiting = phase == BACKWARD and not self._running

    def evaluates(self) -> None:
        """A forward pass without gradients begins: what it waited for is no data of a step."""
        self._waiting = False

    def waits(self) -> None:
        """From here on the loop may wait for data, if nothing is running."""
        if not self._running:
            self._since, self._waiting = perf_counter(), True

    def take(self) -> Sequence[float | None]:
        """The seconds of each phase, None where there was nothing of it; the next step begins."""
        self._running.clear()
        seconds, self._seconds = self._seconds, [0.0] * len(PHASES)
        return [each or None for each in seconds]
