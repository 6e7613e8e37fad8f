"""A level or a spread that leaves what it was, in any stream of any block or of the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from resmon.detectors.charts import e_value, probability
from resmon.detectors.detector import Detector, Weight
from resmon.detectors.episode import RUN, Account, Episodes
from resmon.detectors.loss_level import LossLevel
from resmon.detectors.options import Options, Tuned
from resmon.detectors.streams import Moved, Streams
from resmon.detectors.window import WINDOW, Window
from resmon.quantities import count, number
from resmon.records import Finding, Floats, Ints

OF_BLOCKS = {
    "skip_rms": "skip RMS",
    "branch_rms": "branch RMS",
    "branch_skip_ratio": "branch/skip ratio",
    "gradient_norm": "gradient norm",
    "output_gradient_norm": "output gradient norm",
}
RUN_ALONE = (RUN,)  # one and the same: streams are arranged anew for other sites
OF_RUN = {"loss": "loss", "gradient_norm": "gradient norm of the model"}
BEGIN = 64  # windows before anything is said: a run that begins learns faster than any forecast follows
EXPLAINED = 1.2  # times that the learning rate or the batch moved since shortly before the change
BEFORE = 4  # windows: so shortly
SCHEDULE = 1024  # windows of which both are known: a loss that is seldom logged changes slowly
ALL = 0.75  # part of a model's blocks that move together as one: the network's change
TOLD = 8  # windows after which what was told is over: the new level is learnt by then
LISTED = 20  # streams in the evidence


class ChangeOptions(Options):
    evidence: float = Field(default=40.0, ge=5, description="of the charts, that a stream must reach (charts.py)")
    factor: float = Field(default=1.25, gt=1, description="times that a stream's level must have moved")
    noises: float = Field(default=2.0, gt=0, description="standard deviations of a stream's noise that its level must have moved")
    wider: float = Field(default=2.5, gt=1, description="times its standard deviation that a stream's spread must have become")
    rate: float = Field(default=1e-4, gt=0, lt=1, description="share of false ones among the streams that are told, a window")


class Change(Detector):
    """Sequential charts over every stream of every block and of the run, with one false-discovery rate for all.

    *Formula.* The logarithms of five statistics of each block (skip and branch RMS, their ratio, both gradient norms), of the
    logged training loss and of the model's gradient norm, step by step, go through `charts.Charts`, which say of each stream how
    much evidence there is that it changed, since when and by how much. Of m streams the evidence of each in a window becomes a
    p-value and that an e-value; told are those k whose e-values are the largest, for the largest k with e_(k) >= m / (rate k),
    which bounds the expected share of false ones at `rate` however the streams depend on each other. Of these a stream counts
    whose evidence is 40, whose median of the newest window is at least 1.25 times above or below that of the windows before the
    change, and whose level moved by 2 standard deviations of its noise (8 where it was a chart of the spread that spoke); or whose
    noise, the mean distance from a window's median, became 2.5 times as large. A loss that falls is what everybody wants.

    *Meaning.* `change` (ticket, a symptom: it stands in the evidence of what explains it). One finding a model: the block whose
    stream changed first and its followers; where three quarters of the blocks move together it is the network that changed. The
    loss and the model's gradient norm stand in its evidence, and are a finding without a block where no block moved. The evidence
    lists the streams, by how much they moved, and their charts.

    *Trade-off.* Where the learning rate, or the number of samples that most steps have, is more than 1.2 times above or below what
    it was shortly before, it explains the change: nothing is said, and the streams learn anew. So do streams that were told of: a
    new level is news once. Nothing is said in the first 64 windows, in which a run learns faster than a forecast follows, nor of
    what has lasted for less than half a window, and a lasting change of less than a quarter is nobody's concern. A loss that was
    ever negative has no logarithm and is not followed here; loss_divergence follows it.

    *Delay.* A level that doubles, with noise of 5 %: 16 to 48 steps.

    *Expected false alarms.* Eight tickets on 1,018,000 steps of the fault bench's healthy trainings, two of them shortly after a
    warm restart of the learning rate. None on streams that only learn (tests/detectors/test_change.py).

    *Reference.* charts.py for the charts; Wang and Ramdas, "False discovery rate control with e-values", arXiv 2009.02824 (e-BH).
    """

    name = "change"
    options = ChangeOptions
    weight: ClassVar[Weight] = "symptom"

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._blocks = Streams(tuple(OF_BLOCKS))
        self._run = Streams(tuple(OF_RUN))
        self._loss = LossLevel()
        # Of windows: their first steps and learning rates, and likewise batches.
        self._rates: deque[tuple[int, float]] = deque(maxlen=SCHEDULE)
        self._batches: deque[tuple[int, float]] = deque(maxlen=2 * SCHEDULE)
        self._seen = 0  # windows
        over = "the new level has become the usual one"
        self._of_blocks = Episodes(self.name, runbook="change", lasts=1, calm=TOLD, over=over)
        self._of_run = Episodes(self.name, runbook="change", lasts=1, calm=TOLD, over=over)

    def window(self, window: Window) -> Iterable[Finding]:
        self._seen += 1
        rate = window.run("learning_rate")
        known = rate[rate > 0]
        if len(known):
            self._rates.append((window.first_step, float(np.median(known))))
        for half in np.array_split(window.run("samples"), 2):  # one that changes within a window is known in it
            low, batch, high = np.quantile(half, (0.25, 0.5, 0.75), method="nearest") if len(half) else (0, 0, 1)
            if low == high:  # batches that are as long as their texts have no size that could change
                self._batches.append((window.first_step, float(batch)))
        of_blocks, of_run = self._changed(window)
        if self._seen <= BEGIN:  # it has been seen, and is no news later
            of_blocks, of_run = [], []
        bad = np.zeros(len(window.sites), bool)
        guilt = np.full(len(window.sites), -np.inf)
        earliest = max((each.ago for each in of_blocks), default=0)
        for each in of_blocks:
            bad[each.site] = True
            if each.ago > earliest - WINDOW:  # when a change began is known to some steps; which is clearer came first
                guilt[each.site] = max(guilt[each.site], each.evidence)
        bad &= self.watched(window)

        def tell(lead: int, blocks: Ints) -> Account:
            clearest = max((each for each in of_blocks if each.site == lead), key=_evidence)
            name, site = OF_BLOCKS[clearest.statistic], window.sites[lead]
            together = len(blocks) >= ALL * len(window.models[site.model]) and len(blocks) > 2
            where = f"nearly all blocks (first in {site.name})" if together else site.name
            more = f", together with {count(len(blocks) - 1, 'other block')}" if len(blocks) > 1 and not together else ""
            evidence = {"network": together} | _listed([*of_blocks, *of_run])
            return _account(f"{name} in {where}", clearest, more, evidence)

        def tell_of_run() -> Account:
            clearest = max(of_run, key=_evidence)
            return _account(OF_RUN[clearest.statistic], clearest, "", _listed([*of_blocks, *of_run]))

        yield from self._of_blocks.take(window, bad, tell, guilt=guilt)
        # Blocks that moved with it say more than it does.
        alone = bool(of_run) and self.tuned.everywhere.enabled and not self._of_blocks.any_open
        yield from self._of_run.run(window, alone, tell_of_run)

    def _changed(self, window: Window) -> tuple[list[Moved], list[Moved]]:
        """The streams of blocks that changed, and those of the run."""
        blocks = np.stack([window.blocks(name) for name in OF_BLOCKS], axis=1)
        of_blocks = self._blocks.take(window, window.sites, blocks).ravel()
        self._loss.take(window)
        run = np.stack([self._loss.values, np.sqrt(window.run("gradient_square"))], axis=1)[:, :, None]
        of_run = self._run.take(window, RUN_ALONE, run).ravel()
        limits = np.tile(self.tuned.column("evidence", window.sites), len(OF_BLOCKS))
        evidence = np.r_[of_blocks, of_run]
        reached = np.flatnonzero(evidence >= np.r_[limits, np.full(len(of_run), self.tuned.everywhere.evidence)])
        if not len(reached):
            return [], []
        split, sites = len(of_blocks), len(window.sites)
        # A change that has hardly begun waits for the next window, where a spike is over.
        reached = np.array(
            [
                i
                for i in reached.tolist()
                if (self._blocks.is_settled(*divmod(i, sites)) if i < split else self._run.is_settled(i - split, 0))
            ],
            np.int64,
        )
        found = self._discovered(evidence, reached)
        changed = [
            self._blocks.moved(k, s, blocks[:, k, s], *self._least(window.sites[s].name))
            for k, s in (divmod(i, sites) for i in found if i < split)
        ]
        run_changed = [
            self._run.moved(k, 0, run[:, k, 0], *self._least(RUN.name)) for k in (i - split for i in found if i >= split)
        ]
        # Whatever is made of it, it has been seen: the level is learnt anew.
        self._blocks.forget(reached[reached < split])
        self._run.forget(reached[reached >= split] - split)
        return (
            [each for each in changed if self._counts(each)],
            [each for each in run_changed if self._counts(each) and (each.statistic, each.direction) != ("loss", "down")],
        )

    def _discovered(self, evidence: Floats, reached: Ints) -> list[int]:
        """Of the streams that reached their limit those that are told at the rate of false discoveries."""
        values = sorted(((e_value(probability(float(evidence[i]), WINDOW)), int(i)) for i in reached), reverse=True)
        needed = len(evidence) / self.tuned.everywhere.rate
        told = max((k for k, (value, _) in enumerate(values, 1) if value >= needed / k), default=0)
        return [stream for _, stream in values[:told]]

    def _least(self, block: str) -> tuple[float, float]:
        """Factor and noises that a level must have moved by."""
        return self.tuned.at(block, "factor"), self.tuned.at(block, "noises")

    def _counts(self, moved: Moved) -> bool:
        if moved.direction is None or self._is_explained(moved.since):
            return False
        return moved.direction != "wider" or moved.factor >= self.tuned.at(moved.block, "wider")

    def _is_explained(self, since: int) -> bool:
        """Whether the learning rate or the batch moved since shortly before."""
        for course in (self._rates, self._batches):
            values = [value for step, value in course if step > since - (BEFORE + 1) * WINDOW]
            if values and max(values) > EXPLAINED * min(values):
                return True
        return False


def _evidence(moved: Moved) -> float:
    return moved.evidence


def _account(what: str, moved: Moved, more: str, evidence: dict[str, Any]) -> Account:
    times, evidence = number(moved.factor), {"since": moved.since} | evidence
    if moved.direction == "wider":
        return Account(
            "ticket",
            f"The noise of the {what} became {times} times as large since about step {moved.since}{more}",
            expected="the spread of the windows before",
            seen=f"{times} times that, by the {moved.chart} chart",
            confidence=0.7,
            evidence=evidence,
        )
    return Account(
        "ticket",
        f"The {what} changed by a factor of {times} since about step {moved.since}{more}",
        expected=f"{number(moved.now / moved.factor)}, as in the windows before",
        seen=f"{number(moved.now)}, {number(moved.noises)} standard deviations of its noise away, by the {moved.chart} chart",
        confidence=0.8,
        evidence=evidence,
    )


def _listed(found: Sequence[Moved]) -> dict[str, Any]:
    """The streams that changed, the clearest first; one of the run has no block."""
    streams = [
        {
            "block": each.block,
            "statistic": each.statistic,
            "direction": each.direction,
            "factor": each.factor,
            "chart": each.chart,
            "evidence": each.evidence,
        }
        for each in sorted(found, key=_evidence, reverse=True)
    ]
    return {"streams": streams[:LISTED], "streams_count": len(streams)}
