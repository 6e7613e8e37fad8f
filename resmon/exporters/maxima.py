"""The largest values of the last minute, so that no spike falls between two scrapes.

The window is measured by the records' own time, back from the newest record, and not by the clock on the wall. So the same flight
gives the same maxima whether it is followed live or read by an agent that was started again (old spikes are not taken for new
ones), and a training whose steps are slower than the window still shows its newest step instead of nothing. What it costs: while no
step comes, the maxima stay, as the gauges of the last step do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resmon.records import Bools, Floats, ResidualSite
from resmon.statistics import Column

Sites = tuple[ResidualSite, ...]


@dataclass(slots=True, eq=False)
class _Slot:
    """One second."""

    start: float
    sites: Sites
    values: Floats  # [columns, S], NaN where nothing finite or infinite was seen
    present: Bools


class Maxima:
    """Running maxima of some columns over `window` seconds, in slots of one second: memory and cost do not grow with the steps.

    NaN is no maximum: it is given only where nothing else was seen in the whole window.
    """

    def __init__(self, names: Sequence[str], window: float) -> None:
        self._names = tuple(names)
        self._window = window
        self._slots: deque[_Slot] = deque()

    def push(self, time: float, sites: Sites, columns: Mapping[str, Column]) -> None:
        values = np.array([columns[name].values for name in self._names])
        present = np.array([columns[name].present for name in self._names])
        values[~present] = np.nan
        start = float(np.floor(time))
        slots = self._slots
        while slots and slots[0].start <= start - self._window:
            slots.popleft()
        later: list[_Slot] = []  # than now: the clock was set back, and these were a moment ago
        while slots and slots[-1].start > start:
            later.append(slots.pop())
        for slot in reversed(later):
            self._add(start, slot.sites, slot.values, slot.present)
        self._add(start, sites, values, present)

    def _add(self, start: float, sites: Sites, values: Floats, present: Bools) -> None:
        newest = self._slots[-1] if self._slots else None
        if newest is not None and newest.start == start and newest.sites is sites:
            np.fmax(newest.values, values, out=newest.values)
            newest.present |= present
        else:
            self._slots.append(_Slot(start, sites, values, present))

    def columns(self, sites: Sites) -> dict[str, Column]:
        """The maxima for these sites."""
        values = np.full((len(self._names), len(sites)), np.nan)
        present = np.zeros(values.shape, bool)
        for slot in self._slots:
            if slot.sites is sites:
                np.fmax(values, slot.values, out=values)
                present |= slot.present
            else:  # sites came in between
                places = {(site.model, site.name): i for i, site in enumerate(sites)}
                for i, site in enumerate(slot.sites):
                    place = places.get((site.model, site.name))
                    if place is not None:
                        values[:, place] = np.fmax(values[:, place], slot.values[:, i])
                        present[:, place] |= slot.present[:, i]
        return {name: Column(values[i], present[i]) for i, name in enumerate(self._names)}
