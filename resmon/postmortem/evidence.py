"""What speaks for a cause and against it, and the scales that it is put on.

Weights are decades of likelihood, as in Good's weight of evidence (1950): +1 says that what was seen is ten times as likely where
this is the cause as where it is not, -1 the reverse; those of one cause add up. They are judgements, not measured frequencies:
the order suggests what to look at first, and the sum is no probability. A cause of which nothing could be seen has no sum: it
cannot be told.

A cause comes before its effect. Where numbers became NaN or infinite, what stands in the flight from that very step on is no
evidence of why; nor, where a batch out of all proportion came before, what followed from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from resmon.detectors.noise import spread
from resmon.postmortem.case import Case
from resmon.postmortem.departures import CLEAR, Departure, leading_up
from resmon.records import Floats, Incident

PROVEN, STRONG, FAIR, WEAK = 3.0, 2.0, 1.0, 0.5

# The verdict of a sum of weights, from the highest.
VERDICTS = ((3.0, "very likely"), (1.5, "likely"), (0.5, "possible"), (-0.5, "not indicated"), (-math.inf, "unlikely"))
CANNOT_TELL = "cannot tell"

RECENT = 8  # steps up to the trouble
STRETCHES = 8  # of as many steps make what is usual; where there are fewer steps than that takes, the newest are fewer too
USUAL = 48  # steps that make what is usual of the stream
# A batch is out of all proportion where the stream that enters the first block is so many times as large from one step to the next,
# while gradients and learning rate of the step before were within these factors of what was usual: the weights moved no further
# than ever.
JUMP, CALM_GRADIENT, CALM_RATE = 8.0, 3.0, 1.5


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that was seen, and how much it says."""

    weight: float
    text: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A cause as this flight shows it."""

    key: str
    title: str
    meaning: str
    evidence: tuple[Evidence, ...]  # the heaviest first
    unknown: tuple[str, ...]  # what would have told, and is not there
    runbook: str  # its name; "" where there is none
    actions: tuple[str, ...]

    @property
    def score(self) -> float | None:
        return sum(each.weight for each in self.evidence) if self.evidence else None

    @property
    def verdict(self) -> str:
        score = self.score
        return CANNOT_TELL if score is None else next(word for least, word in VERDICTS if score >= least)

    @property
    def is_indicated(self) -> bool:
        return self.score is not None and self.score >= WEAK

    @property
    def supporting(self) -> tuple[Evidence, ...]:
        return tuple(each for each in self.evidence if each.weight > 0)


@dataclass(frozen=True, slots=True)
class Jump:
    """A batch out of all proportion."""

    step: int
    usual: float
    seen: float  # root mean square of the stream that enters the first block


class Course(NamedTuple):
    """Where a value of the run went, like compared with like: what its newest steps reached, and what as many steps reached before.

    The largest of some steps of mini-batches is well above their median, and the more so the fewer examples still have a loss, as
    near convergence; so it is held against the largest of other stretches, in units of how much these differ from one to the next.
    """

    usual: float  # the median of what stretches of the window's first half reached
    recent: float  # what the newest steps reached
    noises: float  # by how many robust standard deviations of stretches that is higher

    @property
    def growth(self) -> float:
        """By which factor it grew; infinite from nothing, or where a ratio says nothing, as of a loss below 0."""
        return self.recent / self.usual if self.usual > 0 else 1.0 if self.recent <= self.usual else math.inf

    def grew(self, factor: float) -> bool:
        """By so much, and by more than it varies."""
        return self.growth >= factor and self.noises > CLEAR


class Scales:
    """What a cause's function puts its evidence on."""

    def __init__(self, case: Case, signs: Sequence[Departure]) -> None:
        self.case = case
        self.leading = leading_up(signs, self.kinds, case.trouble)
        self.evidence: list[Evidence] = []
        self.unknown: list[str] = []

    def add(self, weight: float, text: str) -> None:
        self.evidence.append(Evidence(weight, text))

    def cannot_see(self, text: str) -> None:
        self.unknown.append(text)

    @property
    def kinds(self) -> set[str]:
        """The kinds of the incidents, and how it ended."""
        return {each.kind for each in self.case.incidents} | {self.case.outcome}

    @property
    def nonfinite(self) -> bool:
        return "nonfinite" in self.kinds or any(finding.kind.startswith("nonfinite") for finding in self.case.findings)

    @cached_property
    def origin(self) -> Incident | None:
        """The first incident of values that are not finite."""
        named = [each for each in self.case.incidents if each.kind == "nonfinite"]
        return min(named, key=lambda each: math.inf if each.step is None else each.step, default=None)

    @cached_property
    def before(self) -> int:
        """How many of the window's steps can hold a cause: those before numbers became NaN or infinite, and before the jump."""
        steps, bounds = self.case.window.steps, [len(self.case.window.steps)]
        if self.nonfinite and self.case.trouble is not None:
            bounds.append(int(np.searchsorted(steps, self.case.trouble)))
        if self.jump is not None:
            bounds.append(int(np.searchsorted(steps, self.jump.step)))
        return min(bounds)

    @cached_property
    def jump(self) -> Jump | None:
        """The batch out of all proportion that came before the trouble."""
        stream = self.case.window.blocks.get("skip_rms")
        if stream is None or not stream.shape[1] or self.case.trouble is None:
            return None
        steps, entering = self.case.window.steps, stream[:, 0]
        first = min([self.case.trouble - RECENT, *(sign.step for sign in self.leading[:1])])
        for at in range(max(4, int(np.searchsorted(steps, first))), len(steps)):
            usual = _median(entering[max(0, at - USUAL) : at])
            largest = max(usual, float(entering[at - 1]))
            if entering[at] < math.inf and entering[at] > JUMP * largest > 0 and self._was_calm(at):
                return Jump(int(steps[at]), usual, float(entering[at]))
        return None

    def _was_calm(self, at: int) -> bool:
        run = self.case.window.run
        for name, factor in (("gradient_norm", CALM_GRADIENT), ("learning_rate", CALM_RATE)):
            values = run.get(name)
            if values is not None and values[at - 1] > factor * _median(values[max(0, at - USUAL) : at]):
                return False
        return True

    def of_run(self, name: str) -> Course | None:
        """A value's course up to what can hold a cause; None if unknown."""
        values = self.case.window.run.get(name)
        if values is None:
            return None
        values = values[: self.before]
        values = values[~np.isnan(values)]
        length = min(RECENT, max(1, len(values) // (2 * STRETCHES)))
        first = values[: len(values) // 2]
        first = first[np.isfinite(first)]
        if len(values) < 4 or not len(first):
            return None
        first = first[len(first) % length if len(first) > length else 0 :]
        reached = first.reshape(-1, min(length, len(first))).max(axis=1)
        usual, recent = float(np.median(reached)), float(np.max(values[-length:]))
        levels = np.r_[reached, usual, recent]
        if (levels > 0).all():
            levels = np.log(levels)
        risen, noise = float(levels[-1] - levels[-2]), spread(levels[:-2].tolist())
        return Course(usual, recent, risen / noise if noise else math.copysign(math.inf, risen) if risen else 0.0)

    def of_blocks(self, statistic: str) -> Floats | None:
        """Of the newest steps the median of each block, in depth order; None where none is known."""
        values = self.case.window.blocks.get(statistic)
        if values is None or not self.before:
            return None
        values = values[: self.before][-RECENT:]
        newest = np.where(np.isfinite(values), values, np.nan)
        there = np.isfinite(newest).any(axis=0)
        medians = np.full(values.shape[1], np.nan)
        medians[there] = np.nanmedian(newest[:, there], axis=0)
        return medians if there.any() else None

    def departed(self, *statistics: str) -> list[Departure]:
        """The signs of these, those that are no effects."""
        end = None if self.before == len(self.case.window.steps) else self.case.window.steps[self.before]
        return [sign for sign in self.leading if sign.statistic in statistics and (end is None or sign.step < end)]

    @cached_property
    def grown(self) -> float:
        """By how much the run's gradient or a block's output had grown before: 1 where neither had."""
        factors = [1.0, *(sign.factor for sign in self.departed("output_rms"))]
        if (gradient := self.of_run("gradient_norm")) is not None and gradient.grew(1.0):
            factors.append(gradient.growth)
        return max(factors)


def said(incident: Incident) -> str:
    """What an incident says, as a sentence among others."""
    text = incident.summary.rstrip(".")
    return f"{text.removeprefix(f'Step {incident.step}: ')}."


def _median(values: Floats) -> float:
    there = values[np.isfinite(values)]
    return float(np.median(there)) if len(there) else math.nan
