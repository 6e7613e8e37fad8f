"""Gradient scalers, heard where their classes step and unscale, so that nobody need hand one over.

Where a scaler finds a non-finite gradient it does not call the optimizer at all, or (an optimizer that unscales inside its step)
calls it with a mark that makes it do nothing: only here such a step shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

from resmon.capture.host.fetch import held
from resmon.capture.host.interception import Function, Interception


class Scaled(Protocol):
    """Who hears of scalers. A scale on a GPU stays a tensor there: reading it would wait for the device."""

    def before_scaler_steps(self, optimizer: Optimizer, scale: float | Tensor, *, unscaled: bool) -> None:
        """`optimizer` is about to step or to be skipped; `unscaled` says that its gradients are without the scale already."""

    def after_scaler_stepped(self, optimizer: Optimizer, nonfinite: Sequence[Tensor]) -> None:
        """It has stepped, or, where one of `nonfinite` is not 0, it was skipped."""

    def scaler_failed(self) -> None:
        """The step that was announced ended in an exception."""

    def before_unscaling(self, optimizer: Optimizer, scale: float | Tensor) -> None: ...
    def after_unscaling(self) -> None: ...


def _step(
    listeners: Sequence[Scaled], original: Function, scaler: GradScaler, optimizer: Optimizer, *args: Any, **kwargs: Any
) -> Any:
    scale = _scale(scaler)
    if scale is None:
        return original(scaler, optimizer, *args, **kwargs)
    state = scaler._per_optimizer_states.get(id(optimizer))
    unscaled = state is not None and state["stage"] is not OptState.READY
    for listener in listeners:
        listener.before_scaler_steps(optimizer, scale, unscaled=unscaled)
    try:
        result = original(scaler, optimizer, *args, **kwargs)
    except BaseException:
        for listener in listeners:
            listener.scaler_failed()
        raise
    nonfinite = tuple(scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values())
    for listener in listeners:
        listener.after_scaler_stepped(optimizer, nonfinite)
    return result


def _unscale(listeners: Sequence[Scaled], original: Function, scaler: GradScaler, optimizer: Optimizer) -> None:
    scale = _scale(scaler)
    if scale is None:
        original(scaler, optimizer)
        return
    for listener in listeners:
        listener.before_unscaling(optimizer, scale)
    original(scaler, optimizer)
    for listener in listeners:
        listener.after_unscaling()


def _scale(scaler: GradScaler) -> float | Tensor | None:
    """As it is now: the scaler changes its own tensor in place. None where it is off, or was not used yet."""
    scale = scaler._scale if scaler.is_enabled() else None
    if scale is None:
        return None
    return held(scale)


def _classes(base: type[GradScaler] = GradScaler) -> Iterator[type[GradScaler]]:
    yield base
    for derived in base.__subclasses__():
        yield from _classes(derived)


def _places(name: str) -> list[tuple[Any, str]]:
    return [(each, name) for each in _classes() if name in vars(each)]


STEPS: Interception[Scaled] = Interception(lambda: _places("step"), _step)
UNSCALES: Interception[Scaled] = Interception(lambda: _places("unscale_"), _unscale)
