"""A residual stream that grows without bound, or that comes near the end of its dtype."""

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

RECENT = 8  # windows over which it must still grow
STILL = 1.1  # times, in these
FALLS = 0.5  # doublings of headroom that are lost against the usual
FIRST = 16  # windows before the first reference


class GrowingResidualOptions(Options):
    factor: float = Field(default=8.0, gt=1, description="times the reference that the stream's RMS must have grown to")
    early: float = Field(default=4.0, gt=1, description="times as much that it must have grown in the first 64 windows")
    exponent: float = Field(default=2.0, gt=0, description="growth as a power of the run's length from which on it has no bound")
    headroom: float = Field(
        default=2.0, gt=0, description="doublings that are left of a 16-bit dtype at or below which it runs out"
    )
    last: float = Field(default=1.0, gt=0, description="doublings that are left from which on it is a page")
    windows: int = Field(default=4, ge=1, description="windows of 16 steps in a row until a ticket")
    page: int = Field(default=24, ge=1, description="windows of 16 steps in a row of growth until it is a page")


class GrowingResidual(Detector):
    """The stream's root mean square over the run, and how often the largest number could still be doubled.

    *Formula.* Over windows of 16 steps, y is the median of output_rms of a block and n the number of windows so far. The reference
    (y_0, n_0) is that at the power of 2 before the last one, so that n / n_0 is between 2 and 4. Bad, one of:

        y >= 8 y_0 and y >= (n / n_0)^2 y_0 and y >= 1.1 times that of 8 windows ago and more than ever   (it grows)
        headroom <= 2 doublings, and 0.5 less than its median over the last 64 windows or less than 1     (it runs out)

    In the first 64 windows 32 y_0 in place of 8 y_0.

    *Meaning.* `growing_residual` (ticket; a page after 24 windows of growth, or at 1 doubling of headroom): a stream grows with
    training, at most in proportion to the steps where every update goes the same way, as the root of them where it wanders, less
    under weight decay. Growth faster than the square of the run's length is none of these: a feedback of weights and gradients, a
    learning rate that is too large or rises. The reference moves with the run, so early learning, in which small weights find
    their size, has no part in it. Growth over depth is healthy (GPT-2-XL's stream grows 4.5 % a layer). float16 ends at 65,504.

    *Trade-off.* Slow growth, as of a stream without weight decay over 100,000 steps, is silent until its dtype runs out. A jump
    to a new level that is held is none: straying_block, change and collapsed_skip see it.

    *Delay.* For growth by 1 % a step about 350 steps, of which 208 are the growth to a factor of 8.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings; the largest growth over the whole of
    one was 5.1 times over 23 times its length, an exponent of 0.5.

    *Reference.* Heimersheim and Turner, "Residual stream norms grow exponentially over the forward pass", 2023; growth of weights
    with steps: Merrill et al., "Effects of Parameter Norm Growth During Transformer Training", arXiv 2010.09697.
    """

    name = "growing_residual"
    options = GrowingResidualOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._seen = 0  # windows
        self._newest = History(RECENT)
        self._largest = Register()  # so far
        self._reference = Register()
        self._reference_at = 0
        self._next = Register()  # the reference that is taken next
        self._next_at = 0
        self._room = History(64)
        self._episodes = Episodes(
            self.name, runbook="growing-residual", lasts=self.tuned.everywhere.windows, over="the stream had ceased to grow"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        for each in (self._newest, self._largest, self._reference, self._next, self._room):
            each.arrange(sites)
        y, room = window.median("output_rms"), window.median("headroom")
        self._seen += 1
        grows, factor, power = np.zeros(len(sites), bool), np.full(len(sites), np.nan), np.nan
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self._reference_at:
                factor = y / self._reference.values
                power = np.log(self._seen / self._reference_at)
                least = self.tuned.column("factor", sites)
                least = least * self.tuned.column("early", sites) if self._seen <= 64 else least
                grows = (factor >= least) & (factor >= np.exp(self.tuned.column("exponent", sites) * power))
                if grows.any():
                    ago = self._newest.newest(RECENT)[0]
                    grows &= (y >= STILL * ago) & (y >= self._largest.values)
            runs_out = np.zeros(len(sites), bool)
            if not np.isnan(room).all():
                low = room <= self.tuned.column("headroom", sites)
                if low.any():
                    runs_out = low & ((room <= self._room.median(8) - FALLS) | (room <= self.tuned.column("last", sites)))
                self._room.push(np.where(low, np.nan, room))
        bad = (grows | runs_out) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            others = with_others(all_)
            if runs_out[lead]:
                page = room[lead] <= self.tuned.at(site.name, "last")
                return Account(
                    "page" if page else "ticket",
                    f"The largest numbers of {site.name} have come near the end of their dtype since step {since}{others}",
                    expected=f"more than {number(self.tuned.at(site.name, 'headroom'))} doublings of headroom",
                    seen=f"{number(room[lead])}",
                    confidence=0.9,
                    evidence={"headroom": room[lead], "output_rms": y[lead]},
                )
            page = self._episodes.windows(lead) >= self.tuned.at(site.name, "page")
            then = max(0, window.step + 1 - (self._seen - self._reference_at) * WINDOW)
            return Account(
                "page" if page else "ticket",
                f"The residual stream at {site.name} grows without bound{others}: {number(factor[lead])} times since step {then}",
                expected=f"a stream that grows with the run at most, here by {number(np.exp(power))} times",
                seen=f"{number(factor[lead])} times, to an RMS of {number(y[lead])}",
                confidence=0.9,
                evidence={"output_rms": y[lead], "reference": self._reference.values[lead], "factor": factor[lead]},
            )

        events = list(self._episodes.take(window, bad, tell, unknown=np.isnan(y)))
        self._newest.push(y)
        self._largest.values = np.fmax(self._largest.values, y)
        if self._seen >= FIRST and self._seen & (self._seen - 1) == 0:  # a power of 2
            self._reference.values, self._reference_at = self._next.values, self._next_at
            self._next.values, self._next_at = y, self._seen
        return events
