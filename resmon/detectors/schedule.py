"""The learning rate of late: where it rose, that explains what a network gives."""

from __future__ import annotations

from collections import deque
from itertools import islice

import numpy as np

from resmon.detectors.window import Window

RAISED = 1.25  # times the smallest learning rate of the reference: more explains a change


class Schedule:
    """The largest learning rate of each of the newest `length` windows, of which the first `reference` are compared with."""

    def __init__(self, length: int, reference: int) -> None:
        self._rates: deque[float] = deque(maxlen=length)
        self._reference = reference

    def take(self, window: Window) -> None:
        self._rates.append(float(np.fmax.reduce(window.run("learning_rate"))))

    @property
    def rose(self) -> bool:
        """Whether a learning rate that rose since the reference explains what changed."""
        before = [rate for rate in islice(self._rates, self._reference) if rate == rate]
        return bool(before) and self._rates[-1] > RAISED * min(before)
