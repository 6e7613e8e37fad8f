"""The table of faults. A kind says how one of its trials is run; what is slow or has a process of its own joins as any other.

`nonfinite.py` breaks values, `course.py` the course of a training, `structure.py` the network, `processes.py` the process;
`slow.py` spoils without breaking. The table says which kinds of findings are true of a slow fault: others are no detection of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.faults import course, nonfinite, processes, slow, structure
from benchmarks.faults.architectures import ARCHITECTURES
from benchmarks.faults.nonfinite import trial_of
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.trial import Trial

DETECTED, EXACT = 0.99, 0.97  # goals: of all trials, and of those whose kind has a block
MANY, FEW = 300, 36  # trials
USUAL = "an incident of that kind in the flight"

ALL = tuple(ARCHITECTURES)
WITH_NUMBERS = tuple(name for name, each in ARCHITECTURES.items() if each.takes_numbers)
WITH_ORDERS = tuple(name for name, each in ARCHITECTURES.items() if each.reordered is not None)


@dataclass(frozen=True, slots=True)
class Kind:
    """`trials` are aimed at; `run` takes one of the `architectures` in turn."""

    title: str
    run: Callable[[Trial], Outcome]
    trials: int
    detected: str = USUAL  # what counts as that
    architectures: tuple[str, ...] = ALL
    names: tuple[str, ...] = ()  # kinds of findings that are true of a slow fault

    def trial(self, name: str, number: int) -> Outcome:
        return self.run(Trial(name, number, self.architectures))


def _slow(title: str, inject: slow.Inject, *names: str) -> Kind:
    found = "a finding of the kind " + " or ".join(f"`{name}`" for name in names) + ", none that pages before the fault"
    return Kind(title, partial(slow.trial_of, inject, names), FEW, found, names=names)


_EXPLODES = ("nonfinite", "nonfinite_loss", "loss_divergence", "exploding_gradients", "growing_residual", "collapsed_skip")

KINDS: dict[str, Kind] = {
    "forward-nan": Kind("NaN, forward", partial(trial_of, nonfinite.forward_nan), MANY),
    "forward-inf": Kind("Inf, forward", partial(trial_of, nonfinite.forward_inf), MANY),
    "backward-nan": Kind("NaN, backward", partial(trial_of, nonfinite.backward_nan), MANY),
    "backward-inf": Kind("Inf, backward", partial(trial_of, nonfinite.backward_inf), MANY),
    "loss": Kind("NaN or Inf in the loss", partial(trial_of, nonfinite.BrokenLoss), MANY),
    "data": Kind("NaN or Inf in the data", partial(trial_of, nonfinite.BrokenData), MANY, architectures=WITH_NUMBERS),
    "weights": Kind("NaN or Inf written into a parameter", partial(trial_of, nonfinite.BrokenWeight), MANY),
    "optimizer": Kind("NaN or Inf in the optimizer's state", partial(trial_of, nonfinite.BrokenState), MANY),
    "scaler-overflow": Kind(
        "overflow that no loss scale ends", course.overflow, FEW, "an incident, once no search for a scale explains it"
    ),
    "scaler-search": Kind("overflow that a loss scale ends", course.search, FEW, "that nothing is said of it"),
    "explosion": Kind(
        "learning rate far too large",
        course.explosion,
        FEW,
        "a page or an incident; the loss is more than twice what it was at the beginning, or not finite",
    ),
    "zeroed-branch": _slow("a branch that is 0, or fades to it", slow.ZeroedBranch, "dead_branch"),
    "frozen-block": _slow("a block that learns no more", slow.FrozenBlock, "frozen_block"),
    "rising-rate": _slow(
        "a learning rate that rises slowly",
        slow.RisingRate,
        "rising_learning_rate",
        "spike_warning",
        "hidden_explosion",
        "oscillation",
        *_EXPLODES,
    ),
    "drifting-inputs": _slow("inputs that drift", slow.DriftingInputs, "drifting_inputs", "drift"),
    "bad-init": _slow(
        "a branch, or all, far too large from the start",
        slow.BadInitialisation,
        "vanishing_gradients",
        "straying_block",
        *_EXPLODES,
    ),
    "dropped-scale": _slow(
        "a scale of a branch or of attention that is missing",
        slow.DroppedScale,
        "exploding_gradients",
        "straying_block",
        "collapsed_skip",
        "drift",
        "change",
        "spike_warning",
    ),
    "order": Kind(
        "one block in the other order of activation",
        structure.reordered,
        FEW,
        "`resmon diff` of two flights says that a block's order changed",
        WITH_ORDERS,
    ),
    "projection": Kind("a projection of the wrong width", structure.misfit, FEW),
    "memory": Kind("a block takes more memory than the limit", processes.memory, FEW),
    "sigkill": Kind(
        "SIGKILL",
        processes.sigkill,
        FEW,
        "an incident that the reader concludes, and the last step that was over; no block is named",
    ),
    "hang": Kind(
        "a block that does not return", processes.hang, FEW, "an incident that the agent writes while it hangs; no block is named"
    ),
}
