"""The training loss as windows see it, on the log scale: where it began, what it is usually, where it is now.

Near the end of learning gradients are about proportional to the loss: one that comes back from 0.001 to 0.1, as after a restart of
the learning rate, brings its gradients with it, and one that goes to 0 takes them along. Rules about gradients ask here how much of
what they see the loss explains.
"""

from __future__ import annotations

from collections import deque
from math import inf, log, nan
from statistics import median

import numpy as np

from resmon.detectors.noise import spread
from resmon.detectors.window import Window
from resmon.records import Floats
from resmon.scores.gaps import role

REMEMBERED = 32  # windows that tell what is usual
BEGIN = 4  # windows whose highest level is where the run began
LEAST_LOSS = 1e-12  # that a loss of 0 counts as


class LossLevel:
    """The logged loss that is of training, by levels: medians of windows. NaN: unknown.

    Of several names for it the first that comes is followed.
    """

    def __init__(self) -> None:
        self.values: Floats = np.zeros(0)  # of the window's steps, [n]; NaN all where one was ever negative: it has no logarithm
        self.now = nan
        self.usual = nan  # median of the windows before this one
        self.noise = nan  # robust standard deviation of a window's level, from its moves
        self.first = nan  # where it began
        self.best = inf  # lowest level of the windows before this one
        self._name: str | None = None
        self._negative = False  # then there is no logarithm of it
        self._levels: deque[float] = deque(maxlen=REMEMBERED)
        self._count = 0

    def take(self, window: Window, *, keep: bool = False) -> None:
        """Take a window; where `keep`, what is usual stays as it is."""
        if self._count:  # the window before has been judged
            self.best = min(self.best, self.now) if self.now == self.now else self.best
        if self._name is None:
            self._name = next((name for name in window.scalars if role(name) == ("loss", False)), None)
        none = np.full(len(window), nan)
        logged = window.scalars.get(self._name, none) if self._name is not None else none
        self._negative = self._negative or bool((logged < 0).any())
        self.values = none if self._negative else logged
        values = self.values[~np.isnan(self.values)]
        if self._levels:
            self.usual = median(self._levels)
            self.noise = spread(self._levels) if len(self._levels) > 2 else nan
        self.now = nan if not len(values) else log(max(float(np.median(values)), LEAST_LOSS))
        if self.now != self.now:
            return
        self._count += 1
        if self._count <= BEGIN:
            self.first = self.now if self._count == 1 else max(self.first, self.now)
        if not keep:
            self._levels.append(self.now)

    @property
    def risen(self) -> float:
        """How much of a rise of gradients the loss explains: by how much it is above its usual level, up to where it began."""
        rise = min(self.now, self.first) - self.usual
        return rise if rise > 0 else 0.0  # 0 where it is unknown

    @property
    def fallen(self) -> float:
        """The same of a fall."""
        fall = self.usual - self.now
        return fall if fall > 0 else 0.0

    @property
    def left(self) -> float:
        """The part of where it began that is still to be learnt; NaN where that is unknown."""
        return float(np.exp(min(self.now - self.first, 700.0)))
