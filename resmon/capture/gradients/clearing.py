"""Gradients that are cleared, heard where torch's own `zero_grad` does it.

What a loop clears in the middle of a step (between the two passes of sharpness-aware minimisation, in an optimizer's closure, after
a batch that it gives up) is not stepped with, and so no part of the step's gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from resmon.capture.host.interception import Function, Interception

Parameters = Callable[[], Iterable[Tensor]]


class Cleared(Protocol):
    """Who hears of it."""

    def cleared(self, parameters: Parameters) -> None: ...


def _zero_grad(listeners: Sequence[Cleared], original: Function, owner: Optimizer | nn.Module, *args: Any, **kwargs: Any) -> Any:
    result = original(owner, *args, **kwargs)
    for listener in listeners:
        listener.cleared(lambda: _parameters(owner))
    return result


def _parameters(owner: Optimizer | nn.Module) -> Iterable[Tensor]:
    if isinstance(owner, nn.Module):
        return owner.parameters()
    return (parameter for group in owner.param_groups for parameter in group["params"])


CLEARINGS: Interception[Cleared] = Interception(lambda: [(Optimizer, "zero_grad"), (nn.Module, "zero_grad")], _zero_grad)
