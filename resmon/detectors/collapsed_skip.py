"""A skip that vanishes beside its branch, or that the branch takes back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes, with_others
from resmon.detectors.history import History, Register
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window
from resmon.quantities import number
from resmon.records import Finding, Ints

USUAL = 32  # windows that tell what was usual
LEAST = 4  # of them that must be known


class CollapsedSkipOptions(Options):
    ratio: float = Field(default=10.0, gt=1, description="branch/skip ratio from which on the skip is small beside the branch")
    rise: float = Field(default=6.0, gt=1, description="times the block's usual ratio that it must be, where one is known")
    outright: float = Field(default=20.0, gt=1, description="branch/skip ratio that is too large from the start")
    alignment: float = Field(default=-0.9, ge=-1, lt=0, description="alignment at or below which a branch takes the stream back")
    growth: float = Field(default=0.5, gt=0, lt=1, description="growth at or below which little is left of the stream")
    windows: int = Field(default=4, ge=1, description="windows of 16 steps in a row until a ticket")
    page: int = Field(default=24, ge=1, description="windows of 16 steps in a row until it is a page, where it was not so before")


class CollapsedSkip(Detector):
    """A stream that no longer passes the block.

    *Formula.* Over windows of 16 steps r is the median of branch_skip_ratio_median (the ratio at the usual position, so that a few
    positions of massive activations do not make it; branch_skip_ratio where it was not taken). Bad, one of:

        r >= 10 and 6 times the median r of the block's last 32 windows that were not bad   (it rose)
        r >= 20 in a block of which nothing else is known                                   (outright)
        alignment <= -0.9 and growth <= 0.5, in a block whose growth was more before        (taken back)

    *Meaning.* `collapsed_skip` (ticket; a page once it has been so for 24 windows in a block that was not so before): the branch
    drowns what the skip carries, so that the block is no residual one any more, gradients pass through it as through a plain layer,
    and later blocks get what one branch made of it; or the sum cancels. Weights that explode, a dropped scale, an initialisation
    that is tens of times too large. Healthy blocks were between 0.00003 and 2.6; pre-activation networks have about 1 / sqrt(l) at
    the l-th block of a stage. A first block that adds to a small embedding may have more than 20: tune `outright` for it.

    *Trade-off.* From 2.6 to 10 nothing is said: straying_block and change see such moves. What is outright is a ticket and no page,
    since it may be meant.

    *Delay.* 64 to 80 steps; a page after 384.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings.

    *Reference.* De and Smith, arXiv 2002.10444; "large shortcut, small sub-layers": Takase et al., arXiv 2312.16903. Massive
    activations: Sun et al., arXiv 2402.17762.
    """

    name = "collapsed_skip"
    options = CollapsedSkipOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._newest = History(USUAL)
        self._usual = Register()  # their median while enough of them are known
        self._growth = Register()  # largest so far
        self._was = Register(0.0)  # windows that were not bad
        self._episodes = Episodes(
            self.name, runbook="collapsed-skip", lasts=self.tuned.everywhere.windows, over="the skips carried the stream again"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        self._newest.arrange(sites)
        for each in (self._usual, self._growth, self._was):
            each.arrange(sites)
        usually, overall = window.median("branch_skip_ratio_median"), window.median("branch_skip_ratio")
        ratio = np.where(np.isnan(usually), overall, usually)
        alignment, growth = window.median("alignment"), window.median("growth")
        limit, outright = self.tuned.column("ratio", sites), self.tuned.column("outright", sites)
        with np.errstate(invalid="ignore"):
            high = ratio >= np.minimum(limit, outright)
            cancels = (alignment <= self.tuned.column("alignment", sites)) & (growth <= self.tuned.column("growth", sites))
            cancels &= self._growth.values > self.tuned.column("growth", sites)
            drowns = np.zeros(len(sites), bool)
            usual = self._usual.values
            if high.any():
                newest = self._newest.median(LEAST)
                usual = self._usual.values = np.where(np.isnan(newest), usual, newest)
                rose = (ratio >= limit) & (ratio >= self.tuned.column("rise", sites) * usual)
                drowns = np.where(np.isnan(usual), ratio >= outright, rose)
        bad = (drowns | cancels) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            was = self._was.values[lead] >= LEAST if cancels[lead] else not np.isnan(usual[lead])
            page = was and self._episodes.windows(lead) >= self.tuned.at(site.name, "page")
            others = with_others(all_)
            evidence = {
                "branch_skip_ratio": ratio[lead],
                "usual": usual[lead],
                "alignment": alignment[lead],
                "growth": growth[lead],
            }
            first = f"The branch of {site.name} has drowned its skip since step {since}{others}"
            expected = f"a branch/skip ratio below {number(self.tuned.at(site.name, 'ratio'))}"
            if not np.isnan(usual[lead]):
                expected = f"a branch/skip ratio near {number(usual[lead])}, as over the windows before"
            seen = number(ratio[lead])
            if cancels[lead]:
                first = f"The branch of {site.name} has taken back the stream since step {since}{others}"
                expected, seen = "an output about as large as the skip", f"{number(growth[lead])} of it is left"
            return Account("page" if page else "ticket", first, expected, seen, confidence=0.9, evidence=evidence)

        unknown = np.isnan(ratio) & np.isnan(alignment)
        events = list(self._episodes.take(window, bad, tell, unknown=unknown))
        self._newest.push(np.where(high, np.nan, ratio))
        self._growth.values = np.fmax(self._growth.values, growth)
        self._was.values = self._was.values + (~bad & ~unknown)
        return events
