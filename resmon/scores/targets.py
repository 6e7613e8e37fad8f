"""What a run is to reach: a score and a value, as `watch(..., targets=("accuracy >= 0.95",))` says it.

The moment at which a score first meets its target is noted by the training process itself, in the rank's flight, and measured by
a clock that nobody sets. So the time to a target survives the thinning of older steps and an agent that was not there, and is
never negative, whatever happens to the clock on the wall.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from resmon.errors import ConfigurationError

Direction = Literal[">=", "<="]

_TARGET = re.compile(r"\s*(.*?\S)\s*(>=|<=)\s*([^\s<>=]+)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Target:
    """A value for a logged score; printed, it is the value of the label `target`."""

    score: str
    direction: Direction
    value: float

    def __str__(self) -> str:
        return f"{self.score} {self.direction} {repr(self.value).removesuffix('.0')}"

    def is_met(self, values: Mapping[str, float]) -> bool:
        """Whether what was logged meets it. NaN and infinite scores never do: an infinite accuracy is no success."""
        score = values.get(self.score, math.nan)
        return math.isfinite(score) and (score >= self.value if self.direction == ">=" else score <= self.value)


def parse(texts: Iterable[str]) -> tuple[Target, ...]:
    """The targets that texts such as "accuracy >= 0.95" or "val_loss <= 0.1" mean, each once.

    Raises ConfigurationError that names every text that means none.
    """
    found = {text: _parsed(text) for text in texts}
    wrong = ", ".join(f"{text!r:.100}" for text, target in found.items() if target is None)
    if wrong:
        raise ConfigurationError(
            f"targets that cannot be used: {wrong}. Write NAME >= NUMBER or NAME <= NUMBER, with a name that the loop logs and a "
            "finite number, such as 'accuracy >= 0.95' or 'val_loss <= 0.1'."
        )
    return tuple(dict.fromkeys(target for target in found.values() if target is not None))


def readable(texts: Iterable[str]) -> tuple[Target, ...]:
    """The targets that a flight names; what cannot be understood is damage, or a later version's."""
    return tuple(target for target in map(_parsed, texts) if target is not None)


def _parsed(text: str) -> Target | None:
    match = _TARGET.fullmatch(text)
    try:
        value = float(match[3]) if match else math.nan
    except ValueError:
        return None
    return Target(match[1], cast(Direction, match[2]), value) if match and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Reached:
    """A target that a rank's score has met, once and for all; a line of that rank's reached.jsonl."""

    target: str
    step: int
    steps: int  # taken in this attempt until then
    time: float  # Unix seconds
    seconds: float  # since the rank's start, by a clock that cannot be set
    value: float


def first_reached(everywhere: Iterable[Reached]) -> dict[str, Reached]:
    """What counts for the run where several ranks log a score: the first step that meets the target, on whichever rank."""
    first: dict[str, Reached] = {}
    for reached in everywhere:
        known = first.get(reached.target)
        if known is None or reached.step < known.step:
            first[reached.target] = reached
    return first
