"""A learning rate that rises beyond what the run has had, until it harms."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, inf, isfinite, log, nan
from statistics import median
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import RUN, Account, Episodes
from resmon.detectors.history import Usual
from resmon.detectors.loss_level import LossLevel
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window
from resmon.detectors.window import median as middle
from resmon.quantities import number
from resmon.records import Finding

SETTLED = 4  # windows at one rate after which the first rise, the warm-up, is over
ACCEPTED = 64  # windows at one rate after which any rise is over
FALLS = 0.9  # of the highest rate of a rise, below which it is over
SMOOTH = 3  # windows of a level
LEAST_SPREAD = 0.1  # of the log gradient norm


@dataclass(slots=True)
class _Rise:
    since: int  # step
    start: float  # the rate at which it began
    before: float  # the highest that the run had had
    top: float
    first: bool  # the run began with it
    flat: int = 0  # windows that the rate has stood still for


class RisingLearningRateOptions(Options):
    factor: float = Field(default=2.0, gt=1, description="times the highest learning rate before the rise that it must be")
    worse: float = Field(default=1.3, gt=1, description="times its best level that the loss must be (2 x for the gradient norm)")
    noises: float = Field(default=5.0, ge=0, description="times the noise of its levels that the loss must be above its best one")


class RisingLearningRate(Detector):
    """The learning rate against the highest that the run had before, and the loss against its best.

    *Formula.* Over windows of 16 steps, of the largest learning rate of all parameter groups: a rise begins where the rate is above
    that of the window before, and is over once the rate falls below 0.9 of the rise's highest, or has stood still for 64
    windows. Bad: the rate is at least 2 x the highest before the rise, and the three newest levels of the log loss are all above

        best + max(log 1.3, 5 noises)

    where best is the lowest median of three levels, and the noise that of levels of the last 32 windows. Where no loss is logged,
    the log gradient norm must be above its usual by max(log 2, 5 spreads).

    *Meaning.* `rising_learning_rate` (ticket): a schedule with a wrong sign, a multiplier that is applied each step, a warm-up that
    goes on, a rate tuned by hand. A rise that harms nothing is never told of, and the first rise, with which a run begins, is none
    until the rate has fallen or stood still for 4 windows: warm-up, one-cycle and range test. Restarts come back to what
    the run has had. The finding says how often the rate was multiplied and since when.

    *Delay.* From the moment at which the loss turns 3 windows: 33 to 48 steps; a loss that falls on under a larger rate says that
    nothing is wrong yet.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings, with warm-ups, steps, cosines, restarts
    and one-cycle schedules.

    *Reference.* Schedules that are healthy: Loshchilov and Hutter, SGDR, 2017 (arXiv 1608.03983); Smith and Topin,
    Super-convergence, 2019 (arXiv 1708.07120).
    """

    name = "rising_learning_rate"
    options = RisingLearningRateOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._loss = LossLevel()
        self._levels: deque[float] = deque(maxlen=SMOOTH)
        self._best = inf
        self._norm = Usual()
        self._norm.arrange((RUN,))
        self._rate = nan  # of the window before
        self._highest = nan  # of all windows before
        self._rise: _Rise | None = None
        self._episodes = Episodes(self.name, "rising-learning-rate", lasts=1, over="the learning rate or the loss came back")

    def window(self, window: Window) -> Iterable[Finding]:
        self._loss.take(window, keep=self._episodes.any_open)
        self._follow(_rate(window), window.first_step)
        level = _log_norm(window)
        worse, what, expected, seen = self._by_loss() if self._loss.now == self._loss.now else self._by_norm(level)
        rise = self._rise
        bad = worse and rise is not None and not rise.first and self._rate >= self.tuned.everywhere.factor * rise.before

        def tell() -> Account:
            assert rise is not None  # noqa: S101, it is bad
            return Account(
                "ticket",
                f"The learning rate has risen by a factor of {number(self._rate / rise.start)} since step {rise.since}, to "
                f"{number(self._rate)}, beyond the {number(rise.before)} that the run had had, and the {what} became worse",
                expected=expected,
                seen=seen,
                confidence=0.9,
                evidence={
                    "learning_rate": self._rate,
                    "learning_rate_before": rise.before,
                    "rises_since": rise.since,
                    "factor": self._rate / rise.start,
                },
            )

        events = list(self._episodes.run(window, bad, tell))
        self._norm.push(np.array([level]), keep=np.array([bad]))
        return events

    def _by_loss(self) -> tuple[bool, str, str, str]:
        """Whether the loss is worse than it was, and how that is said."""
        self._levels.append(self._loss.now)
        now, best, options = min(self._levels), self._best, self.tuned.everywhere
        self._best = min(self._best, median(self._levels)) if len(self._levels) == SMOOTH else inf
        noise = self._loss.noise if self._loss.noise == self._loss.noise else inf
        worse = isfinite(best) and now > best + max(log(options.worse), options.noises * noise)
        return worse, "loss", f"a loss near {_number(best)}, as at its best", _number(self._loss.now)

    def _by_norm(self, level: float) -> tuple[bool, str, str, str]:
        usual, spread = float(self._norm.level[0]), max(float(self._norm.spread[0]), LEAST_SPREAD)
        worse = level - usual > max(log(2.0), self.tuned.everywhere.noises * spread)
        return worse, "gradient norm", f"a gradient norm near {_number(usual)}", _number(level)

    def _follow(self, rate: float, step: int) -> None:
        """Where the present rise of the learning rate began."""
        if not rate > 0:  # unknown, or a schedule's zero
            return
        before, self._rate = self._rate, rate
        if before != before:  # the run's first
            self._rise, self._highest = _Rise(step, rate, rate, rate, first=True), rate
            return
        if self._rise is not None:
            self._rise.top = max(self._rise.top, rate)
            self._rise.flat = self._rise.flat + 1 if rate == before else 0
            if rate < FALLS * self._rise.top or self._rise.flat >= (SETTLED if self._rise.first else ACCEPTED):
                self._rise = None
        elif rate > before * (1 + 1e-6):
            self._rise = _Rise(step, before, self._highest, rate, first=False)
        self._highest = max(self._highest, rate)


def _rate(window: Window) -> float:
    """The newest learning rate, the largest of all parameter groups."""
    rates = np.append(window.groups("learning_rate")[-1], window.run("learning_rate")[-1])
    return float(np.fmax.reduce(rates))


def _log_norm(window: Window) -> float:
    square = float(middle(window.run("gradient_square")[:, None], (len(window) + 1) // 2)[0])
    return log(square) / 2 if square > 0 else nan


def _number(logarithm: float) -> str:
    return number(exp(min(logarithm, 700.0)))
