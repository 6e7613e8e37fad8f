"""The block that went NaN or Inf first, and what it looked like before.

Once one tensor is non-finite the rest of the network follows within a step, so the useful word is *first*: the earliest step, and
within that step the place where the data flow turned bad. Every step is seen, so nothing depends on when somebody looked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from resmon.detectors.detector import Detector
from resmon.detectors.options import Tuned
from resmon.detectors.window import by_model, rearranged
from resmon.quantities import count
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    CALM,
    LEAST_SCALE,
    RUN_ENDED,
    SEARCH,
    Bools,
    Finding,
    Floats,
    Ints,
    ResidualSite,
    ScalarRecord,
    StepRecord,
)

SKIP, BRANCH, OUTPUT, GRADIENT, OUTPUT_GRADIENT = map(
    BLOCK_VALUES.index, ("skip_square", "branch_square", "output_square", "gradient_square", "output_gradient_square")
)
ELEMENTS, FORWARD, BACKWARD = map(BLOCK_COUNTS.index, ("elements", "nonfinite_forward", "nonfinite_backward"))

# What is remembered of a block's finite steps, in this order.
SIGNS = ("skip_rms", "branch_rms", "branch_skip_ratio", "gradient_norm", "output_gradient_norm")

HISTORY = 50  # steps back that tell what was usual
TOGETHER = 16  # finite steps that are written into the history at once, which costs a tenth
NAMES = 50  # names of blocks that the evidence lists; the count beside them is whole


@dataclass(frozen=True, slots=True)
class _Flags:
    """Which sites are non-finite in one step, [S] each."""

    skip: Bools
    forward: Bools
    backward: Bools
    gradient: Bools
    any: Bools

    @classmethod
    def of(cls, record: StepRecord) -> _Flags:
        broken = record.blocks_present & ~np.isfinite(record.blocks)
        nan = record.blocks_present & np.isnan(record.blocks)
        forward = record.counts[FORWARD] > 0
        # An infinite sum of squares whose output was counted and found finite is a norm that overflowed, not a non-finite
        # tensor: finite data has finite operands. Of parameter gradients there is no count, the sum must do.
        skip = nan[SKIP] | (broken[SKIP] & forward)
        forward = forward | skip | nan[BRANCH] | nan[OUTPUT]
        backward = (record.counts[BACKWARD] > 0) | nan[OUTPUT_GRADIENT]
        gradient = broken[GRADIENT]
        return cls(skip, forward, backward, gradient, forward | backward | gradient)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the history takes of a step."""

    step: int
    blocks: Floats
    present: Bools  # and finite, in a block that is
    elements: Ints


@dataclass(slots=True)
class _Episode:
    """One model being non-finite: from its first bad step until it was finite for CALM steps."""

    finding: Finding
    reached: set[str]  # blocks that were bad at any of its steps
    calm: int = 0
    steps: int = 1

    def closed(self, step: int, time: float, why: str) -> Finding:
        return self.finding.closed(step, time, why, nonfinite_steps=self.steps)


class NonFinite(Detector):
    """Non-finite activations and gradients by block, and a non-finite loss that no block explains.

    *Meaning.* `nonfinite` (page), one per model and episode: a residual add's operands, its result, the loss gradient at its result
    or the gradients of its parameters held NaN or Inf. The block named is the one that went first. At the earliest such step: the
    first in forward order whose add is non-finite (`born_before` where already its skip operand was: then the cause lies before it,
    and no watched block had it); if the forward pass was finite, the last in order whose output gradient is not, as the backward
    pass comes from there; if these are finite too, the last in order whose parameter gradients are not. Updated when it reaches
    further blocks, closed after 20 finite steps or with the run. `nonfinite_loss` (page): the logged `loss` was NaN or Inf at a
    step where no block was, so the fault lies behind the last block: the head, the loss function or the targets.

    *A gradient scaler* (float16) finds its scale by overflowing: it skips such a step, and its next one is with half the scale. So
    a skipped step whose forward pass was finite says nothing (but that the record calls it skipped), until more than 32 have been
    skipped in a row or the scale is below 1: then it is no search any more, and the finding is opened at that step, with all that
    it has; where no watched block is non-finite it names none. What the forward pass made non-finite no scale can help, and counts
    at once.

    *Evidence.* What the block showed at its last finite step and how many times the median of its last 50 finite steps that was: a
    branch/skip ratio or a gradient far above 1 says that it was coming, all near 1 that it came at once (bad input, a division, a
    logarithm of 0).

    *Expected false alarms.* A scaler of the loop's own, which resmon does not know, makes isolated steps with infinite gradients on
    a healthy model: such findings name only gradients, have confidence 0.6 and close by themselves. Blocks are compared in the
    order of the record; where a model runs them in another order than it was traced in, the block named is a follower.

    *Reference.* Where a fault is born against where it surfaces: transformers' DebugUnderflowOverflow reports the first module in
    forward order likewise; that a growing branch precedes it: Takase et al., Spike No More, arXiv 2312.16903.
    """

    name = "nonfinite"
    weight = "certain"

    def __init__(self, tuned: Tuned[Any] | None = None) -> None:
        super().__init__(tuned)
        self._sites: tuple[ResidualSite, ...] = ()
        self._models: dict[str, Ints] = {}
        self._history: Floats = np.empty((HISTORY, len(SIGNS), 0))
        self._history_steps = np.full(HISTORY, -1, np.int64)
        self._rows = 0
        self._waiting: list[_Seen] = []  # for the history
        self._newest = -1
        self._episodes: dict[str, _Episode] = {}
        self._bad_steps: deque[int] = deque(maxlen=1024)
        self._early_losses: deque[tuple[int, float, float]] = deque(maxlen=1024)  # logged before their step was recorded
        self._loss: _Episode | None = None
        self._skips = 0  # skipped steps in a row
        self._outside: _Episode | None = None  # steps are skipped without end, and no block says why

    def step(self, record: StepRecord, sites: Sequence[ResidualSite]) -> Iterable[Finding]:
        if sites is not self._sites:
            self._arrange(tuple(sites))
        if self._is_usual(record):
            self._newest, self._skips = record.step, 0
            self._remember(_Seen(record.step, record.blocks, record.blocks_present, record.counts[ELEMENTS]))
            return ()
        flags = _Flags.of(record)
        self._newest = record.step
        self._skips = self._skips + 1 if record.skipped else 0
        searching = self._searching(record)
        events: list[Finding] = []
        if flags.any.any() and not (searching and not flags.forward.any()):
            self._bad_steps.append(record.step)
        if self._episodes or flags.any.any():
            for model, mine in self._models.items():
                if model in self._episodes or not searching or flags.forward[mine].any():
                    events.extend(self._model_step(record, model, mine, flags))
        events.extend(self._judge_skipping(record, searching))
        finite = record.blocks_present & ~flags.any & np.isfinite(record.blocks)
        self._remember(_Seen(record.step, record.blocks, finite, record.counts[ELEMENTS]))
        while self._early_losses and self._early_losses[0][0] <= record.step:
            events.extend(self._judge_loss(*self._early_losses.popleft()))
        return events

    def scalars(self, record: ScalarRecord) -> Iterable[Finding]:
        loss = record.values.get("loss")
        if loss is None:
            return ()
        if record.step > self._newest:
            self._early_losses.append((record.step, record.time, loss))
            return ()
        return list(self._judge_loss(record.step, record.time, loss))

    def end(self, step: int, time: float) -> Iterable[Finding]:
        events = [event for early in self._early_losses for event in self._judge_loss(*early)]
        self._early_losses.clear()
        episodes = [*self._episodes.values(), *(each for each in (self._loss, self._outside) if each)]
        events += [episode.closed(step, time, RUN_ENDED) for episode in episodes]
        self._episodes.clear()
        self._loss = self._outside = None
        return events

    def _is_usual(self, record: StepRecord) -> bool:
        """Whether everything is finite and nothing is open, so that there is nothing to judge."""
        if record.skipped or self._episodes or self._outside is not None or self._early_losses:
            return False
        return bool(np.isfinite(record.blocks).all() and not record.counts[FORWARD : BACKWARD + 1].any())

    def _arrange(self, sites: tuple[ResidualSite, ...]) -> None:
        """Takes over a new set of sites; what is remembered of a site stays with it."""
        self._settle()
        self._history = rearranged(self._history, self._sites, sites, np.nan)
        self._sites = sites
        self._models = by_model(sites)

    def _remember(self, seen: _Seen) -> None:
        self._waiting.append(seen)
        if len(self._waiting) >= TOGETHER:
            self._settle()

    def _settle(self) -> None:
        """Write what waits into the history."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = (self._rows + np.arange(len(waiting))) % HISTORY
        self._rows += len(waiting)
        self._history_steps[rows] = [each.step for each in waiting]
        present = np.stack([each.present for each in waiting], axis=1)
        squares = np.where(present, np.stack([each.blocks for each in waiting], axis=1), np.nan)
        elements = np.stack([each.elements for each in waiting])
        with np.errstate(divide="ignore", invalid="ignore"):
            skip, branch = np.sqrt(squares[SKIP] / elements), np.sqrt(squares[BRANCH] / elements)
            signs = np.stack([skip, branch, branch / skip, np.sqrt(squares[GRADIENT]), np.sqrt(squares[OUTPUT_GRADIENT])], axis=1)
        signs[~np.isfinite(signs)] = np.nan
        self._history[rows] = signs

    def _model_step(self, record: StepRecord, model: str, mine: Ints, flags: _Flags) -> Iterator[Finding]:
        episode = self._episodes.get(model)
        bad = mine[flags.any[mine]]
        names = [self._sites[i].name for i in bad]
        if not names:
            ran = bool(record.counts[ELEMENTS, mine].any() or record.blocks_present[:, mine].any())
            if episode and ran:
                episode.calm += 1
                if episode.calm >= CALM:
                    del self._episodes[model]
                    yield episode.closed(record.step, record.time, f"all blocks were finite for {CALM} steps")
            return
        if episode is None:
            finding = self._opened(record, model, mine, flags, names)
            self._episodes[model] = _Episode(finding, set(names))
            yield finding
            return
        episode.calm = 0
        episode.steps += 1
        new = [name for name in names if name not in episode.reached]
        if new:
            episode.reached.update(new)
            in_order = [self._sites[i].name for i in mine if self._sites[i].name in episode.reached]
            before = episode.finding.evidence
            spread = {"blocks": in_order[:NAMES], "blocks_count": len(in_order), "nonfinite_steps": episode.steps}
            episode.finding = replace(
                episode.finding,
                state="updated",
                step=record.step,
                time=record.time,
                summary=f"{before['first']}; by step {record.step} it had reached {count(len(in_order), 'block')}.",
                evidence=before | spread,
            )
            yield episode.finding

    def _opened(self, record: StepRecord, model: str, mine: Ints, flags: _Flags, names: list[str]) -> Finding:
        direction, place, born_before = _first(mine, flags)
        site = self._sites[place]
        followers = [name for name in names if name != site.name]
        elements, forward, backward = (int(record.counts[each, place]) for each in (ELEMENTS, FORWARD, BACKWARD))
        where = f"{site.name} of {model}" if model else site.name
        later = [self._sites[i].name for i in mine if i > place]
        if direction == "forward" and born_before:
            said = (
                f"{where} is the first block that saw NaN or Inf, at step {record.step}: "
                "it was in its skip operand already, so born before it"
            )
        elif direction == "forward":
            said = f"{where} went non-finite first, at step {record.step}, in the forward pass: its skip operand was still finite"
        elif direction == "backward" and later:
            said = (
                f"{where} went non-finite first, at step {record.step}, in the backward pass, "
                f"on the way from {later[0]}, whose output gradient was still finite"
            )
        elif direction == "backward":
            said = (
                f"{where} went non-finite first, at step {record.step}, in the backward pass: "
                "its output's gradient was so already when it came from the head or the loss"
            )
        else:
            said = f"{where} went non-finite first, at step {record.step}: in the gradients of its parameters only"
        last_step, last, over = self._before(place)
        evidence: dict[str, Any] = {
            "direction": direction,
            "born_before": born_before,
            "elements": elements,
            "nonfinite_forward": forward,
            "nonfinite_backward": backward,
            "followers": followers[:NAMES],
            "followers_count": len(followers),
            "blocks": names[:NAMES],
            "blocks_count": len(names),
            "nonfinite_steps": 1,
            "last_finite_step": last_step,
            "last_finite": last,
            "last_finite_over_median": over,
        }
        followed = f"; {count(len(followers), 'other block')} in the same step" if followers else ""
        return Finding.opened(
            "nonfinite",
            "page",
            record.step,
            record.time,
            said,
            followed,
            model=model,
            block=site.name,
            expected="finite activations and gradients in every block",
            seen=_seen(direction, elements, forward, backward) + _coming(last_step, last, over),
            confidence=0.95 if direction == "forward" and not born_before else 0.8 if direction == "forward" else 0.6,
            runbook="nonfinite",
            evidence=evidence,
        )

    def _before(self, place: int) -> tuple[int | None, dict[str, float], dict[str, float]]:
        """The last finite step of a site, its values, and these over the median of the site's finite steps up to it."""
        self._settle()
        finite = np.isfinite(self._history[:, :, place])
        rows = np.flatnonzero(finite.any(axis=1))
        if not len(rows):
            return None, {}, {}
        newest = rows[np.argmax(self._history_steps[rows])]
        last = {sign: float(self._history[newest, k, place]) for k, sign in enumerate(SIGNS) if finite[newest, k]}
        over = {}
        for k, sign in enumerate(SIGNS):
            usual = float(np.median(self._history[finite[:, k], k, place])) if finite[:, k].any() else 0.0
            if sign in last and usual > 0:
                over[sign] = last[sign] / usual
        return int(self._history_steps[newest]), last, over

    def _searching(self, record: StepRecord) -> bool:
        """Whether this step was skipped by a scaler that may still find its scale."""
        scale = record.run_value("loss_scale")
        return record.skipped and self._skips <= SEARCH and (scale is None or scale >= LEAST_SCALE)

    def _judge_skipping(self, record: StepRecord, searching: bool) -> Iterator[Finding]:
        episode = self._outside
        if episode and not record.skipped:
            episode.calm += 1
            if episode.calm >= CALM:
                self._outside = None
                yield episode.closed(record.step, record.time, f"{CALM} steps in a row were not skipped")
        elif episode:
            episode.calm = 0
            episode.steps += 1
        elif record.skipped and not searching and not self._episodes:
            scale = record.run_value("loss_scale")
            said = (
                f"The gradient scaler has skipped {count(self._skips, 'step')} in a row, to step {record.step}"
                + (f" at a scale of {scale:g}," if scale is not None else ",")
                + " and no watched block is non-finite"
            )
            finding = Finding.opened(
                "nonfinite",
                "page",
                record.step,
                record.time,
                said,
                ": the gradients that are belong to other parameters",
                expected="a scale at which the gradients are finite",
                seen=f"{count(self._skips, 'skipped step')} in a row",
                confidence=0.8,
                runbook="nonfinite",
                evidence={"direction": "parameter_gradients", "nonfinite_steps": 1},
            )
            self._outside = _Episode(finding, set())
            yield finding

    def _judge_loss(self, step: int, time: float, loss: float) -> Iterator[Finding]:
        episode = self._loss
        if isfinite(loss):
            if episode:
                episode.calm += 1
                if episode.calm >= CALM:
                    self._loss = None
                    yield episode.closed(step, time, f"{CALM} logged losses were finite")
        elif episode:
            episode.calm = 0
            episode.steps += 1
        elif step not in self._bad_steps:
            said = f"The logged loss was {loss} at step {step} while every watched block was finite in the forward pass"
            finding = Finding.opened(
                "nonfinite_loss",
                "page",
                step,
                time,
                said,
                ": look behind the last block, at the head, the loss function and the targets",
                expected="a finite loss",
                seen=str(loss),
                confidence=0.9,
                runbook="nonfinite",
                evidence={"loss": str(loss), "nonfinite_steps": 1},
            )
            self._loss = _Episode(finding, set())
            yield finding


def _first(mine: Ints, flags: _Flags) -> tuple[str, int, bool]:
    """Where a step turned bad first: the direction, the site's index, and whether it was bad before it came there."""
    forward = mine[flags.forward[mine]]
    if len(forward):
        return "forward", int(forward[0]), bool(flags.skip[forward[0]])
    backward = mine[flags.backward[mine]]
    if len(backward):
        return "backward", int(backward[-1]), False
    return "parameter_gradients", int(mine[flags.gradient[mine]][-1]), False


def _seen(direction: str, elements: int, forward: int, backward: int) -> str:
    if direction == "parameter_gradients":
        return "non-finite gradients of its parameters"
    broken, what = (forward, "its output") if direction == "forward" else (backward, "its output's gradient")
    return f"{broken} of {elements} elements of {what}" if broken and elements else f"non-finite elements in {what}"


def _coming(step: int | None, last: dict[str, float], over: dict[str, float]) -> str:
    if step is None:
        return "; no finite step of it is known"
    told = [
        f"{words} {last[sign]:.3g}" + (f" ({over[sign]:.3g} times its median)" if sign in over else "")
        for sign, words in (("branch_skip_ratio", "branch/skip"), ("branch_rms", "branch RMS"), ("gradient_norm", "gradient norm"))
        if sign in last
    ]
    return f"; at its last finite step, {step}: {', '.join(told)}" if told else ""
