"""What is kept of a step's forward passes, so that one of them can be done again.

References only: arguments (detached, so that they hold no graph), the random states and autocasting at the start, the outputs, and
the gradients that arrived at them. Nothing is computed, and all is let go when the step is over. The newest pass is always kept;
of those before it, where gradients accumulate over several, as many as take no more than RETAINED bytes together. What was changed
in place since then shows by its version and is not used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resmon.capture.discovery.dataflow import leaves
from resmon.capture.host import compiler
from resmon.capture.host.hook import Hook
from resmon.capture.host.randomness import Randomness
from resmon.capture.host.stack import is_the_users
from resmon.capture.probes.taps import hang

RETAINED = 64 << 20  # bytes of tensors of all but the newest pass
MOST = 64  # passes that are kept
LARGEST_OUTPUT = 16 << 20  # bytes of an output that is kept to be compared with


@dataclass(frozen=True, slots=True)
class Autocasting:
    """Which devices autocast, and to what."""

    dtypes: Mapping[str, torch.dtype]
    cache: bool

    @classmethod
    def now(cls) -> Autocasting:
        dtypes = {device: torch.get_autocast_dtype(device) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)}
        return cls(dtypes, torch.is_autocast_cache_enabled())

    @contextmanager
    def entered(self) -> Iterator[None]:
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                on = device in self.dtypes
                if on or torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, self.dtypes.get(device), on, self.cache))
            yield


_NO_AUTOCASTING = Autocasting({}, True)
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled


class Held:
    """A tensor that somebody else may change."""

    __slots__ = ("_leaf", "_requires_grad", "_version", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self._leaf, self._requires_grad = True, tensor.requires_grad
        if self._requires_grad:  # nothing else has a graph
            self._leaf, tensor = tensor.is_leaf, tensor.detach()
        self.tensor = tensor
        self._version = _version(tensor)

    @property
    def is_as_it_was(self) -> bool:
        return _version(self.tensor) == self._version

    def again(self) -> Tensor:
        """As it was given: one in which gradients end, and from which a model takes what it may change in place."""
        tensor = self.tensor.detach()
        if not self._requires_grad:
            return tensor
        tensor.requires_grad_()
        return tensor if self._leaf else tensor.clone()


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass with gradients of the model named `key`."""

    key: str
    model: nn.Module
    number: int  # in its step, from 0
    arguments: Any  # (args, kwargs), a Held for each tensor
    randomness: Randomness
    autocasting: Autocasting
    training: bool
    called_at: tuple[str, int]  # file and line
    outputs: dict[int, Held] = field(default_factory=dict)  # by the output's number
    gradients: dict[int, Held] = field(default_factory=dict)  # that arrived, likewise
    gone: bool = False
    bytes: int = 0  # that it keeps, once they were counted
    compiled: bool = False

    def let_go(self) -> None:
        """Keep nothing of it, also where its outputs live on."""
        self.gone = True
        self.arguments = None
        self.outputs.clear()
        self.gradients.clear()

    def count(self) -> int:
        """How many bytes it keeps; 1 at least."""
        held = (*_held(self.arguments), *self.outputs.values(), *self.gradients.values())
        self.bytes = max(1, sum(_size(each.tensor) for each in held))
        return self.bytes

    def changed(self) -> bool:
        """Whether an argument is no more what it was."""
        return any(not held.is_as_it_was for held in _held(self.arguments))


class References:
    """The passes of the step under way, of all models, in order."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.lost: set[str] = set()  # models of which passes of this step were let go, for they were too many or too large
        self._counts: dict[str, int] = {}  # passes of this step, by model
        self._current: Pass | None = None  # that is under way
        self._retained = 0  # bytes of all passes but the newest
        self.looks_away = False  # what arrives at outputs now is no gradient of the loss
        self.differentiated = False  # derivatives were taken that the loss may be made of
        self._process = os.getpid()

    def begin(
        self, key: str, model: nn.Module, args: Any, kwargs: Any, *, compiled: bool = False, spoilt: Callable[[], bool] = bool
    ) -> None:
        """A pass begins, before anything of it has run. `spoilt` says whether one of this step was not finite: it is not let go."""
        self._current = None
        number = self._counts.get(key, 0)
        self._counts[key] = number + 1
        if self.passes and not self._has_room(spoilt):
            self.lost.add(key)
            return
        self._current = Pass(
            key,
            model,
            number,
            (tuple([keep(each) for each in args]), keep(kwargs) if kwargs else {}),
            Randomness.now(),
            Autocasting.now() if _is_any_autocast_enabled() else _NO_AUTOCASTING,
            model.training,
            _caller(),
            compiled=compiled,
        )
        self.passes.append(self._current)

    def _has_room(self, spoilt: Callable[[], bool]) -> bool:
        """Make room for another pass behind those that there are; False where one of them must not be let go."""
        if not self.passes[-1].bytes:  # what it keeps is counted once another follows it
            self._retained += self.passes[-1].count()
        if (self._retained > RETAINED or len(self.passes) >= MOST) and spoilt():
            return False
        while self.passes and (self._retained > RETAINED or len(self.passes) >= MOST):
            oldest = self.passes.pop(0)
            self._retained -= oldest.bytes
            self.lost.add(oldest.key)
            oldest.let_go()
        return True

    def end(self, key: str, output: Any) -> None:
        """The pass that was begun last has ended."""
        made, self._current = self._current, None
        if made is None or made.key != key:
            return
        tensors = (output,) if type(output) is Tensor else [tensor for _, tensor in leaves(output)]
        for i, tensor in enumerate(tensors):
            if type(tensor) is not Tensor:
                continue
            if _size(tensor) <= LARGEST_OUTPUT:
                made.outputs[i] = Held(tensor)
            if tensor.grad_fn is not None:  # a hook on a parameter would stay there
                hang(tensor, _Arrival(self, made, i))

    def arrived(self, made: Pass, output: int, gradient: Tensor) -> None:
        """A gradient has arrived at an output: the newest is kept."""
        if os.getpid() == self._process and not (made.gone or self.looks_away) and type(gradient) is Tensor:
            if made.bytes and output not in made.gradients:  # it was counted without
                made.bytes += _size(gradient)
                self._retained += _size(gradient)
            made.gradients[output] = Held(gradient)

    def count(self, key: str) -> int:
        """How many passes of that model the step has had."""
        return self._counts.get(key, 0)

    def clear(self) -> None:
        """The step is over."""
        for made in self.passes:
            made.let_go()
        self.passes.clear()
        self._retained = 0
        self.lost.clear()
        self.differentiated = False
        self._counts.clear()


class _Arrival(Hook):
    __torch_unserializable__ = True  # torch.save warns of other hooks
    __slots__ = ("_output", "_pass", "_references")

    def __init__(self, references: References, made: Pass, output: int) -> None:
        self._references, self._pass, self._output = references, made, output

    def __call__(self, gradient: Tensor) -> None:
        if not compiler.traces():
            self._references.arrived(self._pass, self._output, gradient)


def _caller() -> tuple[str, int]:
    """The innermost line on the stack that is the user's."""
    frame = sys._getframe(1)
    while not is_the_users(frame.f_code.co_filename):
        if frame.f_back is None:
            return "", 0
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def keep(tree: Any) -> Any:
    """The same tree of tuples, lists and dicts with a Held in the place of each tensor; all else by reference."""
    kind = type(tree)
    if kind is Tensor:
        return Held(tree)
    if kind is dict:
        return {key: keep(value) for key, value in tree.items()}
    if kind is list or kind is tuple:
        return kind([keep(value) for value in tree])
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind(*(keep(value) for value in tree))
    return tree


def given(tree: Any) -> Any:
    """The tree that was kept, to be given again."""
    kind = type(tree)
    if kind is Held:
        return tree.again()
    if kind is dict:
        return {key: given(value) for key, value in tree.items()}
    if kind is list or kind is tuple:
        return kind(given(value) for value in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind(*(given(value) for value in tree))
    return tree


def _held(tree: Any) -> Iterator[Held]:
    if isinstance(tree, Held):
        yield tree
    elif type(tree) is dict:
        for value in tree.values():
            yield from _held(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _held(value)


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # an inference tensor has none
        return -1


def _size(tensor: Tensor) -> int:
    return tensor.nbytes
