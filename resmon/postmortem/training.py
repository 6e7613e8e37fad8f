"""Causes that let a run go on and make it learn badly or slowly: what speaks for each."""

from __future__ import annotations

import numpy as np

from resmon.postmortem.evidence import FAIR, STRONG, WEAK, Scales
from resmon.quantities import count, duration, listed, number
from resmon.records import PHASES, Floats

# Thresholds of the weights, as ratios or shares unless said otherwise.
EXPLODED = 10.0  # of a root mean square over what was usual, or its inverse
VANISHED = 1e-7  # a gradient norm: a usual limit of what has vanished
FADED, EVEN = 1e-3, 1e-2  # the earliest blocks' output gradients over the last one's
RISEN = 0.1  # of the validation score over its best
SLOWER, SLOW = 1.3, 2.0  # of the step time over what was usual
STRETCH = 8  # steps whose median is a step time
LASTS = 4  # stretches that a slowdown lasts
MINUTE = 60.0  # that it lasts where it has no place in the step; a machine that others use is slow for a while
PARTS = {"data": "waiting for data", "forward": "the forward pass", "backward": "the backward pass", "optimizer": "the optimizer"}


def vanishing(on: Scales) -> None:
    flowing = on.of_blocks("output_gradient_norm")
    own = on.of_blocks("gradient_norm")
    faded = [sign for sign in on.departed("branch_skip_ratio") if sign.seen < sign.usual / EXPLODED]
    exploded = [sign for sign in on.departed("output_rms") if sign.factor > EXPLODED]
    if exploded:
        sign = exploded[0]
        on.add(
            -STRONG, f"The activations of {sign.block} had exploded at step {sign.step:,}, and that leaves nothing of gradients."
        )
    if flowing is None and own is None:
        on.cannot_see("No gradients of blocks were recorded.")
    if flowing is not None:
        known = flowing[np.isfinite(flowing)]
        if len(known) >= 2 and known[-1] > 0:
            share = known[0] / known[-1]
            said = f"The loss gradient at the first block is {number(share)} of that at the last one"
            if share < FADED:
                on.add(STRONG if share < FADED**2 else FAIR, f"{said}: it fades on its way.")
            elif share > EVEN and not faded:
                on.add(-FAIR, f"{said}: it does not fade.")
    if own is not None:
        dead = [name for name, value in zip(on.case.blocks, own, strict=True) if value < VANISHED]
        if dead:
            on.add(
                STRONG if len(dead) > len(own) // 2 else FAIR,
                f"{count(len(dead), 'block')} of {len(own):,} have gradients below {VANISHED:g}: {listed(dead)}.",
            )
        elif np.isfinite(own).any() and not faded:
            on.add(-FAIR, f"The smallest gradient norm of a block is {number(float(np.nanmin(own)))}.")
    if faded:
        sign = faded[0]
        rest = f", {number(sign.seen)} after {number(sign.usual)}" if sign.seen else f" ({number(sign.usual)} before)"
        became = "adds nothing any more" if not sign.seen else "adds far less than before"
        on.add(STRONG if not sign.seen else FAIR, f"The branch of {sign.block} {became} from step {sign.step:,} on{rest}.")


def overfitting(on: Scales) -> None:
    """The detector knows the noise of the scores, so that a rise counts only where it found one."""
    if not on.case.gaps:
        on.cannot_see("No score was logged of both training and validation (val_loss beside loss), so there is no gap to look at.")
        return
    found = any(finding.kind == "overfitting" for finding in on.case.findings)
    for score, (steps, training, validation) in on.case.gaps.items():
        if len(steps) < 3 or "loss" not in score or not np.isfinite(validation).any():
            continue
        best = int(np.nanargmin(validation))
        newest = float(np.median(validation[-3:]))  # one validation alone may be a bad draw
        risen = newest / validation[best] - 1 if validation[best] > 0 else 0.0
        said = (
            f"Validation {score} was best at step {steps[best]:,} ({number(float(validation[best]))}) and is "
            f"{number(float(validation[-1]))} at step {steps[-1]:,}, while training {score} went from "
            f"{number(float(training[best]))} to {number(float(training[-1]))}."
        )
        if risen <= RISEN / 2:
            on.add(-STRONG, said)
        elif training[-1] < training[best] and found:
            on.add(FAIR, said)
        else:
            on.add(0.0 if found else -WEAK, said if found else f"{said[:-1]}: no more than such scores vary.")
    if not on.evidence:
        on.cannot_see("There were too few validations of a loss to see a trend.")


def stochastic_depth(on: Scales) -> None:
    values = on.case.window.blocks.get("keep_ratio")
    if values is None or not np.isfinite(values).any():
        if on.case.window.blocks:
            on.add(-STRONG, "No random operation drops the branch of any block.")
        else:
            on.cannot_see("No blocks were recorded.")
        return
    there = np.isfinite(values).any(axis=0)
    kept = np.full(values.shape[1], np.nan)
    kept[there] = np.nanmean(np.where(np.isfinite(values[:, there]), values[:, there], np.nan), axis=0)
    names = on.case.blocks
    never = [names[i] for i in np.flatnonzero(kept == 0)]
    rare = [names[i] for i in np.flatnonzero((kept > 0) & (kept < 0.5))]
    if never:
        on.add(STRONG, f"The branches of {listed(never)} were never kept, so their blocks learn nothing.")
    if rare:
        on.add(
            FAIR,
            f"{listed(rare)} kept fewer than half of their branches; in evaluation they add far more than they did in training.",
        )
    if not never and not rare:
        low, high = float(np.nanmin(kept)), float(np.nanmax(kept))
        on.add(-WEAK, f"Branches were kept at rates from {number(low)} to {number(high)}, as stochastic depth usually has them.")
    rising = np.flatnonzero(np.diff(kept[there]) > 0.2)
    if len(rising):
        on.add(WEAK, "A deeper block is kept clearly more often than the one before it, against the usual linear rule.")


def latency(on: Scales) -> None:
    durations = _known(on, "duration")
    if len(durations) < 4 * STRETCH:
        on.cannot_see("Too few step times were recorded.")
        return
    lasts = min(LASTS, len(durations) // (4 * STRETCH))
    usual, recent = _paces(durations, lasts)
    middle, now = float(np.median(usual)), float(recent.min())
    said = f"A step took {duration(now)} in the end; {duration(middle)} was usual before."
    # What happened before is no news.
    factor = now / middle
    if factor < SLOWER or now < SLOWER * usual.max():
        on.add(-STRONG if factor < SLOWER else -WEAK, said)
        return
    # What is wrong in a script has a place in the step; what else takes the processor hits now one part of it and now another.
    places = {}
    for name in PHASES:
        known = _known(on, f"{name}_seconds")
        if len(known) >= 4 * STRETCH * lasts:
            before, after = _paces(known, lasts)
            rise = after - float(np.median(before))
            if (rise > (recent - middle) / 2).all():
                places[name] = float(np.median(rise))
    lasted = float(durations[-lasts * STRETCH :].sum())
    if not places and lasted < MINUTE:
        on.add(0.0, f"{said[:-1]}, for {duration(lasted)} and in no one part of the step, as on a machine that others use.")
        return
    on.add(0.0 if len(usual) < 8 and factor < SLOW else STRONG if factor >= SLOW else FAIR, said)
    for name, more in places.items():
        on.add(WEAK, f"{duration(more)} more of each step went into {PARTS[name]}.")


def _known(on: Scales, name: str) -> Floats:
    """A value of the run up to what can hold a cause, without the first step, which finds the blocks."""
    values = on.case.window.run.get(name, np.empty(0))[: on.before]
    known: Floats = values[np.isfinite(values)][1:]
    return known


def _paces(values: Floats, lasts: int) -> tuple[Floats, Floats]:
    """Medians of stretches of steps: of the first half's, and of so many of the newest."""
    first = values[: len(values) // 2 // STRETCH * STRETCH].reshape(-1, STRETCH)
    return np.median(first, axis=1), np.median(values[-lasts * STRETCH :].reshape(-1, STRETCH), axis=1)
