"""A loss, a gradient norm or a branch that swings to and fro, wider and wider."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from resmon import quantities
from resmon.detectors.detector import Detector, Weight
from resmon.detectors.episode import RUN, Account, Episodes
from resmon.detectors.history import Usual
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import WINDOW, Window
from resmon.quantities import number
from resmon.records import Finding, Floats, Ints, ResidualSite
from resmon.scores.gaps import role

STRETCH = 4 * WINDOW  # steps that are looked at together
SLOWEST = 4  # swings in a stretch at least: a period of 16 steps
EARLIER = STRETCH - WINDOW  # steps before the window at which a stretch is judged that it began
LEAST = 4  # stretches of history
TREND = np.linspace(-1.0, 1.0, STRETCH)


class OscillationOptions(Options):
    share: float = Field(default=0.6, gt=0, le=1, description="part of all movement that is at one period")
    factor: float = Field(default=3.0, gt=1, description="times its usual movement that a swing must be")
    amplitude: float = Field(default=0.1, gt=0, description="of the logarithm, that a swing must be at least")
    stretches: int = Field(default=2, ge=1, description="stretches of 64 steps in a row until a ticket")


class Oscillation(Detector):
    """The spectrum of what a run does in 64 steps, against how much it usually moves.

    *Formula.* Over stretches of 64 steps without a gap, x is the logarithm of the loss, of the gradient norm, or of a block's
    branch/skip ratio, less its linear trend; P is its periodogram. Bad:

        share = max over k >= 4 of (P[k-1] + P[k] + P[k+1]) / sum of P >= 0.6
        amplitude = sqrt(2 share x variance) >= max(0.1, 3 x usual)     usual: median deviation sqrt(variance) of the last 32
                                                                        stretches that were not bad, of which 4 must be known

    *Meaning.* `oscillation` (ticket): most of what moves has one period, between 2 and 16 steps, and moves three times as far as it
    used to. At a learning rate above 2 / curvature the loss swings from step to step; a momentum near 1 makes the swings
    longer. Noise has no period: of normal noise the share is 0.3 at most. Data in a fixed order swing with the epoch, but always
    as far. A symptom: where a cause is told of at the time, it stands in that finding.

    *Delay.* 2 stretches: 128 to 192 steps. Faster explosions are told by their size.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings.

    *Reference.* Fisher's g, Tests of significance in harmonic analysis, 1929, over three bins; Cohen et al., Gradient descent on
    neural networks typically occurs at the edge of stability, 2021 (arXiv 2103.00065).
    """

    name = "oscillation"
    options = OscillationOptions
    weight: ClassVar[Weight] = "symptom"

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._sites: tuple[ResidualSite, ...] = ()
        self._next = -1  # step that the next window must begin with
        self._gathered: list[Floats] = []  # [n, S + 2]: the blocks, the loss, the gradient norm
        self._loss: str | None = None
        self._usual = Usual(least=LEAST)
        self._runs = (Usual(least=LEAST), Usual(least=LEAST))
        for each in self._runs:
            each.arrange((RUN,))
        lasts = self.tuned.everywhere.stretches
        self._episodes = Episodes(self.name, "oscillation", lasts=lasts, calm=2, over="it was calm again")
        self._run_episodes = Episodes(self.name, "oscillation", lasts=lasts, calm=2, over="it was calm again")

    def window(self, window: Window) -> Iterable[Finding]:
        if window.sites is not self._sites:
            if window.sites != self._sites:
                self._gathered = []
            self._usual.arrange(window.sites)
            self._sites = window.sites
        if window.first_step != self._next or len(window) != WINDOW:
            self._gathered = []
        self._next = window.step + 1
        if len(window) != WINDOW:
            return []
        self._gathered.append(self._values(window))
        if len(self._gathered) * WINDOW < STRETCH:
            return []
        values, self._gathered = np.concatenate(self._gathered), []
        return self._judge(window, values)

    def _values(self, window: Window) -> Floats:
        if self._loss is None:
            self._loss = next((name for name in window.scalars if role(name) == ("loss", False)), None)
        loss = window.scalars.get(self._loss or "", np.full(len(window), np.nan))
        square = window.run("gradient_square")
        values = np.column_stack([window.blocks("branch_skip_ratio"), loss, np.sqrt(np.maximum(square, 0.0))])
        with np.errstate(invalid="ignore"):
            return np.log(np.where(values > 0, values, np.nan))

    def _judge(self, window: Window, values: Floats) -> list[Finding]:
        share, amplitude, deviation, period = swings(values)
        count = len(window.sites)
        options = self.tuned.everywhere
        usual = np.append(self._usual.level, [each.level[0] for each in self._runs])
        with np.errstate(invalid="ignore"):
            bad = (share >= options.share) & (amplitude >= options.amplitude) & (amplitude >= options.factor * usual)
        bad[:count] &= self.watched(window)

        def account(place: int, what: str, since: int) -> Account:
            return Account(
                "ticket",
                f"{what} has been swinging with a period of {number(period[place])} steps since step {since}, wider than ever",
                expected=f"movements of {number(100 * usual[place])} %",
                seen=f"swings of {number(100 * amplitude[place])} % that are {number(100 * share[place])} % of all movement",
                confidence=0.8,
                evidence={
                    "since": since,
                    "period": period[place],
                    "amplitude": amplitude[place],
                    "usual": usual[place],
                    "share": share[place],
                },
            )

        def of_block(lead: int, all_: Ints) -> Account:
            others = f" and of {quantities.count(len(all_) - 1, 'other block')}" if len(all_) > 1 else ""
            return account(
                lead, f"The branch/skip ratio of {window.sites[lead].name}{others}", self._episodes.since(lead) - EARLIER
            )

        def of_run() -> Account:
            what = "loss" if bad[count] else "gradient norm"
            return account(count if bad[count] else count + 1, f"The {what}", self._run_episodes.since(0) - EARLIER)

        unknown = np.isnan(share[:count])
        events = list(self._episodes.take(window, bad[:count], of_block, unknown=unknown, guilt=amplitude[:count]))
        events += self._run_episodes.run(window, bool(bad[count:].any()), of_run)
        self._usual.push(deviation[:count], keep=bad[:count])
        for i, each in enumerate(self._runs):
            each.push(deviation[count + i : count + i + 1], keep=bad[count + i : count + i + 1])
        return events


def swings(values: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Of each column [STRETCH, N]: the share of the strongest period in all movement, its amplitude, the standard deviation of the
    movement, and the period in steps. All are NaN where a value is missing, and the share where nothing moves.
    """
    level = values - values.mean(axis=0)
    level -= TREND[:, None] * (TREND @ level / (TREND @ TREND))
    power = np.abs(np.fft.rfft(level, axis=0)) ** 2 / STRETCH**2
    power[1:-1] *= 2  # of both signs; they sum up to the variance
    power[0] = 0.0
    variance = power.sum(axis=0)
    beside = power.copy()
    beside[1:] += power[:-1]
    beside[:-1] += power[1:]
    place = SLOWEST + np.argmax(np.nan_to_num(power[SLOWEST:]), axis=0)
    strongest = beside[place, np.arange(values.shape[1])]
    share = np.where(variance > 1e-20, strongest / np.where(variance > 1e-20, variance, 1.0), np.nan)
    return share, np.sqrt(2 * strongest), np.sqrt(variance), STRETCH / place
