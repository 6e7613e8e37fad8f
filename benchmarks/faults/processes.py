"""Faults that a process does not survive, or that only somebody outside of it can see; the training is a process of its own.

It is forked from a server that has imported everything and trained nothing, so that it is there in a moment.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from torch import Tensor

import resmon
from benchmarks.faults.following import Following
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.trial import RUN, Injected, Training, Trial, Truth, flight, incidents_in

PATIENCE = 120.0  # seconds for a process to come to its fault
STALL = 1.0  # seconds without a step that are a stall
SPARE = 64 << 20  # bytes that may be taken beyond those in use
GREED = 1 << 30  # bytes that a block's input grows to
PRELOAD = [
    "resmon.capture.loop.session",
    "benchmarks.faults.tasks",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("resnet", "gpt2", "llama", "bert", "vit", "convnext")),
]


def server() -> ForkServerContext:
    """Where processes are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@contextmanager
def _process(run: Callable[[Any, int, Path], None], trial: Trial) -> Iterator[tuple[ForkServerProcess, Path]]:
    with flight() as folder:
        process = server().Process(target=run, args=(trial.kind, trial.number, folder))
        process.start()
        try:
            yield process, folder
        finally:
            process.kill()
            process.join()


class _AtModule(Injected):
    """Something that a module of a block, or at a moment of the step, does at one step."""

    def __init__(self, trial: Trial, training: Training) -> None:
        self.truth = Truth(trial.step(), "")
        block = trial.random.choice(training.architecture.blocks)
        self.block, self.path = block.name, trial.random.choice(block.projections)
        self._module = training.model.get_submodule(self.path)
        self._forward = self._module.forward

    def before(self, step: int) -> None:
        self._module.forward = self.forward if step == self.truth.step else self._forward

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _Greedy(_AtModule):
    """Its input is far larger than usual, and memory limited."""

    def forward(self, x: Tensor) -> Tensor:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, resource.getrlimit(resource.RLIMIT_AS)[1]))
        many = GREED // (x.numel() * x.element_size())
        y: Tensor = self._forward(x.repeat(many, *[1] * (x.dim() - 1)))
        return y


class _Deaf(_AtModule):
    """It does not return."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(PATIENCE * 10)
        return x


class _Killed(_AtModule):
    """In the forward pass, between the passes or after the update."""

    def __init__(self, trial: Trial, training: Training) -> None:
        super().__init__(trial, training)
        self.moment = trial.random.choice(("forward", "loss", "after"))

    def before(self, step: int) -> None:
        if self.moment == "forward":
            super().before(step)

    def forward(self, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return x

    def loss(self, step: int, each: Tensor) -> Tensor:
        if self.moment == "loss" and step == self.truth.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return each.mean()

    def over(self, step: int) -> None:
        if self.moment == "after" and step == self.truth.step:
            os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, type[_AtModule]] = {"memory": _Greedy, "hang": _Deaf, "sigkill": _Killed}


def _train(kind: str, number: int, folder: Path) -> None:
    """In the process of its own."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # the traceback is the process's, not the bench's
    trial = Trial(kind, number)
    training = trial.training()
    fault = FAULTS[kind](trial, training)
    with resmon.watch(training.model, training.optimizer, run=RUN, directory=folder, agent="off", stall_after=STALL) as monitor:
        training.run(fault.truth.step + 5, fault, monitor.log)


def _drawn(trial: Trial) -> _AtModule:
    """The fault that the process draws too."""
    return FAULTS[trial.kind](trial, trial.training())


def memory(trial: Trial) -> Outcome:
    """The allocator fails in a block."""
    fault = _drawn(trial)
    with _process(_train, trial) as (process, folder):
        process.join(PATIENCE)
        said = f"no memory for {fault.path} at step {fault.truth.step}, block {fault.block}"
        return trial.judged(Truth(fault.truth.step, said, block=fault.block), incidents_in(folder), "out_of_memory")


def sigkill(trial: Trial) -> Outcome:
    """Concluded by whoever reads; the step is the last that was over."""
    fault = _drawn(trial)
    last = fault.truth.step - (fault.moment != "after")  # type: ignore[attr-defined]
    with _process(_train, trial) as (process, folder):
        process.join(PATIENCE)
        return trial.judged(Truth(last, f"killed with step {last} over ({fault.moment})"), incidents_in(folder), "killed")  # type: ignore[attr-defined]


def hang(trial: Trial) -> Outcome:
    """Seen by the agent while the process lives."""
    fault = _drawn(trial)
    truth = Truth(fault.truth.step - 1, f"{fault.path} does not return at step {fault.truth.step}, block {fault.block}")
    with _process(_train, trial) as (process, folder):
        end = time.monotonic() + PATIENCE
        while not list(folder.glob(f"{RUN}/attempt-*/rank-*/info.json")) and time.monotonic() < end:
            time.sleep(0.05)
        following = Following(folder / RUN)
        while (
            process.is_alive()
            and time.monotonic() < end
            and not any(incident["kind"] == "stalled" for incident in incidents_in(folder))
        ):
            time.sleep(0.2)
            following.look()
        outcome = trial.judged(truth, incidents_in(folder), "stalled")
        process.kill()
        process.join()
        following.close()
        return outcome
