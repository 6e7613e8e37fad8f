"""Faults that make NaN or Inf: in an operation, the loss, the data, a parameter or the optimizer's state."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

import resmon
from benchmarks.faults import injection
from benchmarks.faults.architectures import ARCHITECTURES, ROWS, Arguments
from benchmarks.faults.injection import Direction, Place
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.trial import AFTER, DRAWS, RUN, Injected, NothingBrokenError, Training, Trial, Truth, flight, incidents_in

VALUES = {math.nan: "NaN", math.inf: "Inf", -math.inf: "-Inf"}

Inject = Callable[[Trial, Training], Injected]


def trial_of(inject: Inject, trial: Trial) -> Outcome:
    """Train until the fault and a little beyond, and read the incidents."""
    for _ in range(DRAWS):
        training = trial.training()
        injected = inject(trial, training)
        with flight() as folder:
            with resmon.watch(training.model, training.optimizer, run=RUN, directory=folder, agent="off") as monitor:
                broken = training.run(injected.truth.step + 1 + AFTER, injected, monitor.log)
            if broken:
                return trial.judged(injected.truth, incidents_in(folder), "nonfinite")
    raise NothingBrokenError(f"{trial.kind} {trial.number}: nothing was broken in {DRAWS} draws")


@cache
def places(name: str, direction: Direction) -> tuple[Place, ...]:
    """Where an operation of that architecture can be broken and it is known of which block it is."""
    made = ARCHITECTURES[name]
    arguments, _ = made.data(torch.Generator().manual_seed(0), ROWS)
    found = injection.places(made.make().train(), (), arguments, inner=direction == "backward")
    return tuple(place for place in found if made.block_of(place.module, place.operation, place.ordinal) is not None)


class BrokenOperation(Injected):
    """At a place that is drawn."""

    def __init__(self, trial: Trial, training: Training, direction: Direction, value: float, *, stays: bool = False) -> None:
        self._place = trial.random.choice(places(trial.name, direction))
        self._fault = injection.Fault(training.model, self._place, direction, value)
        self._block = training.architecture.block_of(self._place.module, self._place.operation, self._place.ordinal)
        self._step, self._stays = trial.step(), stays

    @property
    def truth(self) -> Truth:  # type: ignore[override] # the line is known once it was run
        where, what = self._place, VALUES[self._fault.value]
        return Truth(
            self._step,
            f"{what} in the {self._fault.direction} of {where.operation} (call {where.ordinal}) in {where.module or 'the model'} "
            f"at step {self._step}, block {self._block or 'none'}, line {self._fault.line}",
            self._fault.direction,
            self._block,
            (where.module, where.operation),
            self._fault.line,
        )

    def before(self, step: int) -> None:
        self._fault.on = step >= self._step if self._stays else step == self._step


forward_nan: Inject = partial(BrokenOperation, direction="forward", value=math.nan)
forward_inf: Inject = partial(BrokenOperation, direction="forward", value=math.inf)
backward_nan: Inject = partial(BrokenOperation, direction="backward", value=math.nan)
backward_inf: Inject = partial(BrokenOperation, direction="backward", value=math.inf)


class BrokenLoss(Injected):
    """Weights that are not finite, the logarithm of nothing, or a mean over nothing."""

    def __init__(self, trial: Trial, training: Training) -> None:
        step = trial.step()
        self._rows = sorted(trial.random.sample(range(ROWS), trial.random.randint(1, 3)))
        self._value = trial.random.choice((math.nan, math.inf))
        self._how = trial.random.choice(("weights", "logarithm", "mean"))
        said = {"weights": f"weights {VALUES[self._value]}", "logarithm": "log of 0", "mean": "mean over nothing"}[self._how]
        rows = range(ROWS) if self._how == "mean" else self._rows
        self.truth = Truth(step, f"{said} at step {step} in rows {list(rows)}", "loss", "", rows=tuple(rows))

    def loss(self, step: int, each: Tensor) -> Tensor:
        if step != self.truth.step:
            return each.mean()
        chosen = torch.zeros(ROWS)
        chosen[self._rows] = 1
        if self._how == "weights":
            return (each * torch.where(chosen > 0, self._value, 1.0)).mean()
        if self._how == "logarithm":
            return each.mean() - torch.log(torch.exp(-each) * (1 - chosen)).mean()
        return (each * 0).sum() / torch.zeros(()) + each.mean()


class BrokenData(Injected):
    """In elements of some rows."""

    def __init__(self, trial: Trial, training: Training) -> None:
        step = trial.step()
        rows = sorted(trial.random.sample(range(ROWS), trial.random.randint(1, 3)))
        self._random = trial.random
        self._value = trial.random.choice(tuple(VALUES))
        said = f"{VALUES[self._value]} in rows {rows} of the inputs of step {step}"
        self.truth = Truth(step, said, "data", "", rows=tuple(rows))

    def given(self, step: int, arguments: Arguments) -> Arguments:
        if step == self.truth.step:
            for tensor in arguments.values():
                for row in self.truth.rows or ():
                    tensor[row].view(-1)[self._random.randrange(tensor[row].numel())] = self._value
        return arguments


class BrokenWeight(Injected):
    """Between two steps, by whoever writes weights."""

    def __init__(self, trial: Trial, training: Training) -> None:
        step = trial.step()
        name, self._parameter = trial.random.choice(list(training.model.named_parameters()))
        self._at = trial.random.randrange(self._parameter.numel())
        self._value = trial.random.choice(tuple(VALUES))
        block = training.architecture.block_of(name.rpartition(".")[0])
        said = f"{VALUES[self._value]} written into {name} before step {step}, block {block or 'none'}"
        self.truth = Truth(step, said, "parameters", block)

    def before(self, step: int) -> None:
        if step == self.truth.step:
            with torch.no_grad():
                self._parameter.view(-1)[self._at] = self._value


class BrokenState(Injected):
    """What an optimizer remembers of a parameter, so that the update, of finite gradients, is not."""

    def __init__(self, trial: Trial, training: Training) -> None:
        step = trial.step()
        name, self._parameter = trial.random.choice(list(training.model.named_parameters()))
        self._at = trial.random.randrange(self._parameter.numel())
        self._value = trial.random.choice(tuple(VALUES))
        self._optimizer = training.optimizer
        block = training.architecture.block_of(name.rpartition(".")[0])
        said = f"{VALUES[self._value]} in the optimizer's state of {name} before its step {step}, block {block or 'none'}"
        self.truth = Truth(step, said, "optimizer", block)

    def before(self, step: int) -> None:
        if step == self.truth.step:
            state = self._optimizer.state[self._parameter]
            moment = next(state[name] for name in ("momentum_buffer", "exp_avg") if name in state)
            moment.view(-1)[self._at] = self._value
