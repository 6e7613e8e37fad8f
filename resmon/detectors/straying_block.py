"""One block drifts away from its neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector, Weight
from resmon.detectors.episode import Account, Episodes, with_others
from resmon.detectors.history import History, Register
from resmon.detectors.noise import MAD
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window, median
from resmon.quantities import number
from resmon.records import Bools, Finding, Floats, Ints, ResidualSite

USUAL = 16  # windows that tell a block's usual level
GAP = 2  # the newest windows, which have no part in it
BEGIN = 24  # windows before anything is said: blocks find their places in these
LEAST = 3  # blocks of a model: of two nobody knows which one strays
TOLERANCE = 0.05  # that a level may wander even where it never did, on the log scale
BEGINNING = 16  # steps: a run that begins later was resumed
FIRST, LAST = 1, 12  # windows in which blocks are compared with each other, while little is learnt
RANGE = 0.5  # part of the others' range, on the log scale, that a block must be above the largest of them
STILL = 0.4  # part of that, on the log scale, from which on it still is
MOST = 10  # one in so many blocks may stray at once; more are a change of the whole
ACCEPTED = 64  # windows after which the new level is the usual one


class StrayingBlockOptions(Options):
    factor: float = Field(
        default=1.65, gt=1, description="times that a block must be off its own usual level, the others' move aside"
    )
    spreads: float = Field(default=3.5, gt=0, description="times its usual spread, that it must be further off than the others are")
    outlier: float = Field(default=2.5, gt=1, description="times the largest of the others that a block must give at the start")
    windows: int = Field(default=3, ge=1, description="windows of 16 steps in a row until a ticket")


class StrayingBlock(Detector):
    """What a block's branch gives, against its own level and against how the other blocks move.

    *Formula.* Over windows of 16 steps x = log median(branch_rms) of each block; of 16 windows, the newest two aside, u is its
    median, t is where their trend (the difference of their halves) leads to, and s its robust standard deviation around that trend.
    d is the smaller of x - u and x - t where they agree in direction, else 0: how far a block is off what it was to give. And

        e = d - median of d over the model's blocks
        r = the largest |e| of the others (of the 10 % that are furthest off, none is counted)
        bad: |e| >= log 1.65 and |e| - r >= 3.5 (s + 0.05)

    At the start of a run there is no level yet, but blocks that were initialised alike are alike: in its windows 2 to 12

        bad: x - the largest x of the others >= log 2.5 + half the range of the others, one of which has the same operations

    *Meaning.* `straying_block` (ticket, a symptom: an explosion that came before explains it): the branch of one block gives much
    more or less than it did, and the others do not follow: a scale that was dropped or applied twice, a layer that a code change
    or a checkpoint left out, weights that something else writes to, one block that learns too fast. That blocks differ, early from
    late ones, attention from MLP, stage from stage, is none: each is compared with itself. A move of all, as by a learning rate, is
    none. From the start: a scale that is missing in one block, or its weights initialised too large.

    *Trade-off.* A trend is followed: what takes longer than some 10 windows for its way is not seen as a move. No move is told in
    the first 24 windows, where blocks differentiate, and none of models of one or two blocks. After 64 windows the new level is the
    usual one.

    *Delay.* 48 to 80 steps.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings.

    *Reference.* Each block its own reference and the common move taken out, as difference in differences; robust by medians, as in
    Rousseeuw and Croux, "Alternatives to the Median Absolute Deviation", 1993.
    """

    name = "straying_block"
    options = StrayingBlockOptions
    weight: ClassVar[Weight] = "symptom"

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._levels = History(USUAL + GAP)
        self._usual = Register()
        self._ahead = Register()  # where its trend leads to
        self._spread = Register()
        self._off = Register(0.0)  # windows in a row that it has been off
        self._seen = Register(0.0)  # windows
        self._outlier = Register(0.0)  # windows in a row that it was one from the start
        self._began: int | None = None  # step of the first window
        self._episodes = Episodes(
            self.name, runbook="straying-block", lasts=self.tuned.everywhere.windows, over="the blocks move together again"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        self._levels.arrange(sites)
        for each in (self._usual, self._ahead, self._spread, self._off, self._seen, self._outlier):
            each.arrange(sites)
        branch = window.median("branch_rms")
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.where(branch > 0, np.log(branch), np.nan)
        held = self._off.values > 0
        before = self._levels.newest(USUAL + GAP)[:USUAL]
        usual, ahead, spread = _expected(before)
        self._usual.values = usual = np.where(held, self._usual.values, usual)
        self._ahead.values = ahead = np.where(held, self._ahead.values, ahead)
        self._spread.values = spread = np.where(held, self._spread.values, spread)
        level, trend = x - usual, x - ahead
        moved = np.where(level * trend > 0, np.sign(level) * np.minimum(np.abs(level), np.abs(trend)), 0.0)
        moved[np.isnan(level * trend) | (self._seen.values < BEGIN)] = np.nan
        e, excess = np.full(len(sites), np.nan), np.full(len(sites), np.nan)
        for mine in window.models.values():
            e[mine], excess[mine] = _apart(moved[mine])
        with np.errstate(invalid="ignore"):
            far = np.abs(e) >= np.log(self.tuned.column("factor", sites))
            strays = far & (excess >= self.tuned.column("spreads", sites) * (spread + TOLERANCE))
        above, outlies = self._compared(window, x)
        bad = (strays | outlies) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            others = with_others(all_)
            if outlies[lead]:
                return Account(
                    "ticket",
                    f"The branch of {site.name} gives {exp(above[lead]):.3g} times what any other gives, from the start{others}",
                    expected=f"a branch RMS near {number(branch[lead] / exp(above[lead]))} at most, as in the others",
                    seen=number(branch[lead]),
                    confidence=0.8,
                    evidence={"branch_rms": branch[lead], "factor": exp(above[lead]), "since": self._began},
                )
            times = exp(abs(e[lead]))
            way = f"{times:.3g} times as much" if e[lead] > 0 else f"{1 / times:.2g} of what it gave"
            return Account(
                "ticket",
                f"The branch of {site.name} gives {way} since step {since}{others}, while the other blocks stay together",
                expected=f"a branch RMS near {number(exp(usual[lead]))}, as over the windows before",
                seen=number(branch[lead]),
                confidence=min(0.95, 0.6 + 0.02 * float(excess[lead] / (spread[lead] + TOLERANCE))),
                evidence={
                    "branch_rms": branch[lead],
                    "usual": exp(usual[lead]),
                    "factor": exp(e[lead]),
                    "spreads": excess[lead] / (spread[lead] + TOLERANCE),
                },
            )

        unknown = np.isnan(moved) & ~(self._outlier.values > 0)
        events = list(self._episodes.take(window, bad, tell, unknown=unknown, guilt=excess))
        self._off.values = np.where(strays & (self._off.values < ACCEPTED), self._off.values + 1, 0.0)
        self._seen.values = self._seen.values + ~np.isnan(x)
        self._levels.push(x)
        return events

    def _compared(self, window: Window, x: Floats) -> tuple[Floats, Bools]:
        """How far each block is above the largest of the others, and whether it has been so since the start."""
        if self._began is None:
            self._began = window.first_step
        above = np.full(len(x), np.nan)
        seen, outlier = self._seen.values, self._outlier.values
        beginning = bool(self._began <= BEGINNING and (seen < LAST).any())
        if not beginning and not outlier.any():
            return above, np.zeros(len(x), bool)
        limit = np.full(len(x), np.nan)
        for mine in window.models.values():
            known = mine[~np.isnan(x[mine])]
            if len(known) >= LEAST:
                ordered = np.sort(x[known])
                top = known[np.argmax(x[known])]
                if not any(_kind(window.sites[i]) == _kind(window.sites[top]) for i in known if i != top):
                    continue
                above[top] = ordered[-1] - ordered[-2]
                limit[top] = RANGE * (ordered[-2] - ordered[0])
        with np.errstate(invalid="ignore"):
            limit += np.log(self.tuned.column("outlier", window.sites))
            begins = (above >= limit) & (seen >= FIRST) & (seen < LAST) & beginning
            lasts = (outlier >= self.tuned.everywhere.windows) & (outlier < ACCEPTED) & (above >= STILL * limit)
        outlies: Bools = begins | lasts
        self._outlier.values = np.where(outlies, outlier + 1, 0.0)
        return above, outlies


def _kind(site: ResidualSite) -> tuple[str, ...]:
    """The branch's operations without the shapes of their parameters."""
    return tuple(operation.partition("[")[0] for operation in site.operations)


def _expected(levels: Floats) -> tuple[Floats, Floats, Floats]:
    """The usual level of each block, where its trend leads to, and its spread around that trend; NaN where too few are known."""
    half = USUAL // 2
    first, second = median(levels[:half], half // 2), median(levels[half:], half // 2)
    middle, slope = (first + second) / 2, (second - first) / half
    around = levels - middle - slope * (np.arange(USUAL) - (USUAL - 1) / 2)[:, None]
    spread = MAD * median(np.abs(around - median(around)), half)
    return median(levels, half), middle + slope * (USUAL / 2 + GAP + 0.5), spread


def _apart(moved: Floats) -> tuple[Floats, Floats]:
    """How far each block has moved against the middle one, and how much further than the others; NaN where that is not known."""
    known = int(np.count_nonzero(~np.isnan(moved)))
    if known < LEAST:
        return np.full(len(moved), np.nan), np.full(len(moved), np.nan)
    apart = moved - np.nanmedian(moved)
    distance = np.abs(apart)
    others = np.sort(distance)[known - 1 - max(1, known // MOST)]  # NaN are last
    return apart, distance - others
