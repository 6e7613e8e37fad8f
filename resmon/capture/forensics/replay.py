"""A forward pass done again, and its backward pass, leaving no trace.

Weights are those of the pass as long as no optimizer has stepped. Random states, autocasting and arguments are those that were
kept; the gradient that came to the outputs then is given to them now, as `autograd.grad` would, which leaves `.grad` alone.
Whatever that changes (random states, parameters, buffers and their versions, modules' attributes and what these hold) is put back
afterwards, also after an exception. A model that asks other ranks for anything is not done again, for they would not answer.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSet, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode

from resmon.capture.discovery.dataflow import leaves
from resmon.capture.forensics.birth import Holder, Trace, Watcher
from resmon.capture.forensics.references import Pass, given
from resmon.capture.host import compiler
from resmon.capture.host.placement import is_distributed
from resmon.capture.host.process import rank_and_world
from resmon.capture.host.randomness import kept

OBJECTS = 100_000  # that are looked at for what a forward pass may change
DEPTH = 8  # how far they are followed from a module
# Objects that are not followed: ours, and those that a forward pass does not change but that hold much.
_APART = ("resmon.", "torch._", "torch.optim", "torch.utils.data", "torch.distributed")


class ReplayError(Exception):
    """The pass cannot be done again; the message says why, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """A pass that was done again."""

    trace: Trace
    outputs: Mapping[int, Tensor]  # by their number
    ends: frozenset[int]  # those that the backward pass began at
    gradients: Mapping[str, Tensor] | None  # of parameters; None where no gradient of an output was kept


def refusal(model: nn.Module) -> str:
    """Why passes of this model are never done again; empty where they may be."""
    _, world = rank_and_world()
    for module in model.modules():
        if any(is_distributed(parameter) for parameter in module._parameters.values() if parameter is not None):
            return "its parameters are sharded, so that a forward pass communicates with the other ranks"
        if type(module).__module__.startswith(("torch.distributed.", "torch.nn.parallel.")):
            return f"{type(module).__name__} communicates with the other ranks"
        if isinstance(module, nn.SyncBatchNorm) and world > 1:
            return "its batch norm is synchronised with the other ranks"
    return ""


@contextmanager
def repeated(made: Pass, holders: Sequence[Holder], watcher: Watcher | None = None) -> Iterator[Repeated]:
    """Do the pass again. What it yields is let go when the context is left, and all is as before. Raises ReplayError."""
    if made.gone or made.changed():
        raise ReplayError("its inputs were let go" if made.gone else "its inputs were changed in place since")
    if made.model.training != made.training:
        raise ReplayError("the model was switched between training and evaluation since")
    trace = Trace(made.model, holders, made.called_at, watcher)
    with ExitStack() as stack:
        stack.callback(trace.close)
        args, kwargs = given(made.arguments)
        stack.enter_context(untouched(made.model, [tensor for _, tensor in leaves((args, kwargs))]))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(torch.enable_grad())
        if rank_and_world()[1] > 1:
            stack.enter_context(_Silence())  # type: ignore[no-untyped-call]
        if made.compiled and compiler.is_loaded():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        made.randomness.restore()
        with made.autocasting.entered():
            output = trace.forward(args, kwargs)
        outputs = {i: tensor for i, (_, tensor) in enumerate(leaves(output))}
        usable = {
            i: held.tensor.clone()
            for i, held in made.gradients.items()
            if held.is_as_it_was and i in outputs and outputs[i].requires_grad and outputs[i].shape == held.tensor.shape
        }
        ends = _ends({i: outputs[i] for i in usable})
        given_to = [(outputs[i], usable[i]) for i in sorted(ends)]
        gradients = None
        if given_to:
            named = {name: each for name, each in made.model.named_parameters() if each.requires_grad}
            inputs = [tensor for _, tensor in leaves((args, kwargs)) if tensor.requires_grad and tensor.is_leaf]
            trace.listen()
            found = _engine_run_backward(
                tuple(tensor for tensor, _ in given_to),
                tuple(gradient for _, gradient in given_to),
                False,
                False,
                (*named.values(), *inputs),
                allow_unreachable=True,
                accumulate_grad=False,
            )
            gradients = {name: each for name, each in zip(named, found, strict=False) if each is not None}
        yield Repeated(trace, outputs, ends, gradients)


def _ends(outputs: Mapping[int, Tensor]) -> frozenset[int]:
    """Those that no other one is computed from: what comes to logits beside their loss, comes from that."""
    behind: set[Any] = set()
    for tensor in outputs.values():
        stack = [tensor.grad_fn] if tensor.grad_fn is not None else []
        while stack:
            for node, _ in stack.pop().next_functions:
                if node is not None and node not in behind:
                    behind.add(node)
                    stack.append(node)
    return frozenset(i for i, tensor in outputs.items() if tensor.grad_fn not in behind)


class _Silence(TorchDispatchMode):
    """No collective is issued while it is entered."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional", "_dtensor", "symm_mem"):
            raise ReplayError(f"it communicates with the other ranks ({func.__name__})")
        return func(*args, **(kwargs or {}))


@contextmanager
def untouched(model: nn.Module, others: Sequence[Tensor] = ()) -> Iterator[None]:
    """What runs in here leaves random states, the model and `others` as they are now."""
    state = _State(model, others)
    with kept(), ExitStack() as versions:
        for tensor in state.tensors:  # one by one: torch 2.6 takes no more at once
            versions.enter_context(_unsafe_preserve_version_counter(tensor))
        try:
            yield
        finally:
            state.restore()


class _State:
    """A model, and what can be reached from its modules' attributes, as it is now."""

    def __init__(self, model: nn.Module, others: Sequence[Tensor]) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._contents: list[tuple[Any, Any]] = []  # of lists, mappings and sets
        self._drawn: list[Callable[[], None]] = []  # put generators of the model's own back
        self._seen: set[int] = set()
        for tensor in (*model.parameters(), *model.buffers(), *others):
            self._take_tensor(tensor)
        modules = list(model.modules())
        self._seen.update(map(id, modules))  # each is looked into once, and from its own attributes on
        for module in modules:
            self._take(module.__dict__, DEPTH)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor, _ in self._copies.values() if not tensor.is_inference())

    def _take_tensor(self, tensor: Tensor) -> None:
        if id(tensor) not in self._copies and not torch.nn.parameter.is_lazy(tensor):
            self._copies[id(tensor)] = tensor, tensor.detach().clone()

    def _take(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            self._take_tensor(value)
            return
        if (put_back := _drawn(value)) is not None:
            self._drawn.append(put_back)
            return
        if id(value) in self._seen or len(self._seen) >= OBJECTS:
            return
        inside: Any = ()
        if isinstance(value, (list, deque)):
            self._contents.append((value, list(value)))
            inside = value
        elif isinstance(value, MutableSet):
            self._contents.append((value, set(value)))
        elif isinstance(value, MutableMapping):
            self._contents.append((value, dict(value)))
            # What hooks are objects of is theirs and, some of them, ours.
            inside = [each for key, each in value.items() if not str(key).endswith("_hooks")]
            for key, each in value.items():
                if str(key).endswith("_hooks") and isinstance(each, dict):
                    self._contents.append((each, dict(each)))
        elif isinstance(value, tuple):
            inside = value
        elif not isinstance(value, (type, ModuleType)) and not type(value).__module__.startswith(_APART):
            inside = (getattr(value, "__dict__", None),)
        self._seen.add(id(value))
        if depth:
            for each in inside:
                if each is not None and not isinstance(each, (str, bytes, int, float)):
                    self._take(each, depth - 1)

    def restore(self) -> None:
        for put_back in self._drawn:
            put_back()
        for value, before in self._contents:
            if isinstance(value, MutableMapping):
                if len(value) != len(before) or any(key not in value or value[key] is not each for key, each in before.items()):
                    for key in [key for key in value if key not in before]:
                        del value[key]
                    for key, each in before.items():  # update() of a Counter adds
                        value[key] = each
            elif isinstance(value, MutableSet):
                if value != before:
                    value.clear()
                    for each in before:
                        value.add(each)
            elif len(value) != len(before) or any(now is not then for now, then in zip(value, before, strict=True)):
                value.clear()
                value.extend(before)
        with torch.no_grad():
            for tensor, copy in self._copies.values():
                if not same(tensor, copy):
                    tensor.copy_(copy)


def _drawn(value: Any) -> Callable[[], None] | None:
    """What puts a source of random numbers back to where it is now; None for what is none."""
    if isinstance(value, torch.Generator):
        return partial(_set_state, value, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, but for the bits of a NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.detach(), b.detach()
    if a.layout is not torch.strided:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
