"""Sums of squares that are fast and right, for tensors in main memory of any layout and floating dtype.

One-shot float32 norms lose accuracy with size, overflow from about 1e19 and vanish below 1e-22 (FACTS.md, "Sums that are fast
and right"). Here no float32 sum is longer than a row of 8,192 elements, and rows are added in float64: off by 2e-6 at worst. Half
precision goes through a small float32 scratch. Where a row leaves float32's range, and only then, the tensor is read again in
float64: so a result that is not finite means that an element is not.

All of it runs on the calling thread: numpy's dot products of such rows are never split among threads, while torch's are from a few
thousand elements on, and wait for a time slice (3 ms where 2 us were enough, measured) wherever another process has the other core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ROW = 8_192  # elements of one dot product; OpenBLAS splits those of more than 10,000 among threads
PIECE = 32_768  # elements that are copied or converted at once: torch does as many on one thread
_NATIVE = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
# Mean squares outside of these are suspected of elements whose squares left float32's range.
_SAFE_LOW = 1e-30
_SAFE_HIGH = 1e36


def square_sum(tensor: Tensor) -> float:
    """The sum of squares of all elements, in float64; NaN or infinite where an element is."""
    tensor = tensor.detach()
    numel = tensor.numel()
    flat = flattened(tensor) if tensor.dtype in _NATIVE else None
    with np.errstate(all="ignore"):
        total = _dot(flat.numpy()) if flat is not None else sum(_dot(piece) for piece in _converted(tensor))
    if _SAFE_LOW * numel < total < _SAFE_HIGH * numel:
        return total
    if math.isnan(total):  # squares that overflow are infinite: a NaN was there before
        return total
    return 0.0 if total == 0 and not tensor.any() else _exact(tensor)


def nonfinite_count(tensor: Tensor) -> int:
    """How many elements are NaN or infinite."""
    # What is finite is 0 less itself, everything else is NaN: ten times as fast as asking isfinite.
    return sum(int(torch.count_nonzero(piece - piece)) for piece in _pieces(tensor.detach()))


def flattened(tensor: Tensor) -> Tensor | None:
    """All elements in the order of memory as a one-dimensional view, or None where the tensor has gaps or overlaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    if _is_dense(tensor.shape, tensor.stride()):
        return tensor.as_strided((tensor.numel(),), (1,))
    return None


@lru_cache(maxsize=4096)
def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _dot(flat: npt.NDArray[Any]) -> float:
    """The sum of squares of a float32 or float64 array, row by row."""
    numel = flat.size
    if numel <= ROW:
        return float(np.dot(flat, flat))
    rest = numel % ROW
    rows = flat[: numel - rest].reshape(-1, ROW)
    total = float(np.vecdot(rows, rows).sum(dtype=np.float64))
    if rest:
        tail = flat[numel - rest :]
        total += float(np.dot(tail, tail))
    return total


def _converted(tensor: Tensor) -> Iterator[npt.NDArray[Any]]:
    """The elements in float32 (float64 stays), piece by piece in the same memory."""
    scratch = torch.empty(min(tensor.numel(), PIECE), dtype=torch.float32 if tensor.dtype in _HALF else tensor.dtype)
    for piece in _pieces(tensor):
        copy = scratch[: piece.numel()]
        copy.view(piece.shape).copy_(piece)
        yield copy.numpy()


def _exact(tensor: Tensor) -> float:
    """In float64, scaled by the largest element, so that only a total beyond float64's own range can overflow."""
    total = 0.0
    for piece in _pieces(tensor):
        wide = piece.double()
        largest = wide.abs().max().item()
        if not math.isfinite(largest):
            return math.nan if math.isnan(largest) else math.inf
        if largest > 0:
            total += torch.linalg.vector_norm(wide / largest).square().item() * largest * largest
    return min(total, torch.finfo(torch.float64).max)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor in views of at most PIECE elements, cut along its outermost dimensions in memory."""
    if tensor.numel() <= PIECE:
        yield tensor
        return
    dimension = max((d for d in range(tensor.dim()) if tensor.shape[d] > 1), key=lambda d: (tensor.stride(d), tensor.shape[d]))
    size = max(1, PIECE // (tensor.numel() // tensor.shape[dimension]))
    for piece in tensor.split(size, dimension):
        yield from _pieces(piece)
