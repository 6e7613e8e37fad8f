"""One fault in one training, as a user would have it: a fresh model, resmon attached in one line, a flight in a temporary folder.

The number of a trial decides everything that is drawn, so that any of them can be repeated alone. A fault that comes to nothing (a
value that nobody reads, a gradient that a ReLU does not let through) is none: then another one is drawn, in the same trial. That it
came to something is told from the loss and the gradients themselves.
"""

from __future__ import annotations

import json
import random
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import resmon
from benchmarks.faults.architectures import ARCHITECTURES, ROWS, Architecture, Arguments, losses
from benchmarks.faults.outcome import Outcome

DRAWS = 100  # until one comes to something
EARLIEST, LATEST = 2, 14  # steps at which a fault is put
AFTER = 2  # steps that the loop still makes: it does not know of the fault
RUN = "trial"


class NothingBrokenError(Exception):
    """Of all that was drawn in a trial nothing came to anything: the bench is at fault."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of a fault because it was put there. What is None is not asked."""

    step: int
    what: str  # in a few words
    origin: str | None = None
    block: str | None = None
    operation: tuple[str, str] | None = None  # and its module before it
    line: str | None = None  # "file:number"
    rows: tuple[int, ...] | None = None  # of the batch


class Injected:
    """A fault in a training. The loop calls these at each step; nothing happens in any but the ones that a fault overrides."""

    truth: Truth

    def before(self, step: int) -> None:
        """Before the forward pass."""

    def given(self, step: int, arguments: Arguments) -> Arguments:
        return arguments

    def loss(self, step: int, each: Tensor) -> Tensor:
        """From that of each row."""
        return each.mean()

    def over(self, step: int) -> None:
        """After the update."""


@dataclass(slots=True)
class Training:
    """A model with its optimizer and data."""

    architecture: Architecture
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator

    def batch(self) -> tuple[Arguments, Tensor]:
        return self.architecture.data(self.generator, ROWS)

    def run(
        self,
        steps: int,
        injected: Injected,
        log: Callable[..., None] = lambda **_: None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> list[int]:
        """Train. Returns the steps whose loss or gradients were not finite."""
        broken = []
        for step in range(steps):
            injected.before(step)
            self.optimizer.zero_grad()
            arguments, target = self.batch()
            loss = injected.loss(step, losses(self.model(**injected.given(step, arguments)), target))
            (loss if scaler is None else scaler.scale(loss)).backward()
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            if not all(bool(each.isfinite().all()) for each in (loss.detach(), *gradients)):
                broken.append(step)
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
                scaler.update()
            log(loss=loss)
            injected.over(step)
        return broken


class Trial:
    """Draws what a trial needs; `names` are the architectures that its kind can use, which take turns."""

    def __init__(self, kind: str, number: int, names: Sequence[str] = tuple(ARCHITECTURES)) -> None:
        self.kind, self.number = kind, number
        self.random = random.Random(f"{kind} {number}")
        self.name = names[number % len(names)]
        self.architecture = ARCHITECTURES[self.name]
        self._seed = zlib.crc32(f"{kind} {number}".encode())

    def step(self) -> int:
        return self.random.randint(EARLIEST, LATEST)

    def training(self, variant: Architecture | None = None) -> Training:
        """A fresh one, each time the same, of the trial's architecture or a variant of it."""
        architecture = variant or self.architecture
        torch.set_num_threads(1)
        torch.manual_seed(self._seed)
        model = architecture.make().train()
        optimizer = architecture.optimizer(model.parameters())
        return Training(architecture, model, optimizer, torch.Generator().manual_seed(self._seed))

    def outcome(self, detected: bool, expected: str, said: str, **answers: Any) -> Outcome:
        return Outcome(self.kind, self.number, self.name, detected, expected=expected, said=said, **answers)

    def judged(self, truth: Truth, incidents: Sequence[dict[str, Any]], kind: str) -> Outcome:
        """What the incidents of a kind say, against the truth."""
        found = next((incident for incident in incidents if incident["kind"] == kind), None)
        if found is None:
            others = "; ".join(incident["summary"] for incident in incidents)
            asked = {name: False for name in ("block", "operation", "line", "origin") if getattr(truth, name) is not None}
            return self.outcome(False, truth.what, others or "nothing", **asked)
        rows = tuple(found["evidence"].get("rows", ()))
        return self.outcome(
            True,
            truth.what,
            found["summary"],
            delay=None if found["step"] is None else found["step"] - truth.step,
            block=None if truth.block is None else found["block"] == truth.block,
            operation=None if truth.operation is None else (found["module"], found["operation"]) == truth.operation,
            line=None if truth.line is None else f"{found['line']}:".startswith(f"{truth.line}:"),
            origin=None if truth.origin is None else found["origin"] == truth.origin and truth.rows in (None, rows),
        )


@contextmanager
def flight() -> Iterator[Path]:
    """The directory of runs for one trial."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        yield Path(folder)


def incidents_in(folder: Path, run: str = RUN) -> list[dict[str, Any]]:
    """As a user reads them."""
    rows = resmon.load(folder / run).incidents().to_dict("records")
    return [row | {"evidence": json.loads(row["evidence"])} for row in rows]
