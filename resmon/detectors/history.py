"""What was usual for each block: its newest window values, and their median and spread.

A `History` is asked for them in each window; a `Usual` looks them up anew in every fourth one only, which is all that most rules
need and costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from resmon.detectors.noise import MAD
from resmon.detectors.window import median, rearranged
from resmon.records import Bools, Floats, Ints, ResidualSite

EVERY = 4  # windows
_LARGEST = float(np.finfo(np.float32).max) / 2  # so that two can be added


class History:
    """The newest `length` values of each of S sites, one a window; NaN where there was none.

    They are kept in single precision, whose rounding is far below what moves them: of a thousand blocks the histories are most of
    what an agent holds. What is too large for it is kept as the largest it has.
    """

    def __init__(self, length: int) -> None:
        self._values: npt.NDArray[np.float32] = np.empty((length, 0), np.float32)
        self._sites: tuple[ResidualSite, ...] = ()
        self._pushed = 0

    def arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        """Take over these sites; what is known of a site stays with it."""
        if sites is not self._sites:
            self._values = rearranged(self._values, self._sites, sites, np.nan)
            self._sites = sites

    def push(self, values: Floats, keep: Bools | None = None) -> None:
        """Take the newest value of each site, [S]; the oldest goes, but not of sites to `keep`: what was usual stays usual.

        Without that a block that is bad for longer than the history would have no usual any more.
        """
        row = self._values[self._pushed % len(self._values)]
        new = np.clip(values, -_LARGEST, _LARGEST)
        row[:] = new if keep is None else np.where(keep, row, new)
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
        return _double(median(self._values, least))

    def spread(self, least: int = 2) -> Floats:
        """The robust standard deviation around the median, [S]."""
        return MAD * _double(median(np.abs(self._values - median(self._values)), least))

    def newest(self, count: int) -> Floats:
        """The values of the newest `count` windows, oldest first, [count, S]."""
        length = len(self._values)
        rows = (self._pushed + np.arange(-min(count, length), 0)) % length
        return _double(self._values[rows])


class Usual:
    """The median and the spread of each of S sites over the newest `length` windows, at most EVERY windows old.

    Where a site has had fewer than `least` values both are NaN. The window that is being judged has no part in them.
    """

    def __init__(self, length: int = 32, least: int = 8) -> None:
        self._history = History(length)
        self._least = least
        self._waits = 0  # windows until they are looked up anew
        self._sites: tuple[ResidualSite, ...] = ()
        self.level: Floats = np.zeros(0)
        self.spread: Floats = np.zeros(0)

    def arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        """Take over these sites; what is known of a site stays with it."""
        if sites is not self._sites:
            self._history.arrange(sites)
            self.level = rearranged(self.level, self._sites, sites, np.nan)
            self.spread = rearranged(self.spread, self._sites, sites, np.nan)
            self._sites = sites

    def push(self, values: Floats, keep: Bools | None = None) -> None:
        """Take the newest value of each site; of sites to `keep` it does not count."""
        self._history.push(values, keep)
        self._waits -= 1
        if self._waits <= 0 or (np.isnan(self.level) & ~np.isnan(values)).any():
            self.level, self.spread = self._history.median(self._least), self._history.spread(self._least)
            self._waits = EVERY


class Register:
    """One number for each of S sites, which stays with its site where they change."""

    def __init__(self, fill: float = np.nan) -> None:
        self._fill = fill
        self._sites: tuple[ResidualSite, ...] = ()
        self.values: Floats = np.empty(0)

    def arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        """Take over these sites; one that is new begins with `fill`."""
        if sites is not self._sites:
            self.values = rearranged(self.values, self._sites, sites, self._fill)
            self._sites = sites


def _double(values: npt.NDArray[Any]) -> Floats:
    return values.astype(np.float64)
