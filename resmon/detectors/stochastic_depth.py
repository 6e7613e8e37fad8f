"""Branches that stochastic depth keeps more or less often than its schedule says."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import erfc, sqrt
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes, with_others
from resmon.detectors.history import Register
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window, rearranged
from resmon.records import Bools, Finding, Floats, Ints, ResidualSite

RECENT = 8  # windows that are looked at
REFERENCE = 32  # windows before them, with which they are compared
TREND = 4.0  # standard deviations that a rate must be off where the reference's own trend leads to
LEAST = 5  # blocks that make a schedule over depth
EVERY = 8  # windows after which that is looked at
OTHERS = 4.0  # standard deviations within which the others follow it
STEP = 0.02  # and what a schedule in steps, layer by layer, is off a line


class StochasticDepthOptions(Options):
    deviations: float = Field(default=6.0, gt=0, description="standard deviations of chance that a keep rate must be off")
    rate: float = Field(default=0.05, gt=0, lt=1, description="that it must be off at least")
    windows: int = Field(default=3, ge=1, description="windows of 16 steps in a row until a ticket")


class StochasticDepth(Detector):
    """Keep rates against what they were, and against the other blocks' schedule over depth.

    *Formula.* Of each block whose branch may be dropped, k of n samples kept theirs: in the last 8 windows of 16 steps (p), in the
    32 windows before (q), in the first and second half of these (q_1, q_2). Samples of a step may be dropped together, so the
    binomial variance is multiplied with f, the mean of (k_t - n_t q)^2 / (n_t q (1 - q)) over the steps, at least 1:

        z = (p - q) / sqrt(f q (1 - q) (1 / n + 1 / n_q))
        bad: |z| >= 6 and |p - q| >= 0.05, and as far as 4 deviations from 1.75 q_2 - 0.75 q_1, where the reference's trend leads to

    And with five such blocks or more, over all 40 windows, against the line over depth that the other blocks follow: the residual
    of a block to the line through the others is 6 deviations and 0.05 and a step of the line, and no other is off by more than 4
    deviations and 0.02 and half a step.

    *Meaning.* `stochastic_depth` (ticket): a rate changed at once: a model left in evaluation mode (all blocks keep everything), a
    schedule that jumped, a seed that makes the same draws; or one block was given another rate than its neighbours. A schedule that
    moves slowly is followed, and so are steps of less than 0.05. A branch that is dropped for every sample is dead_branch's.

    *Trade-off.* Of small batches little can be told: with 8 samples a step and a rate of 0.8 a change by 0.1 is seen, by 0.05 not.

    *Delay.* 3 to 10 windows: 48 to 160 steps.

    *Expected false alarms.* By chance 2e-9 a block and window for each of the two rules where rates are between 0.05 and 0.95,
    below 1e-6 nearer to 0 and 1; none on 18,000 steps of 3 healthy trainings under stochastic depth.

    *Reference.* Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382; score test of two binomial rates with
    over-dispersion, as in McCullagh and Nelder, "Generalized Linear Models", section 4.5. Deleted residuals: Belsley, Kuh and
    Welsch, "Regression Diagnostics", 1980.
    """

    name = "stochastic_depth"
    options = StochasticDepthOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._sites: tuple[ResidualSite, ...] = ()
        # Of the newest windows, [4, S]: samples, those that kept their branch, squares over the variance, steps with samples.
        self._held: deque[Floats] = deque(maxlen=RECENT + REFERENCE)
        self._seen = 0
        self._line, self._apart = Register(), Register(0.0)  # where the others' line leads to, and whether it is off it
        self._random = False  # whether any branch may be dropped
        self._episodes = Episodes(
            self.name, runbook="stochastic-depth", lasts=self.tuned.everywhere.windows, over="the rates were as before"
        )

    def window(self, window: Window) -> Iterable[Finding]:
        samples = window.counts("samples").astype(np.float64)
        self._random = self._random or bool(samples.any())
        if not self._random:
            return ()
        sites = window.sites
        if sites is not self._sites:
            held = [rearranged(each, self._sites, sites, 0.0) for each in self._held]
            self._held = deque(held, RECENT + REFERENCE)
            self._sites = sites
        self._line.arrange(sites)
        self._apart.arrange(sites)
        kept = window.counts("kept").astype(np.float64)
        self._held.append(self._of(samples, kept))
        self._seen += 1
        if len(self._held) < RECENT + REFERENCE:
            return ()
        n, k, squares, steps = np.stack(self._held, axis=1)
        known: Bools = n.min(axis=0) > 0
        dispersion = np.maximum(1.0, squares[:REFERENCE].sum(axis=0) / np.maximum(1.0, steps[:REFERENCE].sum(axis=0)))
        p, q, z, trend = compare(n, k, dispersion)
        least, most = self.tuned.column("rate", sites), self.tuned.column("deviations", sites)
        alive = k[-1] > 0
        changed = known & alive & (np.abs(z) >= most) & (np.abs(p - q) >= least) & (np.abs(trend) >= TREND) & (z * trend > 0)
        for mine in window.models.values() if self._seen % EVERY == 0 else ():
            some = mine[known[mine] & alive[mine]]
            self._apart.values[mine] = 0.0
            if len(some) >= LEAST:
                self._line.values[some], self._apart.values[some] = _off_the_line(
                    n[:, some].sum(axis=0), k[:, some].sum(axis=0), dispersion[some], least[some], most[some]
                )
        line = self._line.values
        bad = (changed | (known & (self._apart.values > 0))) & self.watched(window)

        lasts = self.tuned.everywhere.windows
        now = _rate(k[-lasts:].sum(axis=0), n[-lasts:].sum(axis=0))

        def tell(lead: int, all_: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            others = with_others(all_)
            evidence = {
                "keep_ratio": now[lead],
                "usual": q[lead],
                "schedule": line[lead],
                "deviations": z[lead],
                "dispersion": dispersion[lead],
            }
            if changed[lead]:
                chance = 0.5 * erfc(abs(z[lead]) / sqrt(2))
                return Account(
                    "ticket",
                    f"Block {site.name} keeps its branch for {now[lead]:.1%} of the samples since about step {since}{others}",
                    expected=f"{q[lead]:.1%}, as over the {REFERENCE} windows before",
                    seen=f"{now[lead]:.1%}; over {RECENT} windows it is {abs(z[lead]):.1f} deviations of chance away",
                    confidence=max(0.5, min(0.99, 1 - 1e6 * chance)),
                    more="; every sample in all of them: is the model in evaluation mode?" if _keeps_all(now, bad) else "",
                    evidence=evidence,
                )
            return Account(
                "ticket",
                f"Block {site.name} keeps its branch for {_rate(k[:, lead].sum(), n[:, lead].sum()):.1%} of the samples{others}",
                expected=f"{line[lead]:.1%}, on the line over depth that the other blocks follow",
                seen=f"{_rate(k[:, lead].sum(), n[:, lead].sum()):.1%}",
                confidence=0.8,
                evidence=evidence,
            )

        return list(self._episodes.take(window, bad, tell, unknown=~known | ~alive, guilt=np.where(changed, np.abs(z), 0.0)))

    def _of(self, samples: Floats, kept: Floats) -> Floats:
        """What is held of a window. How its steps scatter is told by the rate before it."""
        counted = np.stack([samples.sum(axis=0), kept.sum(axis=0)])
        n, k = self._held[-1][:2] if self._held else counted
        rate = _rate(k, n)
        there = samples > 0
        variance = np.maximum(samples, 1.0) * rate * (1 - rate)
        square = np.where(there, (kept - samples * rate) ** 2 / variance, 0.0).sum(axis=0)
        return np.concatenate([counted, [square, np.count_nonzero(there, axis=0)]])


def _rate(kept: Any, samples: Any) -> Any:
    """With half a sample of each kind more, so that it is neither 0 nor 1."""
    return (kept + 0.5) / (samples + 1.0)


def _keeps_all(rates: Floats, bad: Bools) -> bool:
    return bool(np.count_nonzero(bad) > 1 and (rates[bad] > 0.99).all())


def compare(samples: Floats, kept: Floats, dispersion: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Recent rates, those of the reference, and by how many standard deviations the former are off the latter and off their trend.

    `samples` and `kept` are by window, oldest first, [RECENT + REFERENCE, S].
    """
    recent, half = slice(REFERENCE, None), REFERENCE // 2
    n, n_q, n_1, n_2 = (samples[part].sum(axis=0) for part in (recent, slice(REFERENCE), slice(half), slice(half, REFERENCE)))
    k, k_q, k_1, k_2 = (kept[part].sum(axis=0) for part in (recent, slice(REFERENCE), slice(half), slice(half, REFERENCE)))
    p, q = _rate(k, n), _rate(k_q, n_q)
    # From the middles of the halves, 16 windows apart, to the middle of the recent ones, 20 from that of the reference.
    ahead = (REFERENCE + RECENT) / 2 / half
    led = np.clip((0.5 + ahead) * _rate(k_2, n_2) + (0.5 - ahead) * _rate(k_1, n_1), 0.0, 1.0)
    spread = dispersion * q * (1 - q)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (p - q) / np.sqrt(spread * (1 / n + 1 / n_q))
        trend = (p - led) / np.sqrt(spread * (1 / n + (0.5 + ahead) ** 2 / n_2 + (0.5 - ahead) ** 2 / n_1))
    return p, q, np.nan_to_num(z, posinf=0.0, neginf=0.0), np.nan_to_num(trend, posinf=0.0, neginf=0.0)


def _off_the_line(samples: Floats, kept: Floats, dispersion: Floats, least: Floats, most: Floats) -> tuple[Floats, Bools]:
    """The rate that the line through the other blocks gives each one, and which block is off it while they are not."""
    rate = _rate(kept, samples)
    depth = np.arange(len(rate), dtype=np.float64)
    centred = depth - depth.mean()
    leverage = 1 / len(rate) + centred**2 / (centred @ centred)
    residual = (rate - rate.mean() - centred * (centred @ rate) / (centred @ centred)) / (
        1 - leverage
    )  # each to the line of the others
    worst = int(np.argmax(np.abs(residual)))
    others = depth != worst
    slope, start = np.polyfit(depth[others], rate[others], 1)
    off = rate - (start + slope * depth)
    deviation = np.sqrt(dispersion * rate * (1 - rate) / samples)
    allowed = OTHERS * deviation + STEP + abs(slope) / 2
    follow = bool((np.abs(off[others]) <= allowed[others]).all())
    limit = np.maximum(least[worst] + abs(slope), most[worst] * deviation[worst] / np.sqrt(1 - leverage[worst]))
    apart = np.zeros(len(rate), bool)
    apart[worst] = follow and abs(off[worst]) >= limit
    return rate - residual, apart
