"""Gradients that fall to nothing while there is still something to learn."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes, with_others
from resmon.detectors.exploding_gradients import jumps
from resmon.detectors.history import Usual
from resmon.detectors.loss_level import LossLevel
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window
from resmon.quantities import number
from resmon.records import Bools, Finding, Floats, Ints

LEAST_SPREAD = 0.1  # of log norms, where a block's own was smaller
NEAR = log(3.0)  # of its usual gradient, within which a block has kept it; and what is lost in one block to be named for it
LEAST_NORM = 1e-30  # that a norm of 0 counts as


class VanishingGradientsOptions(Options):
    factor: float = Field(default=30.0, gt=1, description="times below its usual gradient that a block's must be")
    spreads: float = Field(default=6.0, ge=0, description="times the block's own spread, on the log scale, that the fall must be")
    depth: float = Field(default=1000.0, gt=1, description="times that the first blocks' gradient may be below the last ones'")
    left: float = Field(default=0.05, ge=0, description="part of where the loss began below which gradients may go to nothing")
    windows: int = Field(default=4, ge=1, description="windows of 16 steps in a row until a ticket")
    page: int = Field(default=32, ge=1, description="windows of 16 steps in a row until it is a page")


class VanishingGradients(Detector):
    """The loss gradient at each block's output, against what it used to be and against that of the blocks behind it.

    *Formula.* Over windows of 16 steps o = log(median output_gradient_norm) of each block. A block is bad where

        fall:  usual - o - loss > max(log 30, 6 spreads)    usual, spread: median and robust deviation of the last 32 windows that
                                                            were not bad; loss: by how much the log loss is below its usual level
        depth: o[last] - o[first] > log 1000                the first and last known of the model; named is the block in which the
                                                            most is lost

    and the loss is above a twentieth of where it began. Where no loss is logged, and for a loss that is lower than that, a fall
    counts only in blocks that fall alone, while another block has at least a third of its usual gradient.

    *Meaning.* `vanishing_gradients` (ticket; a page after 32 windows, 512 steps): what is below the block learns no more. The
    gradient at the blocks' outputs and not that of their parameters is looked at: a block that is frozen, or zero-initialised so
    that its weights get no gradient yet, still passes it on. Where learning is over all gradients fall with the loss, and that is
    healthy. With a residual stream the gradient comes through the skips, so that it vanishes where a skip is scaled down, a
    normalisation after the add divides by a huge branch, or everything is saturated. Closed once gradients are back for 4 windows.

    *Trade-off.* A fall that takes thousands of steps becomes usual on its way. `depth` is wide: encoders and decoders stand 50
    times apart (BART), stages of a convolutional network 10. *Delay.* 4 windows: 49 to 64 steps.

    *Expected false alarms.* None in 160,000 steps of the fault bench's healthy trainings, whose blocks' parameter gradients fall at
    most 5.2-fold in three windows, but for dead ReLUs.

    *Reference.* Hochreiter, 1991; Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks,
    2010; that skips keep gradients alive: He et al., Identity mappings in deep residual networks, 2016 (arXiv 1603.05027).
    """

    name = "vanishing_gradients"
    options = VanishingGradientsOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._usual = Usual()
        self._loss = LossLevel()
        self._episodes = Episodes(
            self.name, "vanishing-gradients", lasts=self.tuned.everywhere.windows, over="the gradients were back"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        self._usual.arrange(sites)
        self._loss.take(window, keep=self._episodes.any_open)
        norm = window.median("output_gradient_norm")
        with np.errstate(invalid="ignore"):
            level = np.log(np.maximum(norm, LEAST_NORM))
            fall = self._usual.level - level
            spreads = (fall - self._loss.fallen) / np.maximum(self._usual.spread, LEAST_SPREAD)
            fallen = (fall - self._loss.fallen > np.log(self.tuned.column("factor", sites))) & (
                spreads > self.tuned.column("spreads", sites)
            )
            learns = self._loss.left > self.tuned.everywhere.left
            if not learns:
                fallen &= window.in_model(fall < NEAR)  # of which another block has kept its gradient
            shallow = self._lost_with_depth(level, window) if learns else np.zeros(len(sites), bool)
            bad = (fallen | shallow) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            page = self._episodes.windows(lead) >= self.tuned.at(site.name, "page")
            others = with_others(all_, "at ")
            if fallen[lead]:
                lost = self._lost_in(lead, fallen, window)
                others += f"; it is lost in {lost}" if lost else ""
                usual = exp(self._usual.level[lead])
                return Account(
                    "page" if page else "ticket",
                    f"The gradient at {site.name} has fallen to nothing since step {since}{others}",
                    expected=f"a norm near {number(usual)}, as over the windows before",
                    seen=f"{number(norm[lead])}, {number(spreads[lead])} times its own spread away",
                    confidence=0.9,
                    evidence={"output_gradient_norm": norm[lead], "usual": usual, "lost_in": lost, "loss_left": self._loss.left},
                )
            mine = next(mine for mine in window.models.values() if lead in mine)
            known = mine[~np.isnan(level[mine])]
            times = exp(min(level[known[-1]] - level[known[0]], 700.0))
            return Account(
                "page" if page else "ticket",
                f"The gradient at {sites[known[0]].name} is {number(times)} times smaller than at {sites[known[-1]].name}, most of "
                f"which is lost in {site.name}, since step {since}",
                expected=f"at most {number(self.tuned.everywhere.depth)} times over all blocks",
                seen=f"{number(norm[known[0]])} against {number(norm[known[-1]])}",
                confidence=0.8,
                evidence={"output_gradient_norm": norm[lead], "depth": times, "loss_left": self._loss.left},
            )

        lost = -jumps(level, window)
        guilt = np.where(lost > NEAR, len(sites) + lost, np.arange(len(sites)))
        events = list(self._episodes.take(window, bad, tell, unknown=np.isnan(level), guilt=guilt))
        self._usual.push(level, keep=bad)
        return events

    def _lost_in(self, lead: int, fallen: Bools, window: Window) -> str:
        """The first block behind it that has its gradient still; "" where none has."""
        mine = next(mine for mine in window.models.values() if lead in mine)
        return next((window.sites[i].name for i in mine[mine > lead] if not fallen[i]), "")

    def _lost_with_depth(self, level: Floats, window: Window) -> Bools:
        """The blocks of each model whose gradient gets lost from the last of them to the first."""
        found = np.zeros(len(window.sites), bool)
        for mine in window.models.values():
            known = mine[~np.isnan(level[mine])]
            if len(known) > 2 and level[known[-1]] - level[known[0]] > log(self.tuned.everywhere.depth):
                found[known[1:]] = True
        return found
