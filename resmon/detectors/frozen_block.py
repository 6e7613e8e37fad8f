"""A block that learnt and learns no more, while others do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes, with_others
from resmon.detectors.history import Register
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window
from resmon.quantities import number
from resmon.records import Bools, Finding, Ints

_LEVEL = 0.1  # part that a new window has in the level of the gradient that is shown as usual


class FrozenBlockOptions(Options):
    windows: int = Field(default=8, ge=1, description="windows of 16 steps in a row without any gradient until a ticket")
    learnt: int = Field(default=8, ge=1, description="windows in which the block must have had a gradient before")
    page: int = Field(default=0, ge=0, description="windows until it is a page; 0 for never, as a user may freeze blocks")


class FrozenBlock(Detector):
    """Gradients of a block that are exactly 0 or absent, in a block that had some.

    *Formula.* Over a window of 16 steps a block learns if the gradient of its parameters is there and not 0 in any step. Bad: it
    ran, does not learn, has learnt in 8 windows before, and another block of the same model learns in this window.

    *Meaning.* `frozen_block` (ticket): its parameters ask for no gradient any more (`requires_grad` switched off), its branch was
    detached or runs under `no_grad`, what comes to it is 0 (a mask, a factor of 0, an underflow in 16 bits). A block that is frozen
    from the start is the user's choice, and one that all others follow, as at the end of the training or where a loss is 0, is not
    one block's trouble. Both are silent. Where the branch itself is 0 as well the block is dead, and dead_branch tells it. A
    gradient that is there and not finite is not absent. A block that an optimizer has lost still has gradients: it is not seen.

    *Trade-off.* Who thaws or freezes blocks in the course of a training gets a ticket for the frozen ones: switch the detector off,
    for these blocks or for all. It never pages unless `page` is set.

    *Delay.* 128 to 144 steps.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings. There is no chance in it: gradients of
    floating point numbers are not exactly 0 over 128 steps by chance.

    *Reference.* Gradual unfreezing as a user's choice: Howard and Ruder, arXiv 1801.06146.
    """

    name = "frozen_block"
    options = FrozenBlockOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._learnt = Register(0.0)  # windows with a gradient
        self._level = Register()
        self._last = Register()  # step of the last gradient
        self._episodes = Episodes(
            self.name, runbook="frozen-block", lasts=self.tuned.everywhere.windows, over="the blocks learn again"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        for each in (self._learnt, self._level, self._last):
            each.arrange(sites)
        gradient = window.blocks("gradient_norm")
        there: Bools = gradient > 0  # NaN is not
        learns: Bools = np.logical_or.reduce(there, axis=0)
        broken = (window.present("gradient_norm") & np.isnan(gradient)).any(axis=0)
        unknown = np.isnan(window.median("skip_rms")) | broken | ~window.in_model(learns)
        with np.errstate(invalid="ignore"):
            adds = ~(window.median("branch_skip_ratio") <= 0)
        bad = ~learns & ~unknown & adds & (self._learnt.values >= self.tuned.column("learnt", sites)) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], int(self._last.values[lead]) + 1
            after = self.tuned.at(site.name, "page")
            others = with_others(all_)
            absent = not window.present("gradient_norm")[:, lead].any()
            how = "there is none" if absent else "0"
            return Account(
                "page" if after and self._episodes.windows(lead) >= after else "ticket",
                f"Block {site.name} has learnt nothing since step {since}{others}, while other blocks do: "
                + ("no gradient comes to its parameters" if absent else "the gradient of its parameters is exactly 0"),
                expected=f"a gradient norm near {number(self._level.values[lead])}, as before",
                seen=how,
                confidence=0.95,
                evidence={"since": since, "usual": self._level.values[lead], "absent": absent},
            )

        events = list(self._episodes.take(window, bad, tell, unknown=unknown))
        if learns.any():
            self._learnt.values = self._learnt.values + learns
            norm, level = window.median("gradient_norm"), self._level.values
            moved = np.where(np.isnan(level), norm, level + _LEVEL * (norm - level))
            self._level.values = np.where(np.isnan(norm) | (norm == 0), level, moved)
            steps = np.where(there, window.steps[:, None], -1).max(axis=0)
            self._last.values = np.where(learns, steps, self._last.values)
        return events
