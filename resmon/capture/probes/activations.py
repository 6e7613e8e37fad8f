"""What autograd keeps of a forward pass for the backward pass, block by block.

It is read off the graph that the pass has built: nothing is hooked, unpacked, computed or kept alive, and hooks of others on saved
tensors (offloading, checkpoints) stay as they are. Of a tensor that such a hook has packed, what it put in its place counts, where
that is on the same device. A storage counts once, to the block that finishes first; parameters, buffers and what is but a
parameter in another layout or precision do not count.

A block's part of the graph is what lies between the residual add and the nearest value that skip and branch both descend from:
going back from the add in the order in which the operations ran, what is met first from both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from heapq import heappop, heappush
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resmon.capture.discovery.dataflow import leaves
from resmon.capture.host.placement import local

EVERY = 256  # passes from one that is looked at to the next
SOON = 64  # at least so many, where the batch has become larger
MOST = 200_000  # operations that are looked at in one pass: a graph where blocks lie deep inside of each other would take for ever

# Older versions of torch give no way to see what is saved without unpacking it.
_READABLE = hasattr(torch._C._autograd.SavedTensor, "data")


class Kept(NamedTuple):
    """Bytes of one block: what autograd keeps of it, and how much of that would go if it was checkpointed."""

    bytes: int
    saves: int


class Activations:
    """Looks at one forward pass of `model`, while it runs."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {_storage(each) for tensors in (model.parameters(), model.buffers()) for each in tensors}
        self._left = MOST

    def block(self, output: Tensor) -> Kept | None:
        """Of the block that ends with the add whose result this is, as long as that is fresh. None where it cannot be told."""
        if not _READABLE or (output._is_view() and output._version):  # to ask such a view would change the graph
            return None
        top = output.grad_fn
        if top is None:
            return Kept(0, 0)
        device = local(output)[0].device
        entered = output.numel() * output.element_size()  # bytes of the block's input, unless the graph tells them
        total = self._take(_saved(top), device)
        sides: dict[Any, int] = {}
        heap: list[tuple[int, int, Any]] = []

        def reach(parents: Iterable[tuple[Any, int]], side: int) -> None:
            for node, number in parents:
                if node is None or _leaf(node) is not None:
                    continue
                if node not in sides:
                    # The newest first; the second number only tells equals apart.
                    heappush(heap, (-node._sequence_nr(), len(sides), (node, number)))
                sides[node] = sides.get(node, 0) | (side or 1 << len(sides))

        for parent in top.next_functions:
            reach((parent,), 0)
        while heap:
            node, number = heappop(heap)[2]
            side = sides[node]
            if side & (side - 1):
                value = node._input_metadata[number]
                entered = prod(value.shape) * value.dtype.itemsize
                break
            self._left -= 1
            if self._left < 0:
                return None
            total += self._take(_saved(node), device)
            reach(node.next_functions, side)
        return Kept(total, max(0, total - entered))

    def rest(self, output: Any) -> int | None:
        """What is kept of the whole pass, whose output this is, besides its blocks; once, when it is over. None where it failed."""
        found = [tensor for _, tensor in leaves(output) if not (tensor._is_view() and tensor._version)]
        stack = [tensor.grad_fn for tensor in found if tensor.grad_fn is not None]
        if not _READABLE or output is None:
            return None
        if not stack:
            return 0
        device = local(found[0])[0].device
        total, seen = 0, set(stack)
        while stack:
            node: Any = stack.pop()
            self._left -= 1
            if self._left < 0:
                return None
            total += self._take(_saved(node), device)
            new = {each for each, _ in node.next_functions if each is not None} - seen
            seen |= new
            stack += new
        return total

    def _take(self, tensors: Iterable[Tensor], device: torch.device) -> int:
        """Bytes of those that nobody before has kept."""
        total = 0
        for tensor in tensors:
            if tensor.device != device or _is_of_parameter(tensor):
                continue
            try:
                storage = local(tensor)[0].untyped_storage()
            except (NotImplementedError, RuntimeError):  # sparse and opaque tensors have none
                continue
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                total += storage.nbytes()
        return total


def _storage(tensor: Tensor) -> int:
    if torch.nn.parameter.is_lazy(tensor):  # a lazy module's parameter before its first pass
        return 0
    try:
        found: int = local(tensor)[0].untyped_storage()._cdata
        return found
    except (NotImplementedError, RuntimeError):
        return 0


def _leaf(node: Any) -> Tensor | None:
    """The tensor that the graph begins at here, if it does."""
    return getattr(node, "variable", None)


def _is_of_parameter(tensor: Tensor) -> bool:
    """Whether it is a parameter, also transposed or in another precision."""
    if tensor._is_view() and tensor._version:
        return False
    node: Any = tensor.grad_fn
    while node is not None and (leaf := _leaf(node)) is None:
        ((node, _), *others) = node.next_functions or ((None, 0),)
        if others:
            return False
    return isinstance(tensor if node is None else leaf, nn.Parameter)


def _saved(node: Any) -> Iterator[Tensor]:
    """The tensors that an operation's node holds."""
    kind: Any = type(node)
    for name in _names(kind):
        try:
            saved = getattr(node, name)
        except RuntimeError:  # freed
            continue
        for each in saved if isinstance(saved, (tuple, list)) else (saved,):
            yield from _held(each)


def _held(saved: Any) -> Iterator[Tensor]:
    hook = saved.unpack_hook
    yield from (tensor for _, tensor in leaves(saved.data))
    # A checkpoint holds the arguments of what it will run again, for all that is saved in there.
    for cell in getattr(hook, "__closure__", None) or ():
        for argument in getattr(cell.cell_contents, "saved_args", ()):
            data: Any = getattr(argument, "data", None) if isinstance(argument, torch._C._autograd.SavedTensor) else None
            yield from (tensor for _, tensor in leaves(data))


@lru_cache(maxsize=1024)
def _names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))
