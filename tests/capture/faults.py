"""Faults at a chosen module, operation and direction, switched on and off by the loop so that a pass done again has them too.

A fault is a TorchFunctionMode around the forward of the module. Forward, what the operation returns is broken in memory, by
numpy, which no torch call shows; backward, the gradient that comes to what it returned is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resmon.capture.dataflow import leaves

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Place:
    """The `ordinal`-th call of that operation in the module's own forward."""

    module: str
    operation: str
    ordinal: int


class Fault(TorchFunctionMode):
    """Breaks what `place` returns while it is `on`: NaN or Inf in one element of each of `rows` of it."""

    def __init__(self, place: Place, direction: Direction, value: float = math.nan) -> None:
        super().__init__()
        self.place, self.direction, self.value = place, direction, value
        self.on = False
        self.hit = 0
        self._count = 0
        self._inside = 0

    def install(self, model: nn.Module) -> None:
        module = model.get_submodule(self.place.module)
        forward = module.forward

        def broken(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return forward(*args, **kwargs)
            self._count = self._inside = 0
            with self:
                return forward(*args, **kwargs)

        module.forward = broken  # type: ignore[method-assign]
        for child in module.modules():
            if child is not module:
                child.register_forward_pre_hook(self._deeper, prepend=True)
                child.register_forward_hook(self._back, always_call=True)

    def _deeper(self, *_: Any) -> None:
        self._inside += 1

    def _back(self, *_: Any) -> None:
        self._inside -= 1

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._inside or getattr(func, "__name__", "") != self.place.operation:
            return result
        self._count += 1
        if self._count - 1 == self.place.ordinal:
            self.hit += 1
            tensor = next(tensor for _, tensor in leaves(result))
            if self.direction == "forward":
                with torch._C.DisableTorchFunction():
                    _break(tensor, self.value)
            else:
                tensor.register_hook(self._broken)
        return result

    def _broken(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        _break(gradient, self.value)
        return gradient


def _break(tensor: Tensor, value: float) -> None:
    array = tensor.detach().numpy()
    array[(-1,) * array.ndim] = value


class _Places(TorchFunctionMode):
    """Every call whose fresh, floating-point result builds a graph."""

    def __init__(self, frames: list[str]) -> None:
        super().__init__()
        self._frames = frames
        self._counts: Counter[tuple[str, str]] = Counter()
        self.found: list[Place] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__") or not name:
            return result
        path = self._frames[-1]
        ordinal = self._counts[path, name]
        self._counts[path, name] += 1
        read = {tensor.untyped_storage().data_ptr() for _, tensor in leaves((args, kwargs or {}))}
        computed = isinstance(result, Tensor) and result.requires_grad and result.is_floating_point() and result.numel() > 0
        if computed and result.is_contiguous() and result.untyped_storage().data_ptr() not in read:
            self.found.append(Place(path, name, ordinal))
        return result


def places(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Place]:
    """Where a fault can be put in a pass of this model, of modules that run once."""
    frames = [""]
    calls: Counter[str] = Counter()
    handles = []

    def enter(path: str) -> Any:
        def hook(*_: Any) -> None:
            frames.append(path)
            calls[path] += 1

        return hook

    def leave(*_: Any) -> None:
        frames.pop()

    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(enter(path), prepend=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
    mode = _Places(frames)
    with mode:
        model(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return [place for place in mode.found if calls[place.module] <= 1]
