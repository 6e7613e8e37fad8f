"""Stand-ins: a model and its arguments as copies without numbers, on which a forward pass costs neither memory nor computation.

A fake tensor has shape, dtype, device and strides and holds nothing. Copies share no tensor with what they were made of, and no
operation on fakes reaches a kernel, a collective or a random generator, so that a pass on stand-ins leaves no trace. What depends
on numbers (`.item()`, a mask's length) cannot be told from fakes: `DEPENDS_ON_NUMBERS` are the exceptions that say so.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

DEPENDS_ON_NUMBERS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


class Fakes(AbstractContextManager[None]):
    """Makes stand-ins, and is what they are used in: `with fakes: model(*args)`."""

    def __init__(self) -> None:
        # A fallback kernel would run on real zeros, and a collective's would communicate.
        self._mode = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
        self._entered: list[ExitStack] = []

    def copies(self, *things: Any) -> tuple[Any, ...]:
        """Deep copies of models, tensors and what holds them. Raises whatever their own way of being copied raises."""
        with FakeCopyMode(self._mode):
            copied = copy.deepcopy(things)
        for thing in copied:
            if isinstance(thing, nn.Module):
                _keep_to_itself(thing)
        return copied

    def replace(self, model: nn.Module) -> None:
        """Put stand-ins, on the CPU, in the place of a model's tensors wherever these are; what is shared stays so."""
        known: dict[int, Tensor] = {}

        def stand_in(tensor: Tensor) -> Tensor:
            if id(tensor) not in known:
                with self:
                    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                    known[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
            return known[id(tensor)]

        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None and not torch.nn.parameter.is_lazy(tensor):
                        held[name] = stand_in(tensor)  # type: ignore[assignment]
        _keep_to_itself(model)

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self._mode)
            stack.enter_context(_silence())
            self._entered.append(stack.pop_all())

    def __exit__(self, *error: object) -> None:
        self._entered.pop().close()


def _keep_to_itself(model: nn.Module) -> None:
    """Synchronised batch norms of a copy talk to no other rank."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.training = False


@contextmanager
def _silence() -> Iterator[None]:
    """torch prints a traceback for each operation that fails on fakes; ours fail on purpose."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before
