"""A branch that adds nothing any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes, with_others
from resmon.detectors.history import History, Register
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import WINDOW, Window
from resmon.quantities import number
from resmon.records import Finding, Ints

USUAL = 32  # windows that tell what was usual
LEAST = 4  # of them that must be known
ALIVE = 0.5  # share of dead units at or below which a branch has been alive


class DeadBranchOptions(Options):
    ratio: float = Field(default=1e-5, gt=0, description="branch/skip ratio at or below which a branch adds nothing")
    fall: float = Field(default=100.0, gt=1, description="times the block's usual ratio above it, that it must have come down")
    units: float = Field(default=0.98, gt=0.5, le=1, description="share of dead units from which on a branch is dead")
    windows: int = Field(default=8, ge=1, description="windows of 16 steps in a row until a ticket")
    page: int = Field(default=64, ge=1, description="windows of 16 steps in a row until it is a page")
    start: int = Field(default=128, ge=1, description="windows of 16 steps after which one that never grew is dead from the start")


class DeadBranch(Detector):
    """Branch/skip ratio at 0 that was not there before, or no unit that is active any more.

    *Formula.* Over windows of 16 steps r = median(branch_rms / skip_rms). Bad, one of:

        r <= 1e-5, in a block whose median r of the last 32 windows that were not bad is at least 100 times the limit
        dead_unit_ratio >= 0.98, in a block where it was 0.5 or less before
        r <= 1e-5 in every window so far, the gradient of its parameters exactly 0 in 128 windows in a row, while another block of
        the same model has a gradient

    *Meaning.* `dead_branch` (ticket; a page after 64 windows): a branch gave something and gives nothing any more: dead units,
    weights that a decay or a wrong mask brought to 0, an output that is multiplied with 0. Where its units are dead, a bias of the
    last layer may still be added, so that the ratio stays above 0: it is the same for every input, and a ticket however long it
    lasts, as ReLU blocks die in trainings that go on well without them. Under stochastic depth a branch is at 0 where it was
    dropped for every sample of a window. A branch that is 0 from the start is zero-initialised; nothing is said of it until it has
    grown, unless no gradient comes to it that could make it grow (a ticket only).

    *Trade-off.* 8 windows are 128 steps: a branch that stochastic depth drops for some steps, or that a warm-up holds near 0, is
    none. One that is multiplied with a small number is none: it changes what the branch gives, but not that it gives something.

    *Delay.* 128 to 144 steps; 2,048 where the branch never grew.

    *Expected false alarms.* Five tickets on 1,018,000 steps of the fault bench's healthy trainings, all in one of blocks of a
    single ReLU layer whose units did die under a high learning rate, and mostly came back.

    *Reference.* Lu et al., "Dying ReLU and Initialization: Theory and Numerical Examples" (arXiv 1903.06733), here by what the add
    receives. Zero-initialised branches: Goyal et al., arXiv 1706.02677, section 5.1.
    """

    name = "dead_branch"
    options = DeadBranchOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._newest = History(USUAL)
        self._usual = Register()  # their median while enough of them are known
        self._largest = Register()  # ratio so far
        self._still = Register(0.0)  # windows in a row without a gradient
        self._dead = Register()  # smallest share of dead units so far
        self._episodes = Episodes(
            self.name, runbook="dead-branch", lasts=self.tuned.everywhere.windows, over="the branches were back"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        self._newest.arrange(sites)
        for each in (self._usual, self._largest, self._still, self._dead):
            each.arrange(sites)
        ratio, units, gradient = (window.median(name) for name in ("branch_skip_ratio", "dead_unit_ratio", "gradient_norm"))
        limit = self.tuned.column("ratio", sites)
        if np.isnan(ratio).any():  # a sample whose branch is 0 counts as dropped: there is no ratio where all are
            samples, kept = window.counts("samples").sum(axis=0), window.counts("kept").sum(axis=0)
            ratio = np.where((samples > 0) & (kept == 0), 0.0, ratio)
        with np.errstate(invalid="ignore"):
            low = ratio <= limit
            idle = (units >= self.tuned.column("units", sites)) & (self._dead.values <= ALIVE)
        self._largest.values = np.fmax(self._largest.values, ratio)
        self._dead.values = np.fmin(self._dead.values, units)
        self._still.values = np.where(low & (gradient == 0), self._still.values + 1, 0.0)
        fell, never = np.zeros(len(sites), bool), np.zeros(len(sites), bool)
        usual = self._usual.values
        if low.any():
            newest = self._newest.median(LEAST)
            usual = self._usual.values = np.where(np.isnan(newest), usual, newest)
            with np.errstate(invalid="ignore"):
                fell = low & (usual >= limit * self.tuned.column("fall", sites))
                unborn = (self._largest.values <= limit) & (self._still.values >= self.tuned.column("start", sites))
            never = unborn & window.in_model(gradient > 0) if unborn.any() else unborn
        bad = (fell | idle | never) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            page = bool(fell[lead]) and self._episodes.windows(lead) >= self.tuned.at(site.name, "page")
            others = with_others(all_)
            evidence = {"branch_skip_ratio": ratio[lead], "usual": usual[lead], "dead_unit_ratio": units[lead]}
            expected, seen = f"a branch/skip ratio near {number(usual[lead])}, as over the windows before", number(ratio[lead])
            first = f"The branch of {site.name} has added nothing since step {since}{others}"
            if never[lead]:
                evidence["since"] = max(0, window.step + 1 - WINDOW * int(self._still.values[lead]))
                first = f"The branch of {site.name} has added nothing since the start and its gradient is 0{others}"
                expected, seen = "a zero-initialised branch that grows, as a gradient comes to it", "a ratio and a gradient of 0"
            elif idle[lead] and not fell[lead]:
                first = f"The units of {site.name} have been dead since step {since}: what its branch adds is constant{others}"
                expected, seen = "units that are active for some inputs, as before", f"{units[lead]:.0%} that are active for none"
            return Account("page" if page else "ticket", first, expected, seen, confidence=0.95, evidence=evidence)

        unknown = np.isnan(ratio) & np.isnan(units)
        events = list(self._episodes.take(window, bad, tell, unknown=unknown))
        self._newest.push(np.where(low, np.nan, ratio))
        return events
