"""A level or a spread that leaves what it was, in any stream of any block."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, log
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from resmon.detectors.charts import Change as Chart
from resmon.detectors.charts import Charts, e_value, probability
from resmon.detectors.detector import Detector, Weight
from resmon.detectors.episode import Account, Episodes
from resmon.detectors.options import Options, Tuned
from resmon.detectors.window import WINDOW, Window, by_model, rearranged
from resmon.quantities import count, number
from resmon.records import Finding, Floats, Ints, ResidualSite

STREAMS = {
    "skip_rms": "skip RMS",
    "branch_rms": "branch RMS",
    "branch_skip_ratio": "branch/skip ratio",
    "gradient_norm": "gradient norm",
    "output_gradient_norm": "output gradient norm",
}
REMEMBERED = 40  # windows whose medians tell from what to what a stream went
BEGIN = 64  # windows before anything is said: a run that begins learns faster than any forecast follows
EXPLAINED = 1.2  # times that the learning rate moved since shortly before the change
BEFORE = 4  # windows: so shortly
ALL = 0.75  # part of a model's blocks that move together as one: the network's change
TOLD = 8  # windows after which what was told is over: the new level is learnt by then


class ChangeOptions(Options):
    evidence: float = Field(default=40.0, ge=5, description="of the charts, that a stream must reach (charts.py)")
    factor: float = Field(default=1.25, gt=1, description="times that a stream's level must have moved")
    noises: float = Field(default=2.0, gt=0, description="standard deviations of a stream's noise that its level must have moved")
    wider: float = Field(default=2.5, gt=1, description="times its standard deviation that a stream's spread must have become")
    rate: float = Field(default=1e-4, gt=0, lt=1, description="share of false ones among the streams that are told, a window")


class Change(Detector):
    """Sequential charts over every stream of every block, with one false-discovery rate for all.

    *Formula.* The logarithms of five statistics of each block (skip and branch RMS, their ratio, both gradient norms), step by
    step, go through `charts.Charts`, which say of each stream how much evidence there is that it changed, since when and by how
    much. Of m streams the evidence of each in a window becomes a p-value and that an e-value; told are those k whose e-values are
    the largest, for the largest k with e_(k) >= m / (rate k), which bounds the expected share of false ones at `rate` however the
    streams depend on each other. Of these a stream counts whose evidence is 40, whose median of the newest window is at least 1.25
    times above or below that of the windows before the change, and whose level moved by 2 standard deviations of its noise; or
    whose noise, the mean distance from a window's median, became 2.5 times as large.

    *Meaning.* `change` (ticket, a symptom: it stands in the evidence of what explains it). One finding a model: the block whose
    stream changed first and its followers; where three quarters of the blocks move together it is the network that changed. The
    evidence lists the streams, from what to what, and their charts.

    *Trade-off.* Where the learning rate is more than 1.2 times above or below what it was shortly before, it explains the change:
    nothing is said, and the streams learn anew. So do streams that were told of: a new level is news once. Nothing is said in the
    first 64 windows, in which a run learns faster than a forecast follows, and a lasting change of less than a quarter is nobody's
    concern.

    *Delay.* A level that doubles, with noise of 5 %: 16 to 48 steps.

    *Expected false alarms.* Two on 815,000 steps of healthy trainings of the fault bench, both shortly after a warm restart of the
    learning rate. None on streams that only learn (tests/detectors/test_change.py).

    *Reference.* charts.py for the charts; Wang and Ramdas, "False discovery rate control with e-values", arXiv 2009.02824 (e-BH).
    """

    name = "change"
    options = ChangeOptions
    weight: ClassVar[Weight] = "symptom"

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._sites: tuple[ResidualSite, ...] = ()
        self._charts = Charts(0)
        # Of windows, of logarithms, two rings: their medians, and the mean distances from these.
        self._medians: Floats = np.empty((REMEMBERED, len(STREAMS), 0))
        self._spreads: Floats = np.empty((REMEMBERED, len(STREAMS), 0))
        self._rates: list[float] = []  # of the newest windows, smallest and largest
        self._seen = 0  # windows
        self._episodes = Episodes(self.name, runbook="change", lasts=1, calm=TOLD, over="the new level has become the usual one")

    def window(self, window: Window) -> Iterable[Finding]:
        self._arrange(window.sites)
        values = np.stack([window.blocks(name) for name in STREAMS], axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(values > 0, np.log(values), np.nan)
            medians = np.log(np.stack([window.median(name) for name in STREAMS]))
            spreads = np.log(np.abs(values - medians).sum(axis=0) / len(window))
        row = self._seen % REMEMBERED
        self._medians[row] = np.where(np.isfinite(medians), medians, np.nan)
        self._spreads[row] = np.where(np.isfinite(spreads), spreads, np.nan)
        self._seen += 1
        rate = window.run("learning_rate")
        known = rate[rate > 0]
        self._rates = [*self._rates[1 - REMEMBERED :], float(np.median(known)) if len(known) else np.nan]
        evidence = self._charts.block(values.reshape(len(window), -1)).max(axis=0, initial=0.0)
        found = self._found(evidence)
        if self._seen <= BEGIN:  # it has been seen, and is no news later
            found = {}
        bad = np.zeros(len(window.sites), bool)
        guilt = np.full(len(window.sites), -np.inf)
        earliest = max((chart.ago for chart, _ in found.values()), default=0)
        for (_, site), (chart, _) in found.items():
            bad[site] = True
            if chart.ago > earliest - WINDOW:  # when a change began is known to some steps; which is clearer came first
                guilt[site] = max(guilt[site], chart.evidence)
        bad &= self.watched(window)

        def tell(lead: int, blocks: Ints) -> Account:
            return self._account(window, lead, blocks, found)

        return list(self._episodes.take(window, bad, tell, guilt=guilt))

    def _found(self, evidence: Floats) -> dict[tuple[int, int], tuple[Chart, float]]:
        """The streams that changed, by statistic and site: what their chart says, and by how much their level moved."""
        sites = len(self._sites)
        most = self.tuned.column("evidence", self._sites)
        candidates = np.flatnonzero(evidence.reshape(-1, sites) >= most) if sites else np.zeros(0, np.int64)
        if not len(candidates):
            return {}
        values = sorted(((e_value(probability(float(evidence[i]), WINDOW)), int(i)) for i in candidates), reverse=True)
        needed = len(evidence) / self.tuned.everywhere.rate
        told = max((k for k, (value, _) in enumerate(values, 1) if value >= needed / k), default=0)
        found: dict[tuple[int, int], tuple[Chart, float]] = {}
        for _, stream in values[:told]:
            statistic, site = divmod(stream, sites)
            chart = self._charts.change(stream)
            windows = -(-chart.ago // WINDOW)
            block = self._sites[site].name
            if chart.direction == "wider":
                move = self._moved(self._spreads, statistic, site, windows)
                counts = move >= log(self.tuned.at(block, "wider"))
            else:
                move = self._moved(self._medians, statistic, site, windows) if chart.direction in ("up", "down") else 0.0
                counts = abs(move) >= log(self.tuned.at(block, "factor")) and abs(chart.size) >= self.tuned.at(block, "noises")
            if counts and not self._is_explained(windows):
                found[statistic, site] = chart, move
        # Whatever is made of it, it has been seen: the level is learnt anew.
        self._charts.reset(candidates)
        return found

    def _moved(self, ring: Floats, statistic: int, site: int, windows: int) -> float:
        """From what it was in the windows before the change to the newest, on the log scale; 0 where it is not known."""
        rows = (self._seen - 1 - np.arange(min(self._seen, REMEMBERED))) % REMEMBERED  # newest first
        levels = ring[rows, statistic, site]
        before = levels[windows + 1 :]
        before = before[~np.isnan(before)][:8]
        return float(levels[0] - np.median(before)) if len(before) >= 2 and not np.isnan(levels[0]) else 0.0

    def _is_explained(self, windows: int) -> bool:
        """Whether the learning rate moved since shortly before."""
        rates = [rate for rate in self._rates[-(windows + BEFORE) :] if rate == rate]
        return bool(rates) and max(rates) > EXPLAINED * min(rates)

    def _account(self, window: Window, lead: int, blocks: Ints, found: dict[tuple[int, int], tuple[Chart, float]]) -> Account:
        mine = [(chart.evidence, statistic) for (statistic, site), (chart, _) in found.items() if site == lead]
        statistic = max(mine)[1]
        chart, move = found[statistic, lead]
        name, quantity = list(STREAMS.items())[statistic]
        now = float(window.median(name)[lead])
        site = window.sites[lead]
        together = len(blocks) >= ALL * len(by_model(window.sites)[site.model]) and len(blocks) > 2
        since = max(0, window.step - chart.ago + 1)
        where = f"nearly all blocks, first in {site.name}" if together else site.name
        more = f", together with {count(len(blocks) - 1, 'other block')}" if len(blocks) > 1 and not together else ""
        listed = [
            {
                "block": window.sites[i].name,
                "statistic": list(STREAMS)[k],
                "direction": said.direction,
                "factor": exp(moved),
                "chart": said.chart,
                "evidence": said.evidence,
            }
            for (k, i), (said, moved) in sorted(found.items(), key=lambda each: -each[1][0].evidence)[:20]
        ]
        if chart.direction == "wider":
            return Account(
                "ticket",
                f"The noise of the {quantity} in {where} became {number(exp(move))} times as large since about step {since}{more}",
                expected="the spread of the windows before",
                seen=f"{number(exp(move))} times that, by the {chart.chart} chart",
                confidence=0.7,
                evidence={"since": since, "network": together, "streams": listed, "streams_count": len(found)},
            )
        return Account(
            "ticket",
            f"The {quantity} in {where} changed by a factor of {number(exp(move))} since about step {since}{more}",
            expected=f"{number(now / exp(move))}, as in the windows before",
            seen=f"{number(now)}, {number(abs(chart.size))} standard deviations of its noise away, by the {chart.chart} chart",
            confidence=0.8,
            evidence={"since": since, "network": together, "streams": listed, "streams_count": len(found)},
        )

    def _arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        if sites is self._sites:
            return
        charts = Charts(len(STREAMS) * len(sites))
        for ours, theirs in ((charts.state, self._charts.state), (charts.first, self._charts.first)):
            kept = theirs.reshape(len(theirs), len(STREAMS), len(self._sites))
            ours[:] = rearranged(kept, self._sites, sites, 0.0).reshape(len(ours), -1)
        self._charts = charts
        self._medians = rearranged(self._medians, self._sites, sites, np.nan)
        self._spreads = rearranged(self._spreads, self._sites, sites, np.nan)
        self._sites = sites
