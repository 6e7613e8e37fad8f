"""What led up to an incident: since when which value of which block had left its usual range.

For each block, five signs on a logarithmic scale: branch/skip ratio, skip RMS, branch RMS, gradient norm and output gradient norm;
and for the whole run the loss and the gradient norm. The usual range of a sign is its median over the steps before the window that
is looked at, plus and minus

    max(6 x 1.4826 x median absolute deviation, log 2)

so that a value is outside only where it is both far beyond its own noise and twice, or half, of what is usual. NaN and infinite
values are outside. A sign *was coming* since the first step of the unbroken run of outside values that ends with the incident's
step (or the newest one before it). A step at which a sign has no value breaks nothing; what was still inside at the last step was
not coming.

The range is that of the run's own last thousand steps: a sign that has drifted for longer than that is not seen to leave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resmon.quantities import count, listed
from resmon.records import Ints

if TYPE_CHECKING:
    import pandas as pd

    from resmon.flight.frames import Flight

WINDOW = 64  # steps before an incident, which stay in full (FlightWriter.incident)
USUAL = 1000  # steps before the window from which the usual range is told
LEAST = 20  # of these; where a run is too short for it, the window gives up its older part
NOISES = 6.0
FACTOR = np.log(2.0)
MAD = 1.4826

SIGNS = {
    "branch_skip_ratio": "branch/skip ratio",
    "skip_rms": "skip RMS",
    "branch_rms": "branch RMS",
    "gradient_norm": "gradient norm",
    "output_gradient_norm": "output gradient norm",
}
RUN_SIGNS = {"loss": "the loss", "gradient_norm": "the gradient norm of all parameters"}
NAMED = 5  # blocks that the sentence names


@dataclass(frozen=True, slots=True)
class Departure:
    """A sign that left its usual range and was not back when the incident came."""

    model: str
    block: str  # "" for the whole run
    sign: str  # a column of Flight.blocks or, of the whole run, of Flight.steps
    since: int  # the first step outside
    median: float
    low: float
    high: float
    last: float  # at the newest step that has it
    last_step: int

    @property
    def factor(self) -> float:
        """The last value over what is usual."""
        return self.last / self.median


@dataclass(frozen=True, slots=True, eq=False)
class LeadUp:
    """What led up to `step`."""

    step: int  # the newest that was looked at: the incident's own, or the last before it that is on file
    steps: tuple[int, ...]  # the window
    usual: int  # steps that told what is usual; with less than 20 nothing is judged
    blocks: pd.DataFrame  # Flight.blocks of the window
    departures: tuple[Departure, ...]  # the earliest first, those of one step in the blocks' order

    @property
    def since(self) -> int | None:
        """The first step at which something was outside and stayed so; None where nothing was."""
        return self.departures[0].since if self.departures else None

    @property
    def sentence(self) -> str:
        """The same for people."""
        if self.usual < LEAST:
            return f"Whether it was coming cannot be told: only {count(self.usual, 'step')} before it say what is usual."
        if not self.departures:
            return f"Nothing was coming: every block was within its usual range until step {self.step}."
        first = self.departures[0]
        before = self.step - first.since
        when = (
            f"since step {first.since}, {count(before, 'step')} before" if before else f"at step {first.since} itself, not before"
        )
        said = f"{_of(first)} left its usual range ({first.low:.3g} to {first.high:.3g}) {when}, {_last(first)}"
        others = list(dict.fromkeys(each.block for each in self.departures if each.block and each.block != first.block))
        followed = f"; then came {listed(others, NAMED)}" if others else ""
        return f"{said[0].upper()}{said[1:]}{followed}."


def lead_up(flight: Flight, step: int | None) -> LeadUp:
    """What led up to an incident at `step`; None is the end of the flight."""
    steps = flight.steps()
    steps = steps[(steps["ranks"] > 0) & (steps["step"] <= (np.iinfo(np.int64).max if step is None else step))]
    steps = steps.iloc[-(USUAL + WINDOW) :]
    seen = steps["step"].to_numpy(np.int64)
    if not len(seen):
        return LeadUp(-1 if step is None else step, (), 0, flight.blocks(steps=seen), ())
    inside = seen[-max(1, min(WINDOW, len(seen) - LEAST)) :]
    before = len(seen) - len(inside)
    frame = flight.blocks(steps=seen)
    departures = [each for sign in RUN_SIGNS for each in _departures(("", "", sign), seen, steps[sign], before)]
    rows = frame.groupby(["model", "block"], sort=False).indices
    models = flight.info["models"]
    for site in flight.sites:
        label = models.get(site.model, site.model)
        mine = frame.iloc[rows.get((label, site.name), [])]
        at = mine["step"].to_numpy(np.int64)
        told = int(np.searchsorted(at, inside[0]))
        departures += [each for sign in SIGNS for each in _departures((label, site.name, sign), at, mine[sign], told)]
    departures.sort(key=lambda each: each.since)
    window_frame = frame[frame["step"] >= int(inside[0])].reset_index(drop=True)
    return LeadUp(int(seen[-1]), tuple(inside.tolist()), before, window_frame, tuple(departures))


def _departures(of: tuple[str, str, str], steps: Ints, column: pd.Series, before: int) -> list[Departure]:
    """The one departure of a sign, if there is one; the first `before` values tell what is usual."""
    values, there = column.to_numpy(np.float64, na_value=np.nan), column.notna().to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    known = logs[:before][there[:before] & np.isfinite(logs[:before])]
    steps, values, logs = steps[there], values[there], logs[there]
    if len(known) < LEAST or not len(logs):
        return []
    middle = float(np.median(known))
    reach = max(NOISES * MAD * float(np.median(np.abs(known - middle))), FACTOR)
    outside = ~(np.abs(logs - middle) <= reach)
    if not outside[-1]:
        return []
    inside = np.flatnonzero(~outside)
    begin = int(inside[-1]) + 1 if len(inside) else 0
    low, high = np.exp(middle - reach), np.exp(middle + reach)
    model, block, sign = of
    return [
        Departure(
            model, block, sign, int(steps[begin]), float(np.exp(middle)), float(low), float(high), float(values[-1]), int(steps[-1])
        )
    ]


def _of(departure: Departure) -> str:
    if departure.block:
        return f"block {departure.block}'s {SIGNS[departure.sign]}"
    return RUN_SIGNS[departure.sign]


def _last(departure: Departure) -> str:
    if not np.isfinite(departure.last):
        return f"and was no finite number at step {departure.last_step}"
    return f"and was {departure.last:.3g} at step {departure.last_step}, {departure.factor:.3g} times what is usual"
