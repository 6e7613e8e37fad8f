"""The gap between training and validation scores: how much better the model is on what it has seen.

Scores are paired by their names. A word that stands before or behind the rest, separated by `_`, `/`, `.`, `:`, `-` or a blank,
says what was scored: `val`, `valid`, `validation`, `eval`, `evaluation`, `dev` on one side, `train`, `training` on the other; a
name without such a word is of training. So `val_loss`, `valid/loss`, `eval.loss` and `loss/validation` are validation of `loss`,
for which the training values are those logged as `loss`, `train_loss` or `loss/train`. Upper and lower case are alike.

    gap = newest validation value - mean of the training values logged since the validation before

Validation values that follow on each other without a training value between them (of several batches, say) are one validation.
NaN and infinite values count as not logged. For a loss a growing gap is overfitting; for an accuracy, a falling one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_VALIDATION = frozenset({"val", "valid", "validation", "eval", "evaluation", "dev"})
_TRAINING = frozenset({"train", "training"})
_SEPARATORS = r"[_/.:\-\s]+"
_FIRST = re.compile(rf"([^\W_]+){_SEPARATORS}(.+)", re.DOTALL)
_LAST = re.compile(rf"(.+?){_SEPARATORS}([^\W_]+)", re.DOTALL)


def role(name: str) -> tuple[str, bool]:
    """The score that a logged name is of, and whether it is of validation."""
    name = name.lower()
    for match, word, rest in ((_FIRST.fullmatch(name), 1, 2), (_LAST.fullmatch(name), 2, 1)):
        if match and match[word] in _VALIDATION | _TRAINING:
            return match[rest], match[word] in _VALIDATION
    return name, False


@dataclass(frozen=True, slots=True)
class Gap:
    """One validation of one score, and the training before it."""

    step: int
    score: str
    training: float
    validation: float

    @property
    def gap(self) -> float:
        return self.validation - self.training


@dataclass(slots=True)
class _Stretch:
    """The training values of one score between two validations."""

    mean: float = 0.0
    count: int = 0
    validated: bool = False  # the next training value begins another stretch
    whole: bool = True  # no step in it was lost


class Gaps:
    """Takes one rank's scores in the order of their steps; `newest` has the newest gap of each score that has one."""

    def __init__(self) -> None:
        self.newest: dict[str, Gap] = {}
        self._stretches: dict[str, _Stretch] = {}
        self._roles: dict[str, tuple[str, bool]] = {}

    def add(self, step: int, name: str, value: float) -> Gap | None:
        """Take a logged value; the gap, where it makes a new one."""
        known = self._roles.get(name)
        if known is None:
            known = self._roles[name] = role(name)
        score, is_validation = known
        if not math.isfinite(value):
            return None
        stretch = self._stretches.get(score)
        if stretch is None or (stretch.validated and not is_validation):
            stretch = self._stretches[score] = _Stretch()
        if not is_validation:
            stretch.count += 1
            stretch.mean += value / stretch.count - stretch.mean / stretch.count  # the difference itself could overflow
            return None
        stretch.validated = True
        if not stretch.count or not stretch.whole:
            return None
        gap = self.newest[score] = Gap(step, score, stretch.mean, value)
        return gap

    def interrupt(self) -> None:
        """Steps were lost here: a stretch of which a part is gone has no mean, and the next begins behind its validation."""
        for stretch in self._stretches.values():
            stretch.validated, stretch.whole = False, False
