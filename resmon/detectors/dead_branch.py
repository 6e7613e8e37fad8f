"""A branch that adds nothing any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes
from resmon.detectors.history import History
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window
from resmon.quantities import number
from resmon.records import Finding, Ints

USUAL = 32  # windows that tell what was usual
LEAST = 4  # of them that must be known


class DeadBranchOptions(Options):
    ratio: float = Field(default=1e-5, gt=0, description="branch/skip ratio at or below which a branch adds nothing")
    fall: float = Field(default=100.0, gt=1, description="times the block's usual ratio above it, that it must have come down")
    windows: int = Field(default=8, ge=1, description="windows of 16 steps in a row until a ticket")
    page: int = Field(default=64, ge=1, description="windows of 16 steps in a row until it is a page")


class DeadBranch(Detector):
    """Branch/skip ratio at 0 that was not there before.

    *Formula.* Over windows of 16 steps r = median(branch_rms / skip_rms). Bad: r <= 1e-5 in a block whose median r of the last 32
    windows that were not bad is at least 100 times the limit.

    *Meaning.* `dead_branch` (ticket; a page after 64 windows): a branch gave something and gives nothing any more: dead units,
    weights that a decay or a wrong mask brought to 0, an output that is multiplied with 0. A branch that is 0 from the start is
    zero-initialised or frozen so and says nothing until it has grown.

    *Trade-off.* 8 windows are 128 steps: a branch that stochastic depth drops for some steps, or that a warm-up holds near 0, is
    none. A branch that never grows at all is not told by this rule; its gradient is 0 as well, which frozen_block sees.

    *Reference.* Dead ReLUs as others alarm on them (active at less than 1 % of the positions), here by what the add receives.
    """

    name = "dead_branch"
    options = DeadBranchOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._usual = History(USUAL)
        self._episodes = Episodes(self.name, "dead-branch", lasts=self.tuned.everywhere.windows, over="the branches were back")

    def window(self, window: Window) -> Iterable[Finding]:
        self._usual.arrange(window.sites)
        ratio = window.median("branch_skip_ratio")
        limit = self.tuned.column("ratio", window.sites)
        usual = self._usual.median(LEAST)
        with np.errstate(invalid="ignore"):
            low = ratio <= limit
            bad = low & (usual >= limit * self.tuned.column("fall", window.sites)) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = window.sites[lead], self._episodes.since(lead)
            page = self._episodes.windows(lead) >= self.tuned.at(site.name, "page")
            others = f", and {len(all_) - 1} others with it" if len(all_) > 1 else ""
            return Account(
                "page" if page else "ticket",
                f"The branch of {site.name} has added nothing since step {since}{others}",
                expected=f"a branch/skip ratio near {number(usual[lead])}, as over the windows before",
                seen=f"{number(ratio[lead])}",
                confidence=0.95,
                evidence={"branch_skip_ratio": ratio[lead], "usual": usual[lead]},
            )

        events = list(self._episodes.take(window, bad, tell, unknown=np.isnan(ratio)))
        self._usual.push(np.where(low, np.nan, ratio))
        return events

    def end(self, step: int, time: float) -> Iterable[Finding]:
        return self._episodes.end(step, time)
