"""Gradients that explode behind clipping, which keeps what is stepped with calm."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, inf, log
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import RUN, Account, Episodes
from resmon.detectors.history import Usual
from resmon.detectors.loss_level import LossLevel
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window, median
from resmon.quantities import number
from resmon.records import Finding

SETTLED = 16  # windows of history
LEAST_SPREAD = 0.1  # of log clip factors
LEARNT = 0.05  # of where the loss began, below which the clip factor must be smaller than ever


class HiddenExplosionOptions(Options):
    factor: float = Field(default=8.0, gt=1, description="times below its usual that the clip factor must be")
    spreads: float = Field(default=6.0, ge=0, description="times its own spread, on the log scale, that the fall must be")
    clip_factor: float = Field(default=0.5, gt=0, le=1, description="clip factor above which nothing is hidden")
    windows: int = Field(default=4, ge=1, description="windows of 16 steps in a row until a ticket")
    page_factor: float = Field(default=100.0, gt=1, description="times below its usual clip factor, that make it a page")
    page: int = Field(default=16, ge=1, description="windows of 16 steps in a row until it is a page")


class HiddenExplosion(Detector):
    """The clip factor, what clipping multiplies the gradient's norm with, against the run's own usual one.

    *Formula.* Over windows of 16 steps c = log(median clip factor); it is 0 where nothing is clipped. Bad: c < log 0.5 and

        usual - c - loss > max(log 8, 6 spreads)

    with the median and the robust deviation of the last 32 windows that were not bad, of which 16 must be known, and the loss's
    share as for exploding_gradients; where the loss is below a twentieth of where it began, c must be lower than ever.

    *Meaning.* `hidden_explosion` (ticket; a page once the clip factor has been a hundredth of its usual for 16 windows): gradients
    are eight times what they were, but every step has the same length as before, so that neither the weights' moves nor, for a
    while, the loss tell of it. Almost all of each step is now the direction of a few examples. A run that is always clipped,
    even to a hundredth, is no finding.

    *Trade-off.* The first 256 steps are not judged: gradients grow in them. *Delay.* 4 windows: 49 to 64 steps.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings.

    *Reference.* Pascanu, Mikolov and Bengio, 2013 (arXiv 1211.5063), for clipping by the norm.
    """

    name = "hidden_explosion"
    options = HiddenExplosionOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._usual = Usual(least=SETTLED)
        self._usual.arrange((RUN,))
        self._loss = LossLevel()
        self._lowest = inf
        self._episodes = Episodes(
            self.name, "hidden-explosion", lasts=self.tuned.everywhere.windows, over="the clip factor was back where it used to be"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        options = self.tuned.everywhere
        self._loss.take(window, keep=self._episodes.any_open)
        with np.errstate(divide="ignore", invalid="ignore"):
            whole, stepped = window.run("gradient_square"), window.run("stepped_square")
            squares = np.where((whole > 0) & (stepped > 0), stepped / whole, np.nan)
            level = float(np.log(median(squares[:, None], (len(window) + 1) // 2)[0])) / 2
        if level != level:
            return []
        usual, spread = float(self._usual.level[0]), max(float(self._usual.spread[0]), LEAST_SPREAD)
        fall = usual - level
        bad = (
            fall - self._loss.risen > max(log(options.factor), options.spreads * spread)
            and level < log(options.clip_factor)
            and (level < self._lowest or not self._loss.left < LEARNT)
        )

        def tell() -> Account:
            since, norm = self._episodes.since(0), float(np.sqrt(median(whole[:, None])[0]))
            page = fall >= log(options.page_factor) and self._episodes.windows(0) >= options.page
            return Account(
                "page" if page else "ticket",
                f"Clipping has hidden since step {since} that the gradient is {number(exp(fall))} times its usual",
                expected=f"a clip factor near {number(exp(usual))}, as over the windows before",
                seen=f"{number(exp(level))}, of a gradient norm of {number(norm)}",
                confidence=0.95 if page else 0.85,
                evidence={"clip_factor": exp(level), "usual": exp(usual), "gradient_norm": norm, "factor": exp(fall)},
            )

        events = list(self._episodes.run(window, bad, tell))
        self._usual.push(np.array([level]), keep=np.array([bad]))
        if not bad:
            self._lowest = min(self._lowest, level)
        return events
