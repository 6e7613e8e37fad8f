"""The loss leaves its level upwards and does not come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, inf, isfinite, log, sqrt
from statistics import median
from typing import Any

from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.noise import deviation
from resmon.detectors.options import Options, Tuned
from resmon.records import RUN_ENDED, Finding, ResidualSite, ScalarRecord, StepRecord
from resmon.scores.gaps import role

WINDOW = 16  # logged losses that make a level: their median, which spikes do not move
LASTS = 3  # windows in a row that are above, and the last of them not on its way back
BEGIN = 5  # losses whose median is where the run began
REMEMBERED = 32  # windows from which the noise is told
WANDERING = 4.0  # of a level's usual moves, times the root of how many there were since the best (16 at most)
PART = 0.1  # of what had been gained until the best, that a rise gives back
RATE = 1.5  # a learning rate so many times that of the best level explains that the best is lost, but not
BEGINNING = 0.8  # that the loss is back at so much of where the run began
ALL, LEARNT = 0.9, 3.0  # of what had been gained, where the best was so many times below the beginning, is all of it
ENOUGH, SUDDEN_ENOUGH = 2.0, 10.0  # times the level at which the run began are a divergence without regard to noise
SUDDEN = 8  # losses in a row that are ten times as large need no window
SUDDEN_NOISES = 10.0
LEAST_LOSS = 1e-12  # that a loss of 0, to which one in 16 bits underflows, counts as


class DivergenceOptions(Options):
    factor: float = Field(default=1.5, gt=1, description="times its best level that a loss must be")
    noises: float = Field(default=6.0, ge=0, description="times the noise of single losses that a rise must be")
    windows: int = Field(
        default=LASTS, ge=1, le=REMEMBERED, description="levels of 16 losses in a row that must be above the limit"
    )
    sudden: float = Field(default=10.0, gt=1, description="times its best level that a loss must be to need no window")


@dataclass(frozen=True, slots=True)
class _Level:
    """One window."""

    value: float  # the loss, or its logarithm
    noise: float
    step: int  # the first of it
    rate: float | None


class Divergence(Detector):
    """The logged training loss against its own best level.

    *Formula.* y = log(loss), of a loss of 0 as of 1e-12; from the first negative loss on, the loss itself. A level is the median
    of 16 logged losses. It is to be compared with the best so far:

        limit = best + rise
        rise = max(log 1.5, 6 noises of single losses, 4 noises of levels x sqrt(windows since the best, 16 at most))

    Noises are robust standard deviations: of the losses in a window, and of the differences between windows, over 32 windows. Where
    the learning rate is now more than 1.5 times what it was at the best (a warm-up, a restart of a schedule), that explains a part:

        limit = max(best + 2 rise, 0.8 of the level at which the run began)

    Twice the level at which the run began is above every limit: near zero a loss is so noisy that hardly anything is a rise. So is,
    where no learning rate explains it, a level at which nine tenths of what had been gained are lost, if the best was three times
    below the beginning.

    *Meaning.* `loss_divergence` (page): three levels in a row are above the limit, and the last is not on its way back. Or, at
    once: 8 losses in a row are above a limit with log 10 and 10 noises in place of log 1.5 and 6, or above ten times the beginning.
    Either way a tenth of everything that had been gained since the beginning is lost: near 0 a loss may rise tenfold and harm
    nothing. Closed once a level is half the way back. NaN and infinite losses are nonfinite's to judge and passed over here. Of
    several names for the training loss (`loss`, `train_loss`) the first that comes is followed.

    *Delay.* 33 to 64 logged losses, 8 where it is sudden.

    *Expected false alarms.* None on 300 synthetic healthy runs of 800 losses (falling power laws with normal, heavy-tailed and
    correlated noise, spikes, warm-up, restarts; tests/detectors/test_divergence.py). A loss that has no level to be compared
    with, as in adversarial and reinforcement learning, may be called diverged; so may a change of the data or of the objective.

    *Reference.* Levels by medians and rises by their own noise: a robust form of Page's one-sided test, as in river's PageHinkley.
    """

    name = "loss_divergence"
    options = DivergenceOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._name: str | None = None
        self._rate: float | None = None
        self._linear = False
        self._begin()

    @property
    def _options(self) -> DivergenceOptions:
        options: DivergenceOptions = self.tuned.everywhere
        return options

    def _begin(self) -> None:
        self._values: list[float] = []  # of the window that is open
        self._steps: list[int] = []
        self._newest: deque[tuple[int, float]] = deque(maxlen=SUDDEN)
        self._levels: deque[_Level] = deque(maxlen=REMEMBERED + self._options.windows)
        self._count = 0
        self._first: _Level | None = None
        self._best: _Level | None = None
        self._best_count = 0
        self._above = 0  # losses in a row that are far above
        self._finding: Finding | None = None
        self._limit = inf  # below it the finding is over
        self._rises: dict[tuple[float, float, float], float] = {}  # what `_rise` says until the next level

    def step(self, record: StepRecord, sites: Sequence[ResidualSite]) -> Iterable[Finding]:  # noqa: ARG002, a Detector's
        self._rate = record.run_value("learning_rate")
        return ()

    def scalars(self, record: ScalarRecord) -> Iterable[Finding]:
        events: list[Finding] = []
        for name, value in record.values.items():
            if self._name is None and role(name) == ("loss", False):
                self._name = name
            if name == self._name and isfinite(value):
                events += self._take(record.step, record.time, value)
        return events

    def end(self, step: int, time: float) -> Iterable[Finding]:
        finding, self._finding = self._finding, None
        return [] if finding is None else [finding.closed(step, time, RUN_ENDED)]

    def _take(self, step: int, time: float, loss: float) -> Iterator[Finding]:
        if loss < 0 and not self._linear:
            yield from self.end(step, time)
            self._linear = True
            self._begin()
        value = loss if self._linear else log(max(loss, LEAST_LOSS))
        self._values.append(value)
        self._steps.append(step)
        self._newest.append((step, value))
        if self._finding is None and self._best is not None:
            rise = self._rise(log(self._options.sudden), SUDDEN_NOISES, 2 * WANDERING)
            limit = self._above_which(rise, SUDDEN_ENOUGH)
            self._above = self._above + 1 if value > limit else 0
            if self._above >= SUDDEN and self._loses(now := median(each for _, each in self._newest)):
                yield self._opened(step, time, now, self._newest[0][0], limit)
        if len(self._values) == WINDOW:
            level = _Level(median(self._values), deviation(self._values), self._steps[0], self._rate)
            if self._first is None:  # in which a loss may have fallen far already
                self._first = replace(level, value=max(level.value, median(self._values[:BEGIN])))
            self._values, self._steps = [], []
            yield from self._settle(level, step, time)

    def _settle(self, level: _Level, step: int, time: float) -> Iterator[Finding]:
        self._levels.append(level)
        self._count += 1
        self._rises.clear()
        if self._finding is not None:
            if level.value < self._limit:
                yield self._finding.closed(step, time, "the loss came back")
                self._finding = None
        elif self._best is not None and self._count > self._options.windows:
            rise = self._rise(log(self._options.factor), self._options.noises, WANDERING)
            newest = list(self._levels)[-self._options.windows :]
            lowest, limit = min(each.value for each in newest), min(self._above_which(rise, ENOUGH), self._where_all_is_lost())
            if lowest > limit and level.value > newest[0].value - rise / 4 and self._loses(lowest):
                yield self._opened(step, time, level.value, newest[0].step, limit)
        if self._best is None or level.value < self._best.value:
            self._best, self._best_count = level, self._count
            self._rises.clear()

    def _above_which(self, rise: float, most: float) -> float:
        """What a level or loss must be above; `most` times where the run began is enough, however noisy it was at its best."""
        assert self._best is not None  # noqa: S101, its callers asked
        assert self._first is not None  # noqa: S101, likewise
        rate, then, best, first = self._rate, self._best.rate, self._best.value, self._first.value
        enough = max(best + rise, first + (most - 1) * abs(first)) if self._linear else first + log(most)
        if rate is None or then is None or rate <= RATE * then:
            return min(best + rise, enough)
        return min(max(best + 2 * rise, first - (1 - BEGINNING) * abs(first) if self._linear else first + log(BEGINNING)), enough)

    def _where_all_is_lost(self) -> float:
        """The level at which all that had been learnt is lost, and no noise of single losses, large near 0, tells otherwise."""
        assert self._best is not None  # noqa: S101, its callers asked
        assert self._first is not None  # noqa: S101, likewise
        rate, then, best, first = self._rate, self._best.rate, self._best.value, self._first.value
        risen = rate is not None and then is not None and rate > RATE * then
        if self._linear or risen or first - best < log(LEARNT):
            return inf
        return log(self._loss(best) + ALL * (self._loss(first) - self._loss(best)))

    def _rise(self, factor: float, noises: float, wandering: float) -> float:
        """What a level or loss must be above the reference; the newest windows, which are judged, have no part in the noise."""
        assert self._best is not None  # noqa: S101, its callers asked
        known = self._rises.get((factor, noises, wandering))
        if known is not None:
            return known
        before = list(self._levels)[: -self._options.windows] or list(self._levels)
        single = median(each.noise for each in before)
        moves = deviation([after.value - level.value for level, after in pairwise(before)])
        since = min(16, self._count + 1 - self._best_count)
        least = factor if not self._linear else (exp(factor) - 1) * abs(self._best.value)
        rise = self._rises[factor, noises, wandering] = max(least, noises * single, wandering * moves * sqrt(since))
        return rise

    def _loses(self, value: float) -> bool:
        """Whether a tenth of what had been gained is lost again."""
        assert self._best is not None  # noqa: S101, its callers asked
        assert self._first is not None  # noqa: S101, likewise
        first, best, now = (self._loss(each) for each in (self._first.value, self._best.value, value))
        return now - best >= PART * (first - best)

    def _loss(self, value: float) -> float:
        return value if self._linear else exp(min(value, 700.0))

    def _opened(self, step: int, time: float, value: float, since: int, limit: float) -> Finding:
        assert self._best is not None  # noqa: S101, its callers asked
        assert self._first is not None  # noqa: S101, likewise
        self._limit = (self._best.value + limit) / 2
        best, now = self._loss(self._best.value), self._loss(value)
        then, rate = self._best.rate, self._rate
        raised = ""
        if then is not None and rate is not None and rate > RATE * then:
            raised = f", after the learning rate had risen from {then:.3g} to {rate:.3g}"
        level = f"{best:.4g} (from step {self._best.step} on)"
        said = f"The loss left its level of {level} at about step {since} and was {now:.4g} at step {step}"
        self._finding = Finding.opened(
            "loss_divergence",
            "page",
            step,
            time,
            said,
            raised,
            expected=f"a loss near {best:.4g}",
            seen=f"{now:.4g}",
            confidence=0.8,
            runbook="loss-divergence",
            evidence={
                "best": best,
                "best_step": self._best.step,
                "level": now,
                "since": since,
                "began_at": self._loss(self._first.value),
                "learning_rate": rate,
                "learning_rate_at_best": then,
            },
        )
        return self._finding
