"""Probable causes: each way in which a residual network fails, with what speaks for it and against it in this flight.

`CAUSES` is the table. Each cause has a function that looks at the case and gives evidence: a sentence with the numbers, and a
weight. Weights are decades of likelihood, as in Good's weight of evidence (1950): +1 says that what was seen is ten times as likely
where this is the cause as where it is not, -1 the reverse; those of one cause add up. They are judgements, not measured
frequencies, so the order is a suggestion of what to look at first and the sum no probability. A cause of which nothing could be
seen has no sum: it cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from resmon.postmortem.case import Case
from resmon.postmortem.departures import Departure, leading_up
from resmon.postmortem.quantities import became, count, duration, listed, number, size
from resmon.records import Floats

PROVEN, STRONG, FAIR, WEAK = 3.0, 2.0, 1.0, 0.5

# The verdict of a sum of weights, from the highest.
VERDICTS = ((3.0, "very likely"), (1.5, "likely"), (0.5, "possible"), (-0.5, "not indicated"), (-math.inf, "unlikely"))
CANNOT_TELL = "cannot tell"

RECENT = 8  # steps up to the trouble
# Thresholds of the weights, as ratios or shares unless said otherwise.
EXPLODED, GREW, CALM = 10.0, 3.0, 1.5  # of a gradient norm or a root mean square over what was usual
VANISHED = 1e-7  # a gradient norm: below it others call it vanished (FACTS.md)
FADED, EVEN = 1e-3, 1e-2  # the earliest blocks' output gradients over the last one's
LITTLE_ROOM, MUCH_ROOM = 2.0, 6.0  # doublings until a 16-bit number overflows
FULL, ROOMY = 0.05, 0.25  # free memory as a share of what could be had
RISEN = 0.1  # of the validation score over its best
SLOWER, SLOW = 1.3, 2.0  # of the step time over what was usual
PARTS = {"data": "waiting for data", "forward": "the forward pass", "backward": "the backward pass", "optimizer": "the optimizer"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that was seen, and how much it says."""

    weight: float
    text: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A cause as this flight shows it."""

    key: str
    title: str
    meaning: str
    evidence: tuple[Evidence, ...]  # the heaviest first
    unknown: tuple[str, ...]  # what would have told, and is not there
    runbook: str  # its name; "" where there is none
    actions: tuple[str, ...]

    @property
    def score(self) -> float | None:
        return sum(each.weight for each in self.evidence) if self.evidence else None

    @property
    def verdict(self) -> str:
        score = self.score
        return CANNOT_TELL if score is None else next(word for least, word in VERDICTS if score >= least)

    @property
    def is_indicated(self) -> bool:
        return self.score is not None and self.score >= WEAK

    def pointing(self, *, towards: bool) -> tuple[Evidence, ...]:
        return tuple(each for each in self.evidence if (each.weight > 0) == towards)


class Scales:
    """What a cause's function puts its evidence on."""

    def __init__(self, case: Case, first_signs: Sequence[Departure]) -> None:
        self.case = case
        self.signs = first_signs
        self.leading = leading_up(first_signs, self.kinds())
        self.evidence: list[Evidence] = []
        self.unknown: list[str] = []

    def add(self, weight: float, text: str) -> None:
        self.evidence.append(Evidence(weight, text))

    def cannot_see(self, text: str) -> None:
        self.unknown.append(text)

    def kinds(self) -> set[str]:
        """The kinds of the incidents, and how it ended."""
        return {each.kind for each in self.case.incidents} | {self.case.outcome}

    def nonfinite(self) -> bool:
        return "nonfinite" in self.kinds() or any(finding.kind.startswith("nonfinite") for finding in self.case.findings)

    def of_run(self, name: str) -> tuple[float, float] | None:
        """What was usual of a value, the median of the window's first half, and the largest of its newest; None if unknown."""
        return _usual_and_recent(self.case.window.run.get(name))

    def of_blocks(self, statistic: str) -> Floats | None:
        """Of the newest steps the median of each block, in depth order; None where none is known."""
        values = self.case.window.blocks.get(statistic)
        if values is None or not len(values):
            return None
        newest = np.where(np.isfinite(values[-RECENT:]), values[-RECENT:], np.nan)
        there = np.isfinite(newest).any(axis=0)
        medians = np.full(values.shape[1], np.nan)
        medians[there] = np.nanmedian(newest[:, there], axis=0)
        return medians if there.any() else None

    def departed(self, *statistics: str) -> list[Departure]:
        return [sign for sign in self.signs if sign.statistic in statistics]


def _usual_and_recent(values: Floats | None) -> tuple[float, float] | None:
    if values is None:
        return None
    values = values[~np.isnan(values)]
    usual = values[: max(1, len(values) // 2)]
    usual = usual[np.isfinite(usual)]
    if len(values) < 4 or not len(usual):
        return None
    recent = values[-min(RECENT, len(values) // 4) :]
    return float(np.median(usual)), float(np.max(recent))


# -- each cause -----------------------------------------------------------------------------------------------------------


def _shape_mismatch(on: Scales) -> None:
    named = [each for each in on.case.incidents if each.kind == "shape_mismatch"]
    for each in named[:1]:
        on.add(PROVEN, f"The exception was about shapes: {each.summary.rstrip('.')}.")
    if not named:
        ended = "ended without any exception" if on.case.outcome != "failed" else "ended with an exception that is not about shapes"
        on.add(-STRONG, f"The run {ended}.")
    if not len(on.case.run.steps):
        on.add(WEAK, "Not one step was completed, as where the model and its input do not fit.")
    elif on.case.last_step is not None and not named:
        on.add(-FAIR, f"{count(len(on.case.run.steps), 'step')} went through the same model before.")


def _explosion(on: Scales) -> None:
    if on.nonfinite():
        on.add(WEAK, "Values became NaN or infinite, which is how an explosion ends.")
    for each in on.case.incidents:
        if each.kind == "nonfinite" and each.origin in ("optimizer", "parameters"):
            on.add(FAIR, f"The non-finite values came from the {each.origin}: an update was too large for its weights.")
        elif each.kind == "nonfinite" and each.origin == "data":
            on.add(-STRONG, "The non-finite values came in with the data.")
    gradient = on.of_run("gradient_norm")
    if gradient is None:
        on.cannot_see("No gradient norm of the run is known around the trouble.")
    else:
        usual, recent = gradient
        grown = recent / usual if usual else math.inf
        said = f"The gradient norm {became(recent)} in the last steps; {number(usual)} was usual before."
        on.add(STRONG if grown >= EXPLODED else FAIR if grown >= GREW else -FAIR if grown <= CALM else 0.0, said)
    outputs = on.departed("output_rms", "branch_skip_ratio")
    rising = [sign for sign in outputs if sign.factor > 1]
    if rising:
        first = rising[0]
        blocks = list(dict.fromkeys(sign.block for sign in rising))
        on.add(
            FAIR,
            f"The activations of {count(len(blocks), 'block')} left their usual range upwards, {first.block} first at step "
            f"{first.step:,}: its {first.quantity} went from {number(first.usual)} to {number(first.seen)}.",
        )
    elif on.case.window.blocks:
        on.add(-WEAK, "No block's activations rose out of their usual range before the trouble.")
    rates = on.departed("learning_rate")
    if rates and rates[0].factor > 1:
        rate = rates[0]
        on.add(
            FAIR, f"The learning rate rose before: from {number(rate.usual)} to {number(rate.seen)}, from step {rate.step:,} on."
        )
    loss = on.of_run("loss")
    if loss is not None:
        usual, recent = loss
        if recent > max(GREW * usual, usual + 1e-12):
            on.add(FAIR, f"The loss {became(recent)}; {number(usual)} was usual before.")
        elif recent <= CALM * usual:
            on.add(-FAIR, f"The loss was no higher than usual ({number(recent)}; {number(usual)} before).")


def _vanishing(on: Scales) -> None:
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


def _out_of_memory(on: Scales) -> None:
    named = [each for each in on.case.incidents if each.kind == "out_of_memory"]
    for each in named[:1]:
        on.add(PROVEN, f"It was said so: {each.summary.rstrip('.')}.")
    if named:
        return
    if on.case.outcome == "out_of_memory":
        on.add(PROVEN, "The run ended as out of memory.")
    if on.case.outcome not in ("killed", "out_of_memory", "unknown"):
        on.add(-STRONG, f"The run ended as {on.case.outcome}, not killed, and no allocation failed.")
    seen = False
    for used, free, where in (("memory", "memory_free", "the machine"), ("device_memory", "device_memory_free", "the device")):
        taken, left = on.case.window.run.get(used), on.case.window.run.get(free)
        if taken is None or left is None or not np.isfinite(left[-1:]).any():
            continue
        seen = True
        whole = float(left[-1] + taken[-1])
        share = float(left[-1]) / whole if math.isfinite(whole) and whole > 0 else math.nan
        if share < FULL and on.case.outcome == "killed":
            on.add(FAIR, "It was killed without a word, as the kernel does where memory runs out.")
        curve = on.case.curves.get(used)
        if curve is not None and curve.mean[-1] > CALM * curve.mean[0]:
            on.add(FAIR, f"Memory in use grew over the run, from {size(float(curve.mean[0]))} to {size(float(curve.mean[-1]))}.")
        said = f"{size(float(left[-1]))} of {where}'s memory could still be had in the end, {size(float(taken[-1]))} were in use."
        on.add(STRONG if share < FULL else -FAIR if share > ROOMY else 0.0, said)
    if not seen:
        on.cannot_see("Memory was not measured around the trouble.")


def _overfitting(on: Scales) -> None:
    if not on.case.gaps:
        on.cannot_see("No score was logged of both training and validation (val_loss beside loss), so there is no gap to look at.")
        return
    for score, (steps, training, validation) in on.case.gaps.items():
        if len(steps) < 3 or "loss" not in score:
            continue
        best = int(np.nanargmin(validation))
        newest = float(np.median(validation[-3:]))  # one validation alone may be a bad draw
        risen = newest / validation[best] - 1 if validation[best] > 0 else 0.0
        learned = training[-1] < training[best]
        said = (
            f"Validation {score} was best at step {steps[best]:,} ({number(float(validation[best]))}) and is "
            f"{number(float(validation[-1]))} at step {steps[-1]:,}, while training {score} went from "
            f"{number(float(training[best]))} to {number(float(training[-1]))}."
        )
        if risen > RISEN and learned:
            on.add(PROVEN if risen > 5 * RISEN else STRONG, said)
        elif risen <= RISEN / 2:
            on.add(-STRONG, said)
        else:
            on.add(0.0, said)
    if not on.evidence:
        on.cannot_see("There were too few validations of a loss to see a trend.")


def _stochastic_depth(on: Scales) -> None:
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


def _precision(on: Scales) -> None:
    headroom = on.of_blocks("headroom")
    scale = on.of_run("loss_scale")
    if headroom is None:
        if on.case.window.blocks:
            on.add(-FAIR, "No block computed in 16 bits where it was looked at, or its headroom is not known.")
        else:
            on.cannot_see("No blocks were recorded, so it is not known in which precision they computed.")
    else:
        worst = int(np.nanargmin(headroom))
        least = float(headroom[worst])
        said = f"The least headroom was {number(least)} doublings, in {on.case.blocks[worst]}"
        if least < LITTLE_ROOM:
            on.add(STRONG, f"{said}: the next larger number overflows.")
        elif least > MUCH_ROOM:
            on.add(-FAIR, f"{said}, which is ample.")
        else:
            on.add(WEAK, f"{said}.")
    if scale is not None and scale[1] != 1 and on.case.window.run.get("loss_scale") is not None:
        scales = on.case.window.run["loss_scale"]
        newest = scales[np.isfinite(scales)][-1:]
        if len(newest) and newest[0] < scale[0] / 4:
            on.add(
                FAIR, f"The gradient scaler went down from {number(scale[0])} to {number(float(newest[0]))}: gradients overflowed."
            )


def _latency(on: Scales) -> None:
    durations = on.case.window.run.get("duration")
    there = durations[np.isfinite(durations)] if durations is not None else np.empty(0)
    if len(there) < 16:
        on.cannot_see("Too few step times were recorded.")
        return
    usual, recent = float(np.median(there[: len(there) // 2])), float(np.median(there[-RECENT:]))
    said = f"A step took {duration(recent)} in the end; {duration(usual)} was usual before."
    factor = recent / usual
    on.add(STRONG if factor >= SLOW else FAIR if factor >= SLOWER else -STRONG, said)
    if factor < SLOWER:
        return
    phases = {name: on.case.window.run[f"{name}_seconds"] for name in PARTS if f"{name}_seconds" in on.case.window.run}
    grown = {}
    for name, values in phases.items():
        known = values[np.isfinite(values)]
        if len(known) >= 16:
            grown[name] = float(np.median(known[-RECENT:]) - np.median(known[: len(known) // 2]))
    if grown:
        name = max(grown, key=lambda key: grown[key])
        if grown[name] > 0.5 * (recent - usual):
            waits = (
                "waiting for data" if name == "data" else f"the {name} pass" if name in ("forward", "backward") else "the optimizer"
            )
            on.add(WEAK, f"{duration(grown[name])} more of each step went into {waits}.")


def _bad_data(on: Scales) -> None:
    named = [each for each in on.case.incidents if each.kind == "nonfinite" and each.origin]
    for each in named[:1]:
        if each.origin == "data":
            on.add(PROVEN, f"The replay found non-finite inputs: {each.summary.rstrip('.')}.")
        else:
            on.add(-STRONG, f"The replay found the origin elsewhere: {each.origin}.")
    if named:
        return
    if not on.nonfinite():
        on.add(-FAIR, "Nothing became NaN or infinite.")
        return
    if not on.leading:
        on.add(FAIR, "Nothing left its usual range before values became non-finite: it came from one step to the next.")
    else:
        on.add(-WEAK, f"It was coming for some steps: {on.leading[0].what} left its usual range at step {on.leading[0].step:,}.")
    on.cannot_see("The step was not replayed, so whether its inputs were finite is not known.")


def _killed(on: Scales) -> None:
    outcome = on.case.outcome
    if outcome in ("killed", "interrupted"):
        on.add(STRONG, f"The process was {outcome}: " + (_reason(on.case) or "it left no end mark") + ".")
        if not on.leading:
            on.add(FAIR, "Nothing had left its usual range when it ended.")
        else:
            on.add(-WEAK, f"Something had changed before: {on.leading[0].what} from step {on.leading[0].step:,} on.")
        if any(each.kind == "out_of_memory" for each in on.case.incidents):
            on.add(-STRONG, "It had run out of memory.")
        waiting = on.of_run("memory_free")
        if waiting is None:
            on.cannot_see("Whether memory ran out is not known.")
    elif outcome == "unknown":
        on.cannot_see("The process is gone without an end mark, and only its own machine knows how.")
    else:
        on.add(-PROVEN, f"The process ended by itself, as {outcome}.")


def _stalled(on: Scales) -> None:
    if "stalled" in on.kinds():
        on.add(PROVEN, "Steps stopped coming while the process lived.")
        return
    on.add(-STRONG, "Steps kept coming until the end.")


def _exception(on: Scales) -> None:
    named = [each for each in on.case.incidents if each.kind == "failed"]
    for each in named[:1]:
        on.add(PROVEN, f"{each.summary.rstrip('.')}{f', at {each.line}' if each.line else ''}.")
    if not named and on.case.outcome == "failed":
        on.add(STRONG, f"The run ended with an exception: {_reason(on.case) or 'which one was not recorded'}.")
    elif not named:
        on.add(-STRONG, "No exception of another kind ended the run.")


def _reason(case: Case) -> str:
    return next((end.reason for end in case.ends.values() if end.reason), "")


@dataclass(frozen=True, slots=True)
class Cause:
    """A row of the table."""

    key: str
    title: str
    meaning: str
    weigh: Callable[[Scales], None]
    runbook: str
    actions: tuple[str, ...]
    findings: tuple[str, ...] = ()  # kinds that say that it is this


CAUSES = (
    Cause(
        "explosion",
        "Explosion",
        "Updates grow faster than training can take back: activations and gradients rise until numbers overflow.",
        _explosion,
        "nonfinite",
        ("Go on from the last checkpoint before the trouble with a lower learning rate", "Clip gradients, or clip them harder"),
        ("loss_divergence",),
    ),
    Cause(
        "precision",
        "Precision loss",
        "Numbers leave what 16 bits can hold: float16 ends at 65,504, and small gradients vanish into 0.",
        _precision,
        "nonfinite",
        ("Compute the named block in bfloat16 or float32", "Check the gradient scaler's settings"),
    ),
    Cause(
        "data",
        "Bad data",
        "A batch held values that are NaN, infinite or far outside of what the model was made for.",
        _bad_data,
        "nonfinite",
        ("Find the rows of that batch, and what let them pass", "Check inputs before they enter the model"),
    ),
    Cause(
        "out_of_memory",
        "Out of memory",
        "A step needed more memory than there was.",
        _out_of_memory,
        "out-of-memory",
        ("Checkpoint the blocks that hold most, or take a smaller batch", "Find out whether memory grows from step to step"),
    ),
    Cause(
        "shape_mismatch",
        "Shape mismatch",
        "The two operands of an addition, or what a module was given, do not fit.",
        _shape_mismatch,
        "shape-mismatch",
        ("Add the projection that the incident names", "Run `resmon check` on the model in CI"),
    ),
    Cause(
        "exception",
        "An exception in the script",
        "The training script, or a library it uses, raised an exception that has nothing to do with the network's numbers.",
        _exception,
        "failed",
        ("Mend the named line", "Add a test that takes the same way"),
    ),
    Cause(
        "killed",
        "Killed or pre-empted",
        "Something outside ended the process: a scheduler, a person, the kernel.",
        _killed,
        "killed",
        (
            "Find out who sent the signal, from the scheduler's and the kernel's logs",
            "Go on from the last checkpoint; make them closer",
        ),
    ),
    Cause(
        "stalled",
        "Hang",
        "The process lived and did not get on: a collective that one rank never joined, a data loader that waits, a lock.",
        _stalled,
        "stalled",
        ("Look at the stacks of the process where it still lives (py-spy dump)", "Set a timeout on collectives and data loaders"),
    ),
    Cause(
        "vanishing",
        "Vanishing gradients or a dead branch",
        "Gradients fade on their way to the early blocks, or a branch adds nothing any more and learns nothing.",
        _vanishing,
        "",
        ("Check initialisation, normalisation and what freezes parameters in the named blocks",),
    ),
    Cause(
        "overfitting",
        "Overfitting",
        "The model goes on getting better on what it is trained on and worse on what it is not.",
        _overfitting,
        "overfitting",
        ("Go back to the checkpoint of the best validation score", "Regularise, augment, or stop earlier"),
        ("overfitting",),
    ),
    Cause(
        "stochastic_depth",
        "Stochastic-depth bias",
        "Branches are dropped at random in training and never in evaluation, so that blocks add up to something else there.",
        _stochastic_depth,
        "",
        ("Check the drop rates over the depth and that kept branches are divided by the rate at which they are kept",),
    ),
    Cause(
        "latency",
        "Latency",
        "Steps became slower.",
        _latency,
        "",
        ("Look at the part of the step that grew: data, forward, backward or optimizer",),
    ),
)


def weigh(case: Case, signs: Sequence[Departure]) -> tuple[Suspect, ...]:
    """Every cause, the likeliest first; those that cannot be told last."""
    suspects = []
    for cause in CAUSES:
        on = Scales(case, signs)
        cause.weigh(on)
        for finding in [finding for finding in case.findings if finding.kind in cause.findings][:1]:
            on.add(STRONG, f"The detector {finding.kind} found it at step {finding.opened_step:,}: {finding.summary.rstrip('.')}.")
        evidence = tuple(sorted(on.evidence, key=lambda each: -abs(each.weight)))
        suspects.append(Suspect(cause.key, cause.title, cause.meaning, evidence, tuple(on.unknown), cause.runbook, cause.actions))
    return tuple(sorted(suspects, key=lambda suspect: -math.inf if suspect.score is None else suspect.score, reverse=True))
