"""The loss of a loop that does not tell it: what `backward` is called on.

A step's loss is the sum of the scalars whose gradients it takes, as they were before a gradient scaler multiplied them; where a
loop accumulates, each micro-batch's part is divided already. It is read where it is, without a wait.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from resmon.capture.host.interception import Function, Interception
from resmon.monitor.watch import Monitor


def _backward(
    listeners: Sequence[Losses], original: Function, tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any
) -> None:
    if grad_tensors is None:
        for listener in listeners:
            listener.root(tensors)
    original(tensors, grad_tensors, *args, **kwargs)


def _scale(listeners: Sequence[Losses], original: Function, scaler: Any, outputs: Any) -> Any:
    scaled = original(scaler, outputs)
    for listener in listeners:
        listener.scaled(outputs, scaled)
    return scaled


BACKWARD: Interception[Losses] = Interception(lambda: [(torch.autograd, "backward")], _backward)
SCALE: Interception[Losses] = Interception(lambda: [(torch.amp.GradScaler, "scale")], _scale)


class Losses:
    """Logs them with a monitor until `close`."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._parts: list[Tensor] = []
        self._after: int | None = None  # the step that was over when they came
        self._scaled: tuple[Callable[[], Tensor | None], Tensor] | None = None
        BACKWARD.listen(self)
        SCALE.listen(self)

    def close(self) -> None:
        """Hear no more."""
        BACKWARD.leave(self)
        SCALE.leave(self)

    def scaled(self, outputs: Any, scaled: Any) -> None:
        """A gradient scaler has multiplied a loss."""
        if isinstance(outputs, Tensor) and isinstance(scaled, Tensor):
            self._scaled = weakref.ref(scaled), outputs.detach()

    def root(self, tensors: Any) -> None:
        """`backward` is called on these."""
        if isinstance(tensors, (tuple, list)) and len(tensors) == 1:
            (tensors,) = tensors
        if not isinstance(tensors, Tensor) or tensors.numel() != 1 or tensors.is_complex():
            return
        found = tensors.detach()
        if self._scaled is not None:
            if self._scaled[0]() is tensors:
                found = self._scaled[1]
            self._scaled = None
        if self._after != self._monitor.last_step:
            self._parts.clear()
        self._after = self._monitor.last_step
        self._parts.append(found.reshape(()))
        self._monitor.log(loss=self._parts[0] if len(self._parts) == 1 else torch.stack(self._parts).sum())
