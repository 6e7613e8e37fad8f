"""Probable causes: each way in which a residual network fails, with what speaks for it and against it in this flight.

`CAUSES` is the table. Each cause has a function, in `arithmetic`, `ending` or `training`, that looks at the case and gives
evidence: a sentence with the numbers, and a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resmon.postmortem import arithmetic, ending, training
from resmon.postmortem.case import Case
from resmon.postmortem.departures import Departure
from resmon.postmortem.evidence import STRONG, Scales, Suspect


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
        arithmetic.explosion,
        "nonfinite",
        ("Go on from the last checkpoint before the trouble with a lower learning rate", "Clip gradients, or clip them harder"),
        ("loss_divergence",),
    ),
    Cause(
        "operation",
        "Operation without a value",
        "One operation made NaN or infinity of finite numbers for which it, or its derivative, is not defined: log 0, 0 / 0, the "
        "slope of a root at 0.",
        arithmetic.undefined_operation,
        "nonfinite",
        (
            "Guard the named operation: an epsilon below the root, logarithm or division, or log_softmax for log and softmax",
            "Repeat it with resmon explain on the incident's capsule, and add that input to the tests",
        ),
    ),
    Cause(
        "precision",
        "Precision loss",
        "Numbers leave what 16 bits can hold: float16 ends at 65,504, and small gradients vanish into 0.",
        arithmetic.precision,
        "nonfinite",
        ("Compute the named block in bfloat16 or float32", "Check the gradient scaler's settings"),
    ),
    Cause(
        "data",
        "Bad data",
        "A batch held values that are NaN, infinite or far outside of what the model was made for.",
        arithmetic.bad_data,
        "nonfinite",
        ("Find the rows of that batch, and what let them pass", "Check inputs before they enter the model"),
    ),
    Cause(
        "optimizer",
        "Broken update",
        "The optimizer made weights that are not finite of gradients that were: learning rate, an epsilon of 0, its state.",
        arithmetic.bad_update,
        "nonfinite",
        ("Look at the learning rate of that step, and at the optimizer's epsilon and state", "Go on from the last checkpoint"),
    ),
    Cause(
        "weights",
        "Weights written by something else",
        "Weights were not finite before the step, and no update of the optimizer made them so: a checkpoint, an average, an edit.",
        arithmetic.broken_weights,
        "nonfinite",
        ("Find what writes weights outside of the optimizer: loading, averaging, pruning, clamping", "Check weights after loading"),
    ),
    Cause(
        "out_of_memory",
        "Out of memory",
        "A step needed more memory than there was.",
        ending.out_of_memory,
        "out-of-memory",
        ("Checkpoint the blocks that hold most, or take a smaller batch", "Find out whether memory grows from step to step"),
    ),
    Cause(
        "shape_mismatch",
        "Shape mismatch",
        "The two operands of an addition, or what a module was given, do not fit.",
        ending.shape_mismatch,
        "shape-mismatch",
        ("Add the projection that the incident names", "Run resmon check on the model in CI"),
    ),
    Cause(
        "exception",
        "Exception in the script",
        "The training script, or a library it uses, raised an exception that has nothing to do with the network's numbers.",
        ending.exception,
        "failed",
        ("Mend the named line", "Add a test that takes the same way"),
    ),
    Cause(
        "killed",
        "Stop from outside",
        "Something outside ended the process: a scheduler, a person, the kernel.",
        ending.killed,
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
        ending.stalled,
        "stalled",
        ("Look at the stacks of the process where it still lives (py-spy dump)", "Set a timeout on collectives and data loaders"),
    ),
    Cause(
        "vanishing",
        "Vanishing gradients or a dead branch",
        "Gradients fade on their way to the early blocks, or a branch adds nothing any more and learns nothing.",
        training.vanishing,
        "",
        ("Check initialisation, normalisation and what freezes parameters in the named blocks",),
    ),
    Cause(
        "overfitting",
        "Overfitting",
        "The model goes on getting better on what it is trained on and worse on what it is not.",
        training.overfitting,
        "overfitting",
        ("Go back to the checkpoint of the best validation score", "Regularise, augment, or stop earlier"),
        ("overfitting",),
    ),
    Cause(
        "stochastic_depth",
        "Stochastic-depth bias",
        "Branches are dropped at random in training and never in evaluation, so that blocks add up to something else there.",
        training.stochastic_depth,
        "",
        ("Check the drop rates over the depth and that kept branches are divided by the rate at which they are kept",),
    ),
    Cause(
        "latency",
        "Latency",
        "Steps became slower.",
        training.latency,
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
