"""The flight that `resmon.load` gives: frames, and in a notebook a picture and a table."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resmon.errors import ConfigurationError, ResmonError
from resmon.flight import frames
from resmon.flight.gathering import Source
from resmon.plots.measures import MEASURES
from resmon.portrait.facts import facts
from resmon.portrait.picture import Picture, picture
from resmon.portrait.words import hypertext, plain

SHOWN = ("branch_skip_ratio", "gradient_norm")  # the maps that are shown unasked


class Flight(frames.Flight):
    __doc__ = frames.Flight.__doc__

    def plot(self, quantity: str = "branch_skip_ratio") -> Picture:
        """The loss, and a heat map of that quantity of the blocks, that can be zoomed into where the front end draws plotly's.

        Raises ConfigurationError for a quantity that there is none of.
        """
        return plot(self.folder, quantity, self._only())

    def __repr__(self) -> str:
        return f"<resmon.Flight of {self.folder}, {self.outcome}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return bundle(self.folder, self._only())

    def _only(self) -> frozenset[int]:
        return frozenset(rank.number for rank in self._ranks)


def load(path: Source | Iterable[Source], attempt: int | None = None) -> Flight:
    return Flight.load(path, attempt)


load.__doc__ = frames.Flight.load.__doc__


def bundle(attempt: Path | None, only: frozenset[int] | None = None) -> dict[str, str]:
    """How a run shows itself as it is now on file. Raises nothing that a reader of files can: it says so in its place."""
    if attempt is None:
        return _sentence("resmon: nothing is recorded yet")
    try:
        found = facts(attempt, only, SHOWN)
        pictures = [picture(found, map_, losses=i == 0) for i, map_ in enumerate(found.maps)]
        return {"text/plain": plain(found), "text/html": hypertext(found, pictures)}
    except (ResmonError, OSError) as error:
        return _sentence(f"resmon: the run in {attempt.parent} cannot be shown: {error}")


def plot(attempt: Path, quantity: str, only: frozenset[int] | None = None) -> Picture:
    """The picture of a quantity. Raises ConfigurationError where it was not recorded."""
    names = [measure.name for measure in MEASURES]
    found = facts(attempt, only, (quantity,) if quantity in names else ())
    if found.maps:
        return picture(found, found.maps[0])
    known = [each.measure.name for each in facts(attempt, only, tuple(names)).maps]
    there = f"there are {', '.join(known)}" if known else "no step with blocks is on file yet"
    raise ConfigurationError(f"the run in {attempt.parent} has no {quantity!r} to draw: {there}.")


def _sentence(text: str) -> dict[str, str]:
    return {"text/plain": text, "text/html": f"<p>{html.escape(text)}</p>"}
