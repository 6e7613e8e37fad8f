"""The distribution of a block's output leaves that of the windows before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from resmon.detectors import distances
from resmon.detectors.detector import Detector, Weight
from resmon.detectors.episode import Account, Episodes, with_others
from resmon.detectors.history import History
from resmon.detectors.options import Options, Tuned
from resmon.detectors.schedule import Schedule
from resmon.detectors.window import Window, rearranged
from resmon.quantities import number
from resmon.records import MAGNITUDE_NONFINITE, MAGNITUDE_ZERO, Finding, Floats, Ints, ResidualSite

NEWEST, GAP, REFERENCE = 4, 4, 12  # windows that are looked at, that lie between, and that they are compared with
USUAL = 24  # distances in a row that tell what is usual
LEAST = 12  # of them that must be known
UNUSED = 4  # the newest of them, which may be of the same change
CHANCE = 4.75  # standard deviations: one in a million
_MOST = np.iinfo(np.int32).max  # samples of a window in a bin; there are some thousands


class DriftOptions(Options):
    times: float = Field(default=1.5, gt=1, description="times the largest usual distance that a block must be away")
    distance: float = Field(
        default=0.045, gt=0, lt=1, description="root of the Jensen-Shannon divergence that it must be away at least"
    )
    windows: int = Field(default=3, ge=1, description="windows of 16 steps in a row until a ticket")


class Drift(Detector):
    """Histograms of |y| at a block's output against those of a while ago, by what the run itself usually does.

    *Formula.* p is the histogram of the newest 4 windows of 16 steps, q that of 12 windows which end 4 windows before these, zeros
    in a bin of their own, what is not finite left out. D is the root of their Jensen-Shannon divergence in bits. Bad:

        D >= 1.5 times the largest D of the 24 windows before the newest 4, and D >= 0.045
        D^2 >= the divergence that two samples of one distribution have once in a million: chi^2 (1/n + 1/m) / (8 ln 2)

    *Meaning.* `drift` (ticket, a symptom: it stands in the evidence of what explains it): a block puts out other values than it
    did, faster than learning moved them. A network that learns fast has a large usual D and is left alone; one that is settled has
    a small one. The reference moves with the run: slow learning is no drift. The evidence has the population stability index, the
    Kolmogorov-Smirnov and the Wasserstein distance (in doublings) as well.

    *Trade-off.* By its own past the detector knows how much samples within a step depend on each other, which the count of samples
    does not tell; where the past is restless it is deaf. Bins are powers of 2: a change by a few percent of all values is seen as
    what crosses an edge. Nothing is said in the first 36 windows, nor where the learning rate is more than 1.25 times the smallest
    of the reference: after a warm restart a network puts out other values because it learns again.

    *Delay.* A sudden change by a factor of 2 of all values: 48 to 96 steps; a gradual one about as long as it takes.

    *Expected false alarms.* Three tickets on 1,018,000 steps of the fault bench's healthy trainings: sudden turns in what a small
    network learns.

    *Reference.* Lin, "Divergence Measures Based on the Shannon Entropy", 1991; Endres and Schindelin, "A New Metric for Probability
    Distributions", 2003; Gretton et al. on two-sample tests by the data's own spread, 2012; chi-square: Wilks 1938.
    """

    name = "drift"
    options = DriftOptions
    weight: ClassVar[Weight] = "symptom"

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._sites: tuple[ResidualSite, ...] = ()
        self._held: deque[npt.NDArray[np.int32]] = deque()  # histograms of windows, [S, B] each
        self._distances = History(USUAL + UNUSED)
        self._schedule = Schedule(NEWEST + GAP + REFERENCE, REFERENCE)
        self._episodes = Episodes(
            self.name, runbook="drift", lasts=self.tuned.everywhere.windows, over="the distributions are settled"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        if sites is not self._sites:
            self._held = deque(rearranged(each.T, self._sites, sites, 0).T for each in self._held)
            self._sites = sites
        self._distances.arrange(sites)
        self._schedule.take(window)
        self._held.append(np.minimum(in_order(window.histogram), _MOST).astype(np.int32))
        if len(self._held) < NEWEST + GAP + REFERENCE:
            return ()
        newest, reference = _sum(islice(self._held, GAP + REFERENCE, None)), _sum(islice(self._held, REFERENCE))
        self._held.popleft()
        divergence = distances.jensen_shannon(newest, reference)
        distance = np.sqrt(divergence)
        before = self._distances.newest(USUAL + UNUSED)[:USUAL]
        self._distances.push(distance)
        known = np.count_nonzero(~np.isnan(before), axis=0) >= LEAST
        usual = np.fmax.reduce(before, axis=0)
        limit = np.maximum(self.tuned.column("distance", sites), self.tuned.column("times", sites) * usual)
        with np.errstate(invalid="ignore"):
            bad = known & (distance >= limit)
        if bad.any():
            bad &= divergence >= by_chance(newest, reference)
        bad &= self.watched(window) & (not self._schedule.rose)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            others = with_others(all_)
            now, then = newest[lead], reference[lead]
            return Account(
                "ticket",
                f"The output of {site.name} is distributed otherwise since about step {since}{others}",
                expected=f"a Jensen-Shannon distance below {number(limit[lead])}, as the run's own changes make",
                seen=f"{number(distance[lead])}; on average values are {_moved(now, then)}",
                confidence=float(min(0.95, 0.4 + 0.2 * distance[lead] / limit[lead])),
                evidence={
                    "jensen_shannon_distance": distance[lead],
                    "usual_distance": usual[lead],
                    "population_stability_index": float(distances.population_stability(now, then)),
                    "kolmogorov_smirnov": float(distances.kolmogorov_smirnov(now, then)),
                    "wasserstein_doublings": float(distances.wasserstein(now[1:], then[1:])),
                    "samples": int(now.sum()),
                },
            )

        # What leaves one block comes to all that follow: the first is named of those that moved about as far.
        guilt = np.zeros(len(sites))
        if bad.any():
            far = distance / limit
            for mine in window.models.values():
                guilt[mine] = bad[mine] & (far[mine] >= np.where(bad[mine], far[mine], 0.0).max(initial=0.0) / 2)
        return list(self._episodes.take(window, bad, tell, unknown=~known, guilt=guilt))


def _sum(histograms: Iterable[npt.NDArray[np.int32]]) -> Ints:
    """One after the other: side by side they would take as much again as is held."""
    total: Ints = np.zeros((), np.int64)
    for each in histograms:
        total = total + each
    return total


def in_order(histogram: Ints) -> Ints:
    """Zeros first, then by magnitude; without what is not finite."""
    return np.concatenate([histogram[..., MAGNITUDE_ZERO : MAGNITUDE_ZERO + 1], histogram[..., :MAGNITUDE_ZERO]], axis=-1)


assert MAGNITUDE_NONFINITE == MAGNITUDE_ZERO + 1  # noqa: S101, what in_order leaves out


def by_chance(counts: Ints, reference: Ints) -> Floats:
    """The Jensen-Shannon divergence, in bits, that independent samples of one distribution have once in a million."""
    degrees = np.maximum(1.0, np.count_nonzero(counts + reference, axis=-1) - 1.0)
    with np.errstate(divide="ignore"):
        sizes = 1.0 / counts.sum(axis=-1) + 1.0 / reference.sum(axis=-1)
    bound: Floats = distances.chi_square_bound(degrees, CHANCE) * sizes / (8.0 * distances.LN2)
    return bound


def _moved(now: Ints, then: Ints) -> str:
    """How the middle of the magnitudes moved; zeros are none."""
    places = np.arange(len(now) - 1)
    moved = float((distances.shares(now[1:]) - distances.shares(then[1:])) @ places)
    if np.isnan(moved):
        return "0"
    return f"{number(2**moved)} times as large" if moved >= 0 else f"{number(2**-moved)} times smaller"
