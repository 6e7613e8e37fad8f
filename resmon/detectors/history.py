"""What was usual for each block: its newest window values, and their median and spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resmon.detectors.noise import MAD
from resmon.detectors.window import median, rearranged
from resmon.records import Floats, Ints, ResidualSite


class History:
    """The newest `length` values of each of S sites, one a window; NaN where there was none."""

    def __init__(self, length: int) -> None:
        self._values: Floats = np.empty((length, 0))
        self._sites: tuple[ResidualSite, ...] = ()
        self._pushed = 0

    def arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        """Take over these sites; what is known of a site stays with it."""
        if sites is not self._sites:
            self._values = rearranged(self._values, self._sites, sites, np.nan)
            self._sites = sites

    def push(self, values: Floats) -> None:
        """Take the newest value of each site, [S]; the oldest goes."""
        self._values[self._pushed % len(self._values)] = values
        self._pushed += 1

    def forget(self, places: Ints | Sequence[int]) -> None:
        """These sites begin anew."""
        self._values[:, places] = np.nan

    def count(self) -> Ints:
        """How many values each site has, [S]."""
        there: Ints = (~np.isnan(self._values)).sum(axis=0)
        return there

    def median(self, least: int = 1) -> Floats:
        """[S]; NaN where a site has fewer than `least`."""
        return median(self._values, least)

    def spread(self, least: int = 2) -> Floats:
        """The robust standard deviation around the median, [S]."""
        return MAD * median(np.abs(self._values - median(self._values)), least)

    def newest(self, count: int) -> Floats:
        """The values of the newest `count` windows, oldest first, [count, S]."""
        length = len(self._values)
        rows = (self._pushed + np.arange(-min(count, length), 0)) % length
        return self._values[rows]
