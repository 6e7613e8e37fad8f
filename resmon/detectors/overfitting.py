"""Validation gets worse while training gets better."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.noise import spread
from resmon.detectors.options import Options, Tuned
from resmon.records import Finding, ResidualSite, ScalarRecord, StepRecord
from resmon.scores.directions import direction
from resmon.scores.gaps import Gap, Gaps, role

LEAST = 8  # validations before anything is said
WORSE = 4  # of the newest validations, all worse than the best by the rise
SHARE = 0.02  # of the best score itself, that a rise takes
REMEMBERED = 33  # validations from which the noise is told


class OverfittingOptions(Options):
    validations: int = Field(default=LEAST, ge=3, description="validations before anything is said")
    worse: int = Field(default=WORSE, ge=1, le=REMEMBERED - 1, description="of the newest validations, that must all be worse")
    noises: float = Field(default=4.0, ge=0, description="times the noise of validation that a rise must be")
    part: float = Field(default=0.15, ge=0, description="of what validation had gained until its best, that a rise must take back")


@dataclass(slots=True)
class _Score:
    """One score's validations, turned so that lower is better; the newest is open until training goes on."""

    sign: float
    validations: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    trainings: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    steps: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    count: int = 0
    batches: int = 0  # values that the newest validation is the mean of
    trained: bool = True  # since the newest validation
    first: float | None = None
    best: float = float("inf")
    best_step: int = 0
    best_count: int = 0
    best_training: float = 0.0
    finding: Finding | None = None
    limit: float = 0.0  # below it the finding is over


class Overfitting(Detector):
    """Validation against training, for every score that is logged for both (scores/gaps.py pairs them) and has a better direction.

    *Meaning.* `overfitting` (ticket): the last 4 validations were all worse than the best one by more than

        rise = max(4 noises of validation, 0.15 x (first - best), 0.02 x |best|)

    while training went on to get better, by more than 2 of its own noises and 2 % since that best validation. Values are medians of
    3 validations in a row, so that one lucky validation is no best; a noise is the robust spread of the differences of validations
    that follow on each other, over the square root of 2, of the last 33. The rise must be a good part of everything that had been
    gained, so that a plateau that wanders is no overfitting. Nothing is said before 8 validations. Closed once validation has come
    half the rise back. The best validation's step is in the evidence: the checkpoint to go back to is the one from there.

    *Expected false alarms.* On 300 synthetic runs of 100 validations that fall to a plateau (tests/detectors/test_overfitting.py)
    none with independent and with heavy-tailed noise, at most 1 with noise of correlation 0.95. A validation loss that rises by
    over-confidence while the accuracy still gains is found too; a regularisation or data mixture that changes during the run can
    look the same.

    *Reference.* Generalisation loss and its patience: Prechelt, Early Stopping - but when?, 1998 (criteria GL and UP).
    """

    name = "overfitting"
    options = OverfittingOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._gaps = Gaps()
        self._scores: dict[str, _Score] = {}
        self._newest: int | None = None

    def step(self, record: StepRecord, sites: Sequence[ResidualSite]) -> Iterable[Finding]:  # noqa: ARG002, a Detector's
        if self._newest is not None and record.step > self._newest + 1:
            self._gaps.interrupt()
        self._newest = record.step
        return ()

    def scalars(self, record: ScalarRecord) -> Iterable[Finding]:
        events: list[Finding] = []
        for name, value in record.values.items():
            score, is_validation = role(name)
            known = self._scores.get(score)
            if not is_validation and known is not None:
                known.trained = True
            gap = self._gaps.add(record.step, name, value)
            if gap is None:
                continue
            if known is None:
                which = direction(score)
                if which == "neither":
                    continue
                known = self._scores[score] = _Score(1.0 if which == "lower" else -1.0)
            events += self._validated(known, gap, record.time)
        return events

    def end(self, step: int, time: float) -> Iterable[Finding]:
        events = [each.finding.closed(step, time, "the run ended with it") for each in self._scores.values() if each.finding]
        self._scores.clear()
        return events

    def _validated(self, score: _Score, gap: Gap, time: float) -> Iterator[Finding]:
        if not score.trained and score.count:  # another batch of the same validation
            score.batches += 1
            mean = score.validations[-1]
            score.validations[-1] = mean + (score.sign * gap.validation - mean) / score.batches
            return
        if score.count:
            yield from self._judge(score, gap.score, time)  # the one before is whole by now
        score.trained, score.batches = False, 1
        score.count += 1
        score.validations.append(score.sign * gap.validation)
        score.trainings.append(score.sign * gap.training)
        score.steps.append(gap.step)

    def _judge(self, score: _Score, name: str, time: float) -> Iterator[Finding]:
        """Look at the newest validation."""
        if score.count < 3:
            return
        level, training = (median(list(values)[-3:]) for values in (score.validations, score.trainings))
        if score.first is None:
            score.first = level
        if level < score.best:
            score.best, score.best_step, score.best_count, score.best_training = level, score.steps[-2], score.count, training
        step = score.steps[-1]
        if score.finding is not None:
            if level < score.limit:
                yield score.finding.closed(step, time, "validation came back")
                score.finding = None
            return
        noise, training_noise = spread(score.validations), spread(score.trainings)
        options: OverfittingOptions = self.tuned.everywhere
        rise = max(options.noises * noise, options.part * (score.first - score.best), SHARE * abs(score.best))
        gained = score.best_training - training
        since = score.count - score.best_count
        if (
            score.count < options.validations
            or since < options.worse
            or min(list(score.validations)[-options.worse :]) <= score.best + rise
            or gained <= max(2 * training_noise, SHARE * abs(score.best_training))
        ):
            return
        score.limit = score.best + rise / 2
        score.finding = _opened(score, name, time, level, training, noise)
        yield score.finding


def _opened(score: _Score, name: str, time: float, level: float, training: float, noise: float) -> Finding:
    step = score.steps[-1]
    best, now = score.sign * score.best, score.sign * level
    then, trained = score.sign * score.best_training, score.sign * training
    since = score.count - score.best_count
    said = (
        f"Validation {name} has gone from {best:.4g} at step {score.best_step} to {now:.4g} at step {step}, over {since} "
        f"validations, while training went on from {then:.4g} to {trained:.4g}"
    )
    return Finding.opened(
        "overfitting",
        "ticket",
        step,
        time,
        said,
        ": the model learns what it has seen by heart",
        subject=name,
        expected=f"validation near its best, {best:.4g}",
        seen=f"{now:.4g}" + (f", {abs(level - score.best) / noise:.3g} times its noise away" if noise > 0 else ""),
        confidence=0.9,
        runbook="overfitting",
        evidence={
            "score": name,
            "best": best,
            "best_step": score.best_step,
            "validation": now,
            "noise": noise,
            "training_at_best": then,
            "training": trained,
            "validations_since_best": since,
        },
    )
