"""A loss that no longer falls though there are gradients to follow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import exp, inf, log, nan
from statistics import median
from typing import Any, ClassVar

from pydantic import Field

from resmon.detectors.detector import Detector, Weight
from resmon.detectors.episode import Account, Episodes
from resmon.detectors.loss_level import LossLevel
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window
from resmon.detectors.window import median as middle
from resmon.quantities import number
from resmon.records import Finding

SMOOTH = 8  # windows of a level


class PlateauOptions(Options):
    enabled: bool = Field(default=False, description="whether it says anything")
    windows: int = Field(default=128, ge=SMOOTH, description="windows of 16 steps without progress until a ticket")
    progress: float = Field(default=0.01, gt=0, lt=1, description="part of the loss that is progress")
    left: float = Field(default=0.05, ge=0, description="part of where the loss began below which all is learnt")
    gradient: float = Field(default=0.1, ge=0, description="part of the largest gradient norm so far that it must be")


class Plateau(Detector):
    """The training loss against its own best level. Off by default: most healthy runs end in a plateau.

    *Formula.* Over windows of 16 steps, the median of the 8 newest levels of the loss against the lowest of these so far. Bad:
    for 128 windows (2,048 steps) it has not been 1 % below the lowest, the loss is above a twentieth of where it began, and the
    gradient norm is at least a tenth of the largest of all windows before.

    *Meaning.* `plateau` (ticket): the steps are as long as ever and lead nowhere: the learning rate is too large, or all that can
    be learnt is. Closed at the next progress. A symptom: where a cause is told of at the time, it stands in that finding.

    *Trade-off.* Batches differ, and a level of 128 steps wanders by some percent: smaller `progress` takes such luck for progress.
    *Delay.* By definition.

    *Expected false alarms.* 15 of the fault bench's 23 healthy trainings, which are run until long after they have learnt all they
    can. That is why it is off.

    *Reference.* Patience as in Prechelt, Early Stopping - but when?, 1998.
    """

    name = "plateau"
    options = PlateauOptions
    weight: ClassVar[Weight] = "symptom"

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._loss = LossLevel()
        self._levels: deque[float] = deque(maxlen=SMOOTH)
        self._best = inf
        self._best_step = 0
        self._waited = 0  # windows since the best
        self._largest = 0.0  # gradient norm of a window so far
        self._episodes = Episodes(self.name, "oscillation", lasts=1, calm=1, over="the loss made progress, or all was learnt")

    def window(self, window: Window) -> Iterable[Finding]:
        options = self.tuned.everywhere
        self._loss.take(window)
        square = float(middle(window.run("gradient_square")[:, None])[0])
        norm = square**0.5 if square == square else nan
        large = not norm < options.gradient * self._largest  # where it is unknown, too
        self._largest = max(self._largest, norm)
        if self._loss.now != self._loss.now:
            return []
        self._levels.append(self._loss.now)
        level = median(self._levels)
        if len(self._levels) == SMOOTH and level < self._best + log(1 - options.progress):
            self._best, self._best_step, self._waited = level, window.step, 0
        else:
            self._waited += 1
        bad = self._waited >= options.windows and self._best < inf and large and self._loss.left > options.left

        def tell() -> Account:
            return Account(
                "ticket",
                f"The loss has made no progress since step {self._best_step}, when it was {number(exp(self._best))}",
                expected=f"a fall by {number(100 * options.progress)} % in {16 * options.windows} steps",
                seen=f"{number(exp(level))}, with a gradient norm of {number(norm)}" if norm == norm else number(exp(level)),
                confidence=0.6,
                evidence={"best": exp(self._best), "best_step": self._best_step, "loss": exp(level), "gradient_norm": norm},
            )

        return list(self._episodes.run(window, bad, tell))
