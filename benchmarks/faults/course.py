"""Faults of a training's course: a learning rate that is far too large, gradients that overflow at every loss scale, or at some."""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor

import resmon
from benchmarks.faults.following import Following
from benchmarks.faults.nonfinite import BrokenOperation
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.trial import DRAWS, RUN, Injected, NothingBrokenError, Training, Trial, Truth, flight, incidents_in

SKIPS = 60  # steps that a run is watched for whose gradients overflow at every scale
QUIET, LOUD = (50, 90), 110  # steps before a learning rate is too large, and with it
LEVEL = 16  # losses whose median tells whether it exploded
EXPLODED = 2.0  # times the level at which the run began


class _TooFast(Injected):
    """A learning rate 100 to 3,000 times as large; `harder` makes it ten times larger still, each time."""

    def __init__(self, trial: Trial, training: Training, harder: int) -> None:
        self._optimizer = training.optimizer
        self._factor = 10 ** (harder + trial.random.uniform(2.0, 3.5))
        step = trial.random.randint(*QUIET)
        self.truth = Truth(step, f"learning rate times {self._factor:.0f} from step {step}")
        self.losses: list[float] = []

    def before(self, step: int) -> None:
        if step == self.truth.step:
            for group in self._optimizer.param_groups:
                group["lr"] *= self._factor

    def loss(self, step: int, each: Tensor) -> Tensor:
        loss = each.mean()
        self.losses.append(float(loss.detach()))
        return loss

    @property
    def exploded(self) -> bool:
        """By the losses: what was learnt is lost, and more; a model that is as good as none has merely collapsed."""
        first, last = self.losses[:LEVEL], self.losses[-LEVEL:]
        return not all(map(math.isfinite, last)) or median(last) > EXPLODED * median(first)


def explosion(trial: Trial) -> Outcome:
    """Any finding that pages, or an incident, counts."""
    for draw in range(DRAWS):
        training = trial.training()
        fault = _TooFast(trial, training, draw)
        with flight() as folder:
            with resmon.watch(training.model, training.optimizer, run=RUN, directory=folder, agent="off") as monitor:
                training.run(fault.truth.step + LOUD, fault, monitor.log)
            if not fault.exploded:
                continue
            following = Following(folder / RUN)
            following.close()
            found = resmon.load(folder / RUN).findings()
            events = [(row.opened_step, row.summary) for row in found.itertuples() if row.severity == "page"]
            events += [(incident["step"], incident["summary"]) for incident in incidents_in(folder)]
        said = "; ".join(what for _, what in sorted(events))
        if not events:
            return trial.outcome(False, fault.truth.what, "nothing")
        delay = min(step for step, _ in events) - fault.truth.step
        return trial.outcome(delay >= 0, fault.truth.what, said, delay=delay)
    raise NothingBrokenError(f"{trial.kind} {trial.number}: no learning rate made the loss explode")


def overflow(trial: Trial) -> Outcome:
    """A block whose backward is infinite from some step on: a gradient scaler searches in vain."""
    for _ in range(DRAWS):
        training = trial.training()
        fault = BrokenOperation(trial, training, "backward", math.inf, stays=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** trial.random.randint(4, 20))
        with flight() as folder:
            with resmon.watch(training.model, training.optimizer, run=RUN, directory=folder, agent="off") as monitor:
                broken = training.run(fault.truth.step + SKIPS, fault, monitor.log, scaler)
            if broken:
                return trial.judged(fault.truth, incidents_in(folder), "nonfinite")
    raise NothingBrokenError(f"{trial.kind} {trial.number}: nothing was broken in {DRAWS} draws")


class _Steep(Injected):
    """A loss so steep that its gradients overflow until the scale has been halved some times."""

    def __init__(self, step: int) -> None:
        self.truth = Truth(step, "")

    def loss(self, step: int, each: Tensor) -> Tensor:
        return each.mean() * (1e30 if step >= self.truth.step else 1.0)


def search(trial: Trial) -> Outcome:
    """A loss scale that is too large for a while is no fault: anything said is wrong."""
    training = trial.training()
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0  # the gradients are far too large to step with
    scale = trial.random.randint(34, 50)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**scale)
    fault = _Steep(trial.step())
    with flight() as folder:
        with resmon.watch(training.model, training.optimizer, run=RUN, directory=folder, agent="off") as monitor:
            broken = training.run(fault.truth.step + SKIPS, fault, monitor.log, scaler)
        said = [incident["summary"] for incident in incidents_in(folder)]
    if not broken or broken[-1] >= fault.truth.step + SKIPS - 1:
        raise NothingBrokenError(f"{trial.kind} {trial.number}: the search did not begin or did not end")
    return trial.outcome(not said, f"{len(broken)} steps skipped from scale 2^{scale}, then calm", "; ".join(said) or "nothing")
