"""Backward passes, heard where torch's engine is entered: there `backward` and `torch.autograd.grad` end, however imported.

What `grad` computes is mostly no gradient of the loss but a part of it: a penalty on gradients, forces that are learned, the inner
step of meta-learning, a perturbation of the inputs. It takes the same way through the model, and must not count as the loss's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from resmon.capture.host.interception import Function, Interception


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the engine."""

    inputs: Sequence[Any] = ()  # whose gradients are asked for; none: those of all leaves
    accumulates: bool = True  # in `.grad`, else they are given back
    differentiable: bool = False  # what it computes is differentiated in its turn


class Heard(Protocol):
    """Who hears of it. Runs inside of another one are a part of that."""

    def backward_begun(self, run: Run) -> None: ...
    def backward_ended(self, run: Run, *, failed: bool) -> None: ...


def _run(listeners: Sequence[Heard], original: Function, outputs: Any, *args: Any, **kwargs: Any) -> Any:
    run = PLAIN
    if len(args) > _INPUTS and (args[_INPUTS] or args[_CREATES_GRAPH]):
        run = Run(args[_INPUTS], kwargs.get("accumulate_grad", True), bool(args[_CREATES_GRAPH]))
    for listener in listeners:
        listener.backward_begun(run)
    failed = True
    try:
        result = original(outputs, *args, **kwargs)
        failed = False
    finally:
        for listener in listeners:
            listener.backward_ended(run, failed=failed)
    return result


PLAIN = Run()
_CREATES_GRAPH, _INPUTS = 2, 3  # places among the arguments behind the outputs


def _places() -> list[tuple[Any, str]]:
    return [(torch.autograd, name) for name in ("_engine_run_backward",) if hasattr(torch.autograd, name)]


BACKWARDS: Interception[Heard] = Interception(_places, _run, alone=True)
