"""Faults of the network itself: a block whose operations are in another order, a projection that does not fit."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from torch import nn

import resmon
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.trial import DRAWS, RUN, Injected, NothingBrokenError, Training, Trial, Truth, flight, incidents_in
from resmon.diff.comparison import compare
from resmon.diff.report import structure_sentences

STEPS = 6  # of each of two runs that are compared


class _Nothing(Injected):
    truth = Truth(0, "")


def reordered(trial: Trial) -> Outcome:
    """Two flights, of the healthy network and of one in which one block's order is the other; `resmon diff` has only these."""
    make = trial.architecture.reordered
    assert make is not None
    number = trial.random.randrange(len(trial.architecture.blocks))
    block = trial.architecture.blocks[number].name
    swapped = replace(trial.architecture, make=lambda: make(number))
    with flight() as folder:
        for run, training in (("healthy", trial.training()), ("swapped", trial.training(swapped))):
            with resmon.watch(training.model, training.optimizer, run=run, directory=folder, agent="off") as monitor:
                training.run(STEPS, _Nothing(), monitor.log)
        attempts = [max((folder / run).glob("attempt-*")) for run in ("healthy", "swapped")]
        structure = compare(attempts[:1], attempts[1:]).structure
    assert structure is not None
    orders = [difference for difference in structure.differences if difference.aspect == "order"]
    said = " ".join(structure_sentences(structure))
    named = {name for difference in orders for name in difference.blocks}
    return trial.outcome(bool(orders), f"block {block} in the other order", said, block=named == {block})


class _Misfit(Injected):
    """From a step on a projection puts out some features too many."""

    def __init__(self, trial: Trial, training: Training) -> None:
        step = trial.random.randint(0, 8)
        block = trial.random.choice(training.architecture.blocks)
        path = trial.random.choice(block.projections)
        self._model, self._path, self._more = training.model, path, trial.random.randint(1, 5)
        said = f"{path} puts out {self._more} too many from step {step}, block {block.name}"
        self.truth = Truth(step, said, block=block.name)

    def before(self, step: int) -> None:
        if step == self.truth.step:
            self._model.set_submodule(self._path, _wider(self._model.get_submodule(self._path), self._more))


def _wider(layer: nn.Module, more: int) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        wide: nn.Module = nn.Conv2d(
            layer.in_channels,
            layer.out_channels + more,
            layer.kernel_size,  # type: ignore[arg-type] # torch's own attribute
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            bias=layer.bias is not None,
        )
        return wide
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features + more, layer.bias is not None)
    return type(layer)(layer.nf + more, layer.nx)  # type: ignore[arg-type,operator] # GPT-2's own linear layer


def misfit(trial: Trial) -> Outcome:
    for _ in range(DRAWS):
        training = trial.training()
        fault = _Misfit(trial, training)
        raised = True
        with flight() as folder:
            with suppress(RuntimeError):
                with resmon.watch(training.model, training.optimizer, run=RUN, directory=folder, agent="off") as monitor:
                    training.run(fault.truth.step + 1, fault, monitor.log)
                raised = False
            if raised:
                return trial.judged(fault.truth, incidents_in(folder), "shape_mismatch")
    raise NothingBrokenError(f"{trial.kind} {trial.number}: every width fitted")
