"""Gradients that leave what was usual upwards, or grow in one block on their way back."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes, with_others
from resmon.detectors.history import Usual
from resmon.detectors.loss_level import LossLevel
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window, rearranged
from resmon.quantities import number
from resmon.records import Bools, Finding, Floats, Ints, ResidualSite

LEAST_SPREAD = 0.1  # of log norms, where a block's own was smaller
NAMED = np.log(3.0)  # growth within a block from which on it is where the explosion begins
SETTLED = 16  # windows of history: before that gradients of blocks that begin small grow
HALF = np.log(2.0)
STANDS_FOR = 3.0  # a ratio of so much for a jump of 1, in the first block, whose own jump nobody sees
LEARNT = 0.05  # of where the loss began, below which gradients must be larger than ever


class ExplodingGradientsOptions(Options):
    factor: float = Field(default=5.0, gt=1, description="times its usual gradient norm that a block's must be")
    spreads: float = Field(default=6.0, ge=0, description="times the block's own spread, on the log scale, that the rise must be")
    jump: float = Field(default=10.0, gt=1, description="times that the gradient may grow on its way back through one block")
    depth: float = Field(default=1000.0, gt=1, description="times that it may grow from the last block to the first")
    windows: int = Field(default=3, ge=1, description="windows of 16 steps in a row until a ticket")
    page_factor: float = Field(default=30.0, gt=1, description="times its usual gradient norm, that make it a page")
    page: int = Field(default=8, ge=1, description="windows of 16 steps in a row until it is a page")


class ExplodingGradients(Detector):
    """Gradient norms against each block's own usual ones, and against those of the block behind it.

    *Formula.* Over windows of 16 steps g = log(median gradient_norm) and o = log(median output_gradient_norm) of each block. A
    block is bad where

        rise:  g - usual - loss > max(log 5, 6 spreads)     usual, spread: median and robust deviation of the last 32 windows that
                                                            were not bad; loss: by how much the log loss is above its usual level,
                                                            but not above where it began
        jump:  o[block before] - o[block] > log 10          the gradient grows within the block, on its way back
               of the first block, before which nothing is measured: its branch/skip ratio > 30, for a branch passes back about
               as many times the gradient as it is larger than its skip
        depth: o[first] - o[last] > log 1000                and by a factor of 1.5 a block; named is the block of the largest jump

    *Meaning.* `exploding_gradients` (ticket; a page once the rise has been thirtyfold for 8 windows). The first rule looks for a
    change and needs 16 windows of history; the others need none and find a bad initialisation in the first steps. Of blocks that
    became bad together the one within which the gradient grows the most is named, and where none triples it the last one: the
    backward pass comes there first. What is no explosion:

    - a loss next to 0 that comes back, as after a restart of the learning rate, and brings its gradients with it: that much is
      explained, and where the loss is below a twentieth of where it began, the gradient must be larger than it has ever been;
    - a block whose gradient is not half as large as is usual for the largest: one that begins at 0, as under a zero-initialised
      scale, grows a hundredfold in health;
    - a gradient that differs between the first and the last blocks by a steady, small factor.

    *Trade-off.* A rise that takes more than some hundred steps a factor of e becomes usual before it is large: the learning rate
    and the loss tell of those. `factor` below 3 speaks of warm-ups (the gradients of BERT's blocks grow fivefold in its first 300
    steps, but with a spread as wide). *Delay.* 3 windows: 33 to 48 steps.

    *Expected false alarms.* One ticket on 1,018,000 steps of the fault bench's healthy trainings, after a warm restart of the
    learning rate. On 160,000 of them no block's rise of three times is above 2.6 spreads, and no jump above 4.0. At initialisation
    no jump is above 2.5 in 12 architectures of up to 96 blocks (GPT-2, Llama, BERT, T5, ViT, ConvNeXt, ResNet), and no growth over
    depth above 460 (a ResNet of 33 blocks).

    *Reference.* Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013 (arXiv 1211.5063), for
    growth with depth; Philipp, Song and Carbonell, The exploding gradient problem demystified, 2017 (arXiv 1712.05577).
    """

    name = "exploding_gradients"
    options = ExplodingGradientsOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._usual = Usual(least=SETTLED)
        self._highest: Floats = np.zeros(0)  # level of each block so far
        self._sites: tuple[ResidualSite, ...] = ()
        self._loss = LossLevel()
        over = "the gradients were back where they used to be"
        self._episodes = Episodes(self.name, "exploding-gradients", lasts=self.tuned.everywhere.windows, over=over)

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        self._arrange(sites)
        self._loss.take(window, keep=bool(self._episodes.any_open))
        with np.errstate(divide="ignore", invalid="ignore"):
            norm, output = window.median("gradient_norm"), window.median("output_gradient_norm")
            level = np.log(np.where(norm > 0, norm, np.nan))
            behind = np.log(np.where(output > 0, output, np.nan))
            jump = jumps(behind, window)
            ratio = window.median("branch_skip_ratio")
            firsts = [int(mine[0]) for mine in window.models.values()]
            jump[firsts] = np.log(np.maximum(ratio[firsts] / STANDS_FOR, 1.0))
            rise = level - self._usual.level
            spreads = (rise - self._loss.risen) / np.maximum(self._usual.spread, LEAST_SPREAD)
            risen = (
                (rise - self._loss.risen > np.log(self.tuned.column("factor", sites)))
                & (spreads > self.tuned.column("spreads", sites))
                & (level > self._least(window))
            )
            grows = jump > np.log(self.tuned.column("jump", sites))
            deep = self._deep(behind, window)
            bad = (risen | grows | deep) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            others = with_others(all_)
            if risen[lead]:
                times, usual = exp(rise[lead]), exp(self._usual.level[lead])
                page = times >= self.tuned.at(site.name, "page_factor") and self._episodes.windows(lead) >= self.tuned.at(
                    site.name, "page"
                )
                return Account(
                    "page" if page else "ticket",
                    f"The gradient of {site.name} has been {number(times)} times its usual since step {since}{others}",
                    expected=f"a gradient norm near {number(usual)}, as over the windows before",
                    seen=f"{number(norm[lead])}, {number(spreads[lead])} times its own spread away",
                    confidence=0.95 if page else 0.8,
                    evidence={"gradient_norm": norm[lead], "usual": usual, "factor": times, "jump": _exp(jump[lead])},
                )
            if lead in firsts:
                return Account(
                    "ticket",
                    f"The branch of {site.name}, the first block, has been {number(ratio[lead])} times its skip since step "
                    f"{since}, and multiplies the gradient of what comes before it about as much",
                    expected=f"a branch at most {number(STANDS_FOR * self.tuned.at(site.name, 'jump'))} times its skip",
                    seen=f"{number(ratio[lead])} times",
                    confidence=0.8,
                    evidence={"gradient_norm": norm[lead], "branch_skip_ratio": ratio[lead]},
                )
            within = exp(jump[lead]) if jump[lead] == jump[lead] else 1.0
            return Account(
                "ticket",
                f"The gradient grows {number(within)} times on its way back through {site.name}, since step {since}",
                expected=f"growth of at most {number(self.tuned.at(site.name, 'jump'))} times in one block",
                seen=f"{number(within)} times, to {number(output[lead] * within)}",
                confidence=0.9,
                evidence={"gradient_norm": norm[lead], "output_gradient_norm": output[lead], "jump": within},
            )

        guilt = np.where(jump > NAMED, len(sites) + jump, np.arange(len(sites)))
        events = list(self._episodes.take(window, bad, tell, unknown=np.isnan(level) & np.isnan(jump), guilt=guilt))
        self._usual.push(level, keep=bad)
        self._highest = np.where(bad, self._highest, np.fmax(self._highest, level))
        return events

    def _arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        if sites is not self._sites:
            self._usual.arrange(sites)
            self._highest = rearranged(self._highest, self._sites, sites, np.nan)
            self._sites = sites

    def _least(self, window: Window) -> Floats:
        """What a log norm must be above to be large at all."""
        if self._loss.left < LEARNT:
            return self._highest
        least = np.full(len(window.sites), np.nan)
        for mine in window.models.values():
            known = self._usual.level[mine]
            if not np.isnan(known).all():
                least[mine] = np.nanmax(known) - HALF
        return least

    def _deep(self, behind: Floats, window: Window) -> Bools:
        """The blocks of each model whose gradient grows beyond all measure from the last of them to the first."""
        found = np.zeros(len(window.sites), bool)
        for mine in window.models.values():
            known = mine[~np.isnan(behind[mine])]
            if len(known) > 2:
                growth = behind[known[0]] - behind[known[-1]]
                if growth > np.log(self.tuned.everywhere.depth) and growth > np.log(1.5) * (len(known) - 1):
                    found[known[1:]] = True
        return found


def jumps(behind: Floats, window: Window) -> Floats:
    """By how much the log gradient norm at the output of the block before is above that at each block's own; NaN at the first."""
    found = np.full(len(window.sites), np.nan)
    for mine in window.models.values():
        found[mine[1:]] = behind[mine[:-1]] - behind[mine[1:]]
    return found


def _exp(value: float) -> float:
    return float(np.exp(value))
