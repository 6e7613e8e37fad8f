"""Branches that outgrow their skips before the loss knows of it."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector, Weight
from resmon.detectors.episode import Account, Episodes
from resmon.detectors.history import History, Usual
from resmon.detectors.loss_level import LossLevel
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window, rearranged
from resmon.quantities import count, number
from resmon.records import Finding, Floats, Ints, ResidualSite

SETTLED = 24  # windows of history
LEAST_SPREAD = 0.05  # of log ratios, where a block's own was smaller
RISING = 4  # windows over which the ratio must have risen
FINE = log(1.1)  # above its usual level, that a loss may be and is fine


class SpikeWarningOptions(Options):
    factor: float = Field(default=1.5, gt=1, description="times its usual branch/skip ratio that a block's must be")
    spreads: float = Field(default=8.0, ge=0, description="times the block's own spread, on the log scale, that the rise must be")
    ratio: float = Field(default=0.5, ge=0, description="branch/skip ratio below which a branch is too small to spoil the stream")
    windows: int = Field(default=3, ge=1, description="windows of 16 steps in a row until a ticket")


class SpikeWarning(Detector):
    """Branch/skip ratios that rise over several windows beyond anything that the block had, while the loss is still fine.

    *Formula.* Over windows of 16 steps r = log(median(branch_rms / skip_rms)) of each block. Bad is where all of these hold:

        r - usual > max(log 1.5, 8 spreads)     median and robust deviation of the last 32 windows that were not bad
        r > highest so far                      of the windows that were not bad
        r > r four windows ago + 2 spreads      it still rises
        branch/skip ratio >= 0.5
        log loss <= usual + max(log 1.1, 3 noises of its levels)

    *Meaning.* `spike_warning` (ticket): the add's sum is more and more the branch's. In pre-norm networks the gradient of a block
    is about as large as its branch is beside the skip, so that a ratio that grows precedes a spike of the gradient, and that one
    of the loss. A symptom: where a cause is told of at the time, it stands in that finding.

    *Trade-off.* Ratios grow in healthy training too, tenfold in the first few hundred steps, and slowly for as long as it lasts;
    `spreads` tells sudden growth from slow, and the first 24 windows (384 steps) are not judged. Branches below half of their skips
    are not looked at. *Delay.* 3 windows: 33 to 48 steps.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings.

    *Reference.* Takase, Kiyono, Kobayashi and Suzuki, Spike No More, 2023 (arXiv 2312.16903): spikes come from blocks whose
    branches are large beside their skips.
    """

    name = "spike_warning"
    options = SpikeWarningOptions
    weight: ClassVar[Weight] = "symptom"

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._usual = Usual(least=SETTLED)
        self._newest = History(RISING)
        self._highest: Floats = np.zeros(0)
        self._sites: tuple[ResidualSite, ...] = ()
        self._loss = LossLevel()
        self._episodes = Episodes(self.name, "spike-warning", lasts=self.tuned.everywhere.windows, over="the ratios no longer rose")

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        self._arrange(sites)
        self._loss.take(window, keep=self._episodes.any_open)
        ratio = window.median("branch_skip_ratio")
        with np.errstate(divide="ignore", invalid="ignore"):
            level = np.log(np.where(ratio > 0, ratio, np.nan))
            spread = np.maximum(self._usual.spread, LEAST_SPREAD)
            rise = level - self._usual.level
            beyond = (rise > np.log(self.tuned.column("factor", sites))) & (rise > self.tuned.column("spreads", sites) * spread)
            bad = beyond & (ratio >= self.tuned.column("ratio", sites)) & (level > self._highest) & self.watched(window)
            bad &= level > self._newest.newest(RISING)[0] + 2 * spread
        if not self._is_fine():
            bad[:] = False

        def tell(lead: int, all_: Ints) -> Account:
            site, since, usual = sites[lead], self._episodes.since(lead), exp(self._usual.level[lead])
            others = f" and of {count(len(all_) - 1, 'other block')}" if len(all_) > 1 else ""
            return Account(
                "ticket",
                f"The branch/skip ratio of {site.name}{others} has been rising since step {since}, to {number(ratio[lead])}, "
                "while the loss is still fine",
                expected=f"a ratio near {number(usual)}, as over the windows before",
                seen=f"{number(ratio[lead])}, {number(rise[lead] / spread[lead])} times its own spread away",
                confidence=0.6,
                more="; a spike of the loss often follows",
                evidence={"branch_skip_ratio": ratio[lead], "usual": usual, "factor": exp(rise[lead])},
            )

        events = list(self._episodes.take(window, bad, tell, unknown=np.isnan(level), guilt=rise))
        self._usual.push(level, keep=bad)
        self._newest.push(level)
        self._highest = np.where(bad, self._highest, np.fmax(self._highest, level))
        return events

    def _is_fine(self) -> bool:
        """Whether the loss is where it usually is, or below."""
        noise = self._loss.noise if self._loss.noise == self._loss.noise else 0.0
        return not self._loss.now > self._loss.usual + max(FINE, 3 * noise)

    def _arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        if sites is not self._sites:
            self._usual.arrange(sites)
            self._newest.arrange(sites)
            self._highest = rearranged(self._highest, self._sites, sites, np.nan)
            self._sites = sites
