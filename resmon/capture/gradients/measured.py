"""What was read of a step's gradients: sums of squares, and what clipping and scaling made of them.

Where gradients are on an accelerator some of these numbers arrive after the step. What was to be done with them is noted in its
order then, and done when they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor

from resmon.capture import _native
from resmon.capture.host.fetch import Fetch, Number, number
from resmon.records import Bools, Floats

Places = np.ndarray[tuple[int], np.dtype[np.intp]]


@dataclass(frozen=True, slots=True)
class Groups:
    """Which places make which group: its members run from its start to the next one's, the last of them nobody."""

    starts: Places
    members: Places


NONE: Places = np.zeros(0, np.intp)


class Measured:
    """The gradients of one step, by the places of their parameters. One place more is nobody's: every group has a member."""

    def __init__(self, parameters: int) -> None:
        size = parameters + 1
        # Whether it is there; whether its optimizer has come to its step, so that it counts; whether it was clipped.
        self.present, self.due, self.clipped = np.zeros(size, np.bool_), np.zeros(size, np.bool_), np.zeros(size, np.bool_)
        self.unknown: dict[int, str] = {}  # of those that are there: why this rank cannot know its share of their norm
        self.groups = self.parameter_groups = Groups(NONE, NONE)  # the sites', and the optimizers'
        self.reasons: Sequence[str] = ()  # of each site's group, why its norm cannot be known, "" where it can
        self.replicas = 1  # how many ranks hold the same gradients, all of them alike
        self.seen = 0.0  # all squares that were read here, added up
        self._squares: Floats = np.zeros(size)
        self._factors: Floats = np.empty(size)  # what clipping has multiplied it with since it was read
        self._factors.fill(1.0)
        self._is_clipped = False  # any of them
        self._noted: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    # -- what happens --------------------------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether all that was noted is done."""
        return not self._noted

    def anew(self, places: Places) -> None:
        """These are about to be read, whatever was read of them before."""
        if self._is_clipped:
            self.clipped[places] = False

    def clip(self, places: Places) -> None:
        """Clipping has changed these."""
        self.clipped[places] = self._is_clipped = True

    def read(self, places: Places, parameters: tuple[Tensor, ...]) -> list[int]:
        """Take the squares of these gradients, now; of all but those returned, by index, which are no plain tensors here."""
        others, total = _native.gradients(parameters, places, self._squares, self.present)
        self.seen += total
        if self._is_clipped:
            self._factors[places] = 1.0
        return others

    def do(self, what: Callable[..., None], *arguments: Any) -> None:
        """Do one of the following, now or, where a number of it or of one before is on its way, in its turn."""
        if self._noted or any(isinstance(argument, Tensor) for argument in arguments):
            self._noted.append((what, arguments))
        else:
            what(self, *arguments)

    def take(self, places: Places, *values: Any) -> None:
        """These squares were read."""
        self._squares[places] = _squares(*values)
        self._factors[places] = 1.0

    def multiply(self, places: Places, coefficient: Number) -> None:
        """Clipping has multiplied these with `coefficient`."""
        self._factors[places] *= number(coefficient)

    def became(self, places: Places, *values: Any) -> None:
        """Clipping has left these squares."""
        before, after = self._squares[places] * self._factors[places] ** 2, _squares(*values)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._factors[places] *= np.where(after == before, 1.0, np.sqrt(after / before))

    def divide(self, places: Places, scale: Number) -> None:
        """What was read of these was in units of `scale`."""
        self._squares[places] /= number(scale) ** 2

    # -- what is known of it already -----------------------------------------------------------------------------------

    @property
    def all_finite(self) -> bool:
        """Whether all squares that were read here are finite."""
        return isfinite(self.seen)

    def finite(self, places: Places) -> Bools:
        """Which of these squares are finite, as far as they are there."""
        found: Bools = np.isfinite(self._squares[places])
        return found

    # -- what came of it -----------------------------------------------------------------------------------------------

    def send(self, fetch: Fetch) -> None:
        """Have the numbers that are on their way come with `fetch`."""
        self._noted = [
            (what, tuple(fetch.add(each) if isinstance(each, Tensor) else each for each in arguments))
            for what, arguments in self._noted
        ]

    def settle(self) -> None:
        """They have arrived."""
        for what, arguments in self._noted:
            what(self, *arguments)
        self._noted.clear()

    def total(self) -> tuple[float | None, float | None]:
        """The squared norm of all gradients, and, where clipping was seen, of what it left of them.

        None where there is no gradient, or one of whose norm this rank's share cannot be known.
        """
        if self.unknown:
            return None, None
        return _native.total(self._squares, self._factors, self.present, self.due, self.clipped)

    def of(self, groups: Groups) -> tuple[Floats, Bools]:
        """The squared norm of each group's gradients, and which groups have one that can be known."""
        squares, present = np.empty(len(groups.starts)), np.empty(len(groups.starts), np.bool_)
        _native.grouped(self._squares, self.present, self.due, groups.members, groups.starts, squares, present)
        if self.unknown and present.size:
            unknown = np.zeros(len(self.present), np.bool_)
            unknown[list(self.unknown)] = True
            present &= ~np.logical_or.reduceat(unknown[groups.members], groups.starts)
        return squares, present


Values = tuple[Any, ...]  # squares; what a norm's square is multiplied with; and by device of whom there are norms, and these


def _squares(squares: Floats, factors: Floats, *parts: Any) -> Floats:
    for places, norms in zip(parts[::2], parts[1::2], strict=True):
        squares[places] = norms.numbers() ** 2 * factors[places]
    return squares
