"""Batch norms whose running statistics are not those of the batches: evaluation is another network than the one that trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes
from resmon.detectors.history import History, Register, Usual
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import Window, median
from resmon.quantities import number
from resmon.records import Finding, Ints

LEVEL = 8  # windows whose median is a level
SETTLES = 0.95  # of the level before, that statistics which still settle come down to at least
USUAL = 32  # windows that tell what variance was usual
SETTLED = 8  # of them that must be known: a momentum of 0.1 has forgotten where it began


class BatchNormOptions(Options):
    gap: float = Field(default=0.6, gt=0, description="standard deviations between evaluation and training that are too many")
    growth: float = Field(default=1e4, gt=1, description="times its usual value that the largest running variance may be")
    collapsed: float = Field(
        default=0.25, gt=0, le=1, description="share of channels without variance, beyond those at the beginning, that is too large"
    )
    windows: int = Field(default=3, ge=1, description="windows of 16 steps in a row that are bad until it is told")


class BatchNorm(Detector):
    """Batch norms' running statistics against the batches, and against their own past.

    *Formula.* Of each block, from window to window of 16 steps, its newest look: what statistics.py calls norm_gap g (the
    2-Wasserstein distance, in standard deviations, between what evaluation and what training make of a batch), norm_variance v and
    norm_collapsed_ratio c.

        gap        median of g over 8 windows >= 0.6 and, when that begins, >= 0.95 of the median over the 8 windows before
        variance   v >= 10,000 median of v over the newest 32 windows that were not bad, 8 of them at least
        collapse   c >= 0.25 + c at the block's first look
        nonfinite  a running mean or variance is NaN or infinite

    *Meaning.* `batch_norm_gap` (ticket): evaluation normalises with statistics that are not those of the batches. Batches are too
    small, or momentum is too large for them; momentum is so small that the statistics never catch up; or batches are of kinds that
    alternate, each alike in itself. Statistics that are still settling come down and say nothing. `batch_norm_variance` (ticket): a
    batch that was far off, or activations that explode; evaluation makes constants of what trains well until it is forgotten.
    `batch_norm_collapse` (ticket): channels came to be constant, so that nothing is left to normalise and eps alone divides.
    `batch_norm_nonfinite` (page): training may go on as if nothing were, but what was remembered stays so for ever, and so do the
    checkpoints: each of them evaluates to NaN.

    *Trade-off.* By chance alone g is about sqrt(1.5 / n) of batches of n independent values a channel: a limit of 0.6 speaks of n
    up to 4 and is silent from 8 on. Layers whose statistics do not move at all (frozen, or a momentum of 0) have no gap. What grows
    slowly is usual after 32 windows; growing activations are others' to see.

    *Delay.* Looks are 16 steps apart. A gap takes 15 to 20 windows from the start and 5 to 8 where it comes later, everything else
    4 or 5; what is not finite is told at the first look.

    *Expected false alarms.* None on 4,000 steps of each healthy training of the fault bench that has batch norms (batches of 8
    images; medians of g were 0.09 to 0.21, single looks up to 0.58).

    *Reference.* Ioffe and Szegedy, "Batch normalization" (2015), on evaluation by running statistics; Ioffe, "Batch
    renormalization" (2017), on small batches; Wu and Johnson, "Rethinking 'batch' in batchnorm" (2021), on statistics that lag.
    """

    name = "batch_norm"
    options = BatchNormOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        lasts, runbook = self.tuned.everywhere.windows, "batch-norm"
        self._gap = Episodes("batch_norm_gap", runbook, lasts, over="running statistics fit the batches")
        self._variance = Episodes("batch_norm_variance", runbook, lasts, over="the running variance was usual")
        self._collapse = Episodes("batch_norm_collapse", runbook, lasts, over="the channels vary")
        self._nonfinite = Episodes("batch_norm_nonfinite", runbook="batch-norm", lasts=1, over="all running statistics are finite")
        self._gaps = History(2 * LEVEL)
        self._usual = Usual(USUAL, SETTLED)
        self._far = Register(0.0)  # 1 where the gap was bad in the window before
        self._begin = Register()  # share of collapsed channels at the first look
        self._seen = False  # any batch norm

    def window(self, window: Window) -> Iterable[Finding]:
        self._seen = self._seen or bool(window.present("norm_collapsed_ratio").any())
        if not self._seen:
            return []
        for each in (self._gaps, self._usual, self._far, self._begin):
            each.arrange(window.sites)
        return [*self._settled(window), *self._grown(window), *self._constant(window)]

    def _settled(self, window: Window) -> Iterator[Finding]:
        newest = window.blocks("norm_gap")[-1]
        self._gaps.push(newest)
        values = self._gaps.newest(2 * LEVEL)
        limit = self.tuned.column("gap", window.sites)
        before = now = newest
        bad = np.zeros(len(newest), bool)
        if (np.fmax.reduce(values[LEVEL:]) >= limit).any():
            before, now = median(values[:LEVEL], LEVEL // 2), median(values[LEVEL:], LEVEL // 2)
            bad = (now >= limit) & ((self._far.values > 0) | (now >= SETTLES * before)) & self.watched(window)
        self._far.values = np.where(np.isnan(newest), self._far.values, bad)

        def tell(lead: int, all_: Ints) -> Account:
            name = window.sites[lead].name
            return Account(
                "ticket",
                f"The batch norms of {name} evaluate with statistics that are {number(now[lead])} standard deviations from those "
                f"of the batches, since step {self._gap.since(lead)} at the latest{_others(all_)}",
                expected=f"less than {number(limit[lead])}, as running statistics that fit the batches have",
                seen=f"{number(now[lead])}",
                confidence=0.9,
                evidence={"norm_gap": now[lead], "before": before[lead]},
            )

        yield from self._gap.take(window, bad, tell, unknown=np.isnan(newest), guilt=now)

    def _grown(self, window: Window) -> Iterator[Finding]:
        variance, there = window.blocks("norm_variance")[-1], window.present("norm_variance")[-1]
        usual = self._usual.level
        broken = there & np.isnan(variance) & self.watched(window)
        with np.errstate(over="ignore"):
            bad = (variance >= usual * self.tuned.column("growth", window.sites)) & (usual > 0) & self.watched(window)

        def grown(lead: int, all_: Ints) -> Account:
            name, since = window.sites[lead].name, self._variance.since(lead)
            return Account(
                "ticket",
                f"The largest running variance of the batch norms of {name} has been {number(variance[lead])} since step {since}"
                f"{_others(all_)}",
                expected=f"about {number(usual[lead])}, as over the windows before",
                seen=number(variance[lead]),
                confidence=0.9,
                evidence={"norm_variance": variance[lead], "usual": usual[lead]},
            )

        def nonfinite(lead: int, all_: Ints) -> Account:
            return Account(
                "page",
                f"Running statistics of the batch norms of {window.sites[lead].name} have been NaN or infinite since step "
                f"{self._nonfinite.since(lead)}{_others(all_)}",
                expected="finite numbers",
                seen="NaN or infinite",
                confidence=1.0,
                more="; nothing that is trained on brings them back, and every checkpoint holds them",
            )

        yield from self._variance.take(window, bad, grown, unknown=np.isnan(variance), guilt=variance)
        yield from self._nonfinite.take(window, broken, nonfinite, unknown=~there)
        self._usual.push(variance, keep=bad | np.isnan(variance))

    def _constant(self, window: Window) -> Iterator[Finding]:
        collapsed = window.blocks("norm_collapsed_ratio")[-1]
        begin = self._begin.values = np.where(np.isnan(self._begin.values), collapsed, self._begin.values)
        bad = (collapsed >= begin + self.tuned.column("collapsed", window.sites)) & self.watched(window)

        def tell(lead: int, all_: Ints) -> Account:
            name = window.sites[lead].name
            return Account(
                "ticket",
                f"{number(100 * collapsed[lead])} % of the channels that the batch norms of {name} normalise have been constant "
                f"since step {self._collapse.since(lead)}{_others(all_)}",
                expected=f"{number(100 * begin[lead])} %, as at the beginning",
                seen=f"{number(100 * collapsed[lead])} %",
                confidence=0.9,
                evidence={"norm_collapsed_ratio": collapsed[lead], "begin": begin[lead]},
            )

        yield from self._collapse.take(window, bad, tell, unknown=np.isnan(collapsed), guilt=collapsed)


def _others(all_: Ints) -> str:
    others = len(all_) - 1
    return f", and those of {others} other block{'s' if others > 1 else ''}" if others else ""
