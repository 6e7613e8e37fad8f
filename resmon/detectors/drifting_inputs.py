"""What comes into the model has changed, while the model has hardly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import exp
from typing import Any

import numpy as np
from pydantic import Field

from resmon.detectors.detector import Detector
from resmon.detectors.episode import Account, Episodes
from resmon.detectors.history import History
from resmon.detectors.noise import MAD
from resmon.detectors.options import Options, Tuned
from resmon.detectors.schedule import Schedule
from resmon.detectors.window import Window, median
from resmon.quantities import number
from resmon.records import Bools, Finding, Floats, Ints

NEWEST, GAP, REFERENCE = 4, 8, 12  # windows that are looked at, that lie between, and that they are compared with
BEGIN = 28  # windows before anything is said
TOLERANCE = 0.01  # that a level may wander even where it never did, on the log scale
MOST = 0.75  # share of a model's blocks that are to move for "all of them"


class DriftingInputsOptions(Options):
    factor: float = Field(default=1.094, gt=1, description="times its level that the stream at the first block must be off")
    spreads: float = Field(default=3.6, gt=0, description="times its usual spread that it must be off")
    branches: float = Field(
        default=1.5, gt=1, description="times their levels that branches must be off, where nearly all of them move"
    )
    branch_spreads: float = Field(default=4.0, gt=0, description="times their spreads that they must be off")
    shift: float = Field(default=0.1, gt=0, description="parts of their RMS that the mean of the model's inputs must be off")
    windows: int = Field(default=3, ge=1, description="windows of 16 steps in a row until a ticket")


class DriftingInputs(Detector):
    """The model's inputs, the stream as it enters the first block, and all branches at once, against their own levels and trends.

    *Formula.* Over windows of 16 steps x = log RMS of the inputs (of tokens: of their numbers) and their mean in parts of their
    RMS; log median(skip_rms) of each model's first block; and log median(branch_rms) of all blocks. The newest 4
    windows' median is compared with 12 windows that end 8 windows before: with their median, and with where their trend (the
    difference of their halves) leads to. d is the smaller of both where they agree in direction, else 0; s is the robust spread of
    the 12 around their trend. Bad is one of these, the last two only where the learning rate is at most 1.25 times the smallest of
    the reference:

        inputs: d >= log 1.094 of their RMS or d >= 0.1 of their mean, and d >= 3.6 (s + 0.01)
        first block: d >= log 1.094 and d >= 3.6 (s + 0.01)
        three quarters of the blocks: d >= log 1.5 and d >= 4 (s + 0.01)

    *Meaning.* `drifting_inputs` (ticket): what stands before the first block (a stem, an embedding) learns slowly; if what it gives
    changes within some hundred steps and no learning rate rose, the data did: other units, a normalisation that was lost, a shard
    or a source that ended, noise, tokens of another kind. The same may come of a stem that was changed or loaded anew.

    Of inputs that moved themselves the finding names no block, and says nothing of blocks that move with them.

    *Trade-off.* A normalisation before the first block hides a scale; tokens that are others, but as usual in sum, move nothing
    here. A change that takes longer than 24 windows is a trend. Nothing is said in the first 28 windows.

    *Delay.* A sudden change: 64 to 96 steps. One over 300 steps: 96 to 240.

    *Expected false alarms.* None on 1,018,000 steps of the fault bench's healthy trainings, where the largest was half of what it
    takes for the first block and 0.7 of what it takes for the branches (on 176,000 of them).

    *Reference.* Covariate shift and its detection: Rabanser et al., "Failing Loudly", arXiv 1810.11953.
    """

    name = "drifting_inputs"
    options = DriftingInputsOptions

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        length = NEWEST + GAP + REFERENCE
        self._stream, self._branches = History(length), History(length)
        self._inputs: deque[tuple[float, float]] = deque(maxlen=length)  # log RMS, and mean in parts of it
        self._schedule = Schedule(length, REFERENCE)
        self._seen = 0  # windows
        lasts, over = self.tuned.everywhere.windows, "what comes in is settled"
        self._episodes = Episodes(self.name, runbook="drifting-inputs", lasts=lasts, over=over)
        self._of_inputs = Episodes(self.name, runbook="drifting-inputs", lasts=lasts, over=over)

    def window(self, window: Window) -> Iterable[Finding]:
        sites = window.sites
        self._stream.arrange(sites)
        self._branches.arrange(sites)
        skip, branch = window.median("skip_rms"), window.median("branch_rms")
        with np.errstate(divide="ignore", invalid="ignore"):
            self._stream.push(np.where(skip > 0, np.log(skip), np.nan))
            self._branches.push(np.where(branch > 0, np.log(branch), np.nan))
        self._seen += 1
        length = NEWEST + GAP + REFERENCE
        self._schedule.take(window)
        events, inputs_are_bad = self._judge_inputs(window)
        bad, moved, spreads = np.zeros(len(sites), bool), np.zeros(len(sites)), np.zeros(len(sites))
        everywhere = np.zeros(len(sites), bool)
        if self._seen > BEGIN and not inputs_are_bad and not self._schedule.rose:
            streams, branches = self._stream.newest(length), self._branches.newest(length)
            for mine in window.models.values():
                first = mine[:1]
                if _may(streams[:, first], np.log(self.tuned.column("factor", sites)[first])) > 0:
                    moved[first], spreads[first] = _off(streams[:, first])
                    bad[first] = self._far(moved[first], spreads[first], window, first, "factor", "spreads")
                if len(mine) > 2 and _may(branches[:, mine], np.log(self.tuned.column("branches", sites)[mine])) >= MOST:
                    far = self._far(*_off(branches[:, mine]), window, mine, "branches", "branch_spreads")
                    everywhere[first] = np.count_nonzero(far) >= MOST * len(mine)
        bad = (bad | everywhere) & self.watched(window)

        def tell(lead: int, _all: Ints) -> Account:
            site, since = sites[lead], self._episodes.since(lead)
            if bad[lead] and not everywhere[lead]:
                factor = exp(moved[lead])
                return Account(
                    "ticket",
                    f"What comes into the first block, {site.name}, has changed since about step {since}",
                    expected=f"a stream with an RMS near {number(skip[lead] / factor)}, as its level and trend were",
                    seen=f"{number(skip[lead])}, {number(factor)} times that, while the learning rate did not rise",
                    confidence=0.7,
                    evidence={"skip_rms": skip[lead], "factor": factor, "spreads": spreads[lead]},
                )
            return Account(
                "ticket",
                f"The branches of nearly all blocks from {site.name} on give other amounts since about step {since}",
                expected="branches that go on from their levels and trends, as the learning rate did not rise",
                seen=f"moves by a factor of {self.tuned.at(site.name, 'branches')} and more in {MOST:.0%} of the blocks",
                confidence=0.6,
                evidence={"skip_rms": skip[lead], "factor": exp(moved[lead]), "spreads": spreads[lead]},
            )

        return [*events, *self._episodes.take(window, bad, tell)]

    def _judge_inputs(self, window: Window) -> tuple[list[Finding], bool]:
        """What is said of the model's inputs themselves, and whether they are off."""
        elements, total, square = (np.nansum(window.run(f"input_{name}")) for name in ("elements", "sum", "square"))
        rms, share = (square / elements) ** 0.5 if elements else np.nan, np.nan
        if rms > 0:
            share = total / elements / rms
        self._inputs.append((float(np.log(rms)) if rms > 0 else np.nan, float(share)))
        bad, moved, spreads = False, np.zeros(2), np.zeros(2)
        if self._seen > BEGIN and not np.isnan(self._inputs[-1][0]):
            moved, spreads = _off(np.array(self._inputs))
            options = self.tuned.everywhere
            limits = np.array([np.log(options.factor), options.shift])
            bad = options.enabled and bool(((np.abs(moved) >= limits) & (spreads >= options.spreads)).any())

        def tell() -> Account:
            now, level = exp(self._inputs[-1][0]), exp(self._inputs[-1][0] - moved[0])
            return Account(
                "ticket",
                f"The model's inputs have changed since about step {self._of_inputs.since(0)}",
                expected=f"an RMS near {number(level)} and a mean near {number(self._inputs[-1][1] - moved[1])} of it",
                seen=f"an RMS of {number(now)} and a mean of {number(self._inputs[-1][1])} of it",
                confidence=0.9,
                evidence={"input_rms": now, "factor": exp(moved[0]), "mean_moved": moved[1], "spreads": spreads.max()},
            )

        return list(self._of_inputs.run(window, bad, tell)), bad

    def _far(self, moved: Floats, spreads: Floats, window: Window, places: Ints, factor: str, times: str) -> Bools:
        far: Bools = (np.abs(moved) >= np.log(self.tuned.column(factor, window.sites)[places])) & (
            spreads >= self.tuned.column(times, window.sites)[places]
        )
        return far


def _may(levels: Floats, limit: Floats) -> float:
    """The share of blocks that may be off by so much: what costs little to know, and is seldom."""
    apart = np.abs(levels[-NEWEST:].mean(axis=0) - levels[:REFERENCE].mean(axis=0))
    return np.count_nonzero(apart >= limit / 2) / len(limit)


def _off(levels: Floats) -> tuple[Floats, Floats]:
    """How far the newest levels are off those of the reference and off their trend, and how many spreads that is; 0 if unknown."""
    reference, half = levels[:REFERENCE], REFERENCE // 2
    first, second = reference[:half].mean(axis=0), reference[half:].mean(axis=0)
    middle, slope = (first + second) / 2, (second - first) / half
    now = median(levels[-NEWEST:], NEWEST)
    ahead = (REFERENCE + NEWEST) / 2 + GAP
    place = np.arange(REFERENCE) - (REFERENCE - 1) / 2
    around = reference - middle - slope * place[:, None]
    spread = MAD * median(np.abs(around - median(around)))
    level, trend = now - median(reference), now - middle - slope * ahead
    off = np.where(level * trend > 0, np.sign(level) * np.minimum(np.abs(level), np.abs(trend)), 0.0)
    return off, np.nan_to_num(np.abs(off) / (spread + TOLERANCE))
