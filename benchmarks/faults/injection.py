"""Faults at a chosen module, operation and direction, switched on and off by the loop so that a pass done again has them too.

A fault is a TorchFunctionMode around the whole forward pass that waits for one call. Forward, what that call returns is broken in
memory, by numpy, which no torch call shows; backward, the gradient that comes to what it returned is.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import resmon
from resmon.capture.discovery.dataflow import leaves

Direction = Literal["forward", "backward"]

_NOT_THE_USERS = (*(str(Path(str(package.__file__)).parent) for package in (torch, resmon)), __file__)


@dataclass(frozen=True)
class Place:
    """The `ordinal`-th call of that operation in the module's own forward."""

    module: str
    operation: str
    ordinal: int


class Calls(TorchFunctionMode):
    """Hears of every torch call in a pass of `model`, and at which place it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._frames = [""]
        self._counts: Counter[tuple[str, str]] = Counter()
        self.passes: Counter[str] = Counter()  # of each module
        self._handles = []
        for path, module in model.named_modules():
            if path:
                self._handles.append(module.register_forward_pre_hook(self._enter(path), prepend=True))
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._frames.append(path)
            self.passes[path] += 1

        return enter

    def _leave(self, *_: Any) -> None:
        if len(self._frames) > 1:
            self._frames.pop()

    def begin(self) -> None:
        """A pass begins."""
        self._frames[1:] = []
        self._counts.clear()
        self.passes.clear()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name and name not in ("__get__", "__set__"):
            path = self._frames[-1]
            place = Place(path, name, self._counts[path, name])
            self._counts[path, name] += 1
            self.called(place, (args, kwargs or {}), result)
        return result

    def called(self, place: Place, arguments: Any, result: Any) -> None:
        raise NotImplementedError


class Fault(Calls):
    """Breaks what `place` returns while it is `on`: `value` becomes its last element."""

    def __init__(self, model: nn.Module, place: Place, direction: Direction, value: float = math.nan) -> None:
        super().__init__(model)
        self.place, self.direction, self.value = place, direction, value
        self.on = False
        self.line = ""  # of the source that made the call: "file:number"
        self._forward = model.forward
        model.forward = self._broken_forward

    def _broken_forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.on:
            return self._forward(*args, **kwargs)
        self.begin()
        with self:
            return self._forward(*args, **kwargs)

    def called(self, place: Place, arguments: Any, result: Any) -> None:
        if place != self.place:
            return
        self.line = _line()
        tensor = next(tensor for _, tensor in leaves(result))
        if self.direction == "forward":
            with torch._C.DisableTorchFunction():
                _break(tensor, self.value)
        else:
            tensor.register_hook(self._broken)

    def _broken(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        _break(gradient, self.value)
        return gradient


def _break(tensor: Tensor, value: float) -> None:
    array = tensor.detach().numpy()
    array[(-1,) * array.ndim] = value


def is_the_users(file: str) -> bool:
    return not file.startswith(_NOT_THE_USERS)


def _line() -> str:
    """The innermost line that is running and neither torch's nor resmon's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not is_the_users(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


class _Places(Calls):
    """Every call whose fresh, floating-point result builds a graph, with that result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: list[tuple[Place, Tensor]] = []

    def called(self, place: Place, arguments: Any, result: Any) -> None:
        read = {tensor.untyped_storage().data_ptr() for _, tensor in leaves(arguments)}
        computed = isinstance(result, Tensor) and result.requires_grad and result.is_floating_point() and result.numel() > 0
        if computed and result.is_contiguous() and result.untyped_storage().data_ptr() not in read:
            self.found.append((place, result))


def places(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], *, inner: bool = False) -> list[Place]:
    """Where a fault can be put in a pass of this model, of modules that run once.

    `inner` leaves out what is the model's own output: a gradient that comes to it broken is the loss's.
    """
    mode = _Places(model)
    with mode:
        output = model(*args, **kwargs)
    mode.remove()
    outputs = {tensor.untyped_storage().data_ptr() for _, tensor in leaves(output)} if inner else set()
    return [
        place
        for place, tensor in mode.found
        if mode.passes[place.module] <= 1 and tensor.untyped_storage().data_ptr() not in outputs
    ]
