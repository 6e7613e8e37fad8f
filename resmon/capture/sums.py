"""Sums of squares that are fast and right, for tensors in main memory of any layout and floating dtype.

One-shot float32 norms lose accuracy with size, overflow from about 1e19 and vanish below 1e-22 (FACTS.md, "Sums that are fast
and right"). Here no float32 sum is longer than 262,144 elements (the norm of the worst of constant, spiked and random tensors was
off by 5e-5, that of ordinary ones by 2e-7), and the parts are added in float64. Half precision goes through a small float32
scratch. Where a part leaves float32's range, and only then, the tensor is read again in float64: so a result that is not finite
means that an element is not.

Inside a training step, where code and data are cold, torch's dot product was the fastest of seven ways (38 us for 65,536 elements;
numpy's 49 to 90). It shares torch's threads, and so its trouble where other processes want the same cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from resmon.records import Floats

PIECE = 262_144  # elements of one float32 dot product
_SCRATCH = 32_768  # elements that are converted at once
_NATIVE = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
# Mean squares outside of these are suspected of elements whose squares left float32's range.
_SAFE_LOW = 1e-30
_SAFE_HIGH = 1e36
_SMALL = 16_384  # elements whose one-shot float32 norm is right to 1e-6
_SAFE_NORM = (1e-12, 1e18)  # norms of so few elements between these have lost nothing in float32


def square_sum(tensor: Tensor) -> float:
    """The sum of squares of all elements, in float64; NaN or infinite where an element is."""
    tensor = tensor.detach()
    numel = tensor.numel()
    flat = flattened(tensor) if tensor.dtype in _NATIVE else None
    if flat is None:
        total = sum(float(torch.dot(piece, piece)) for piece in _converted(tensor))
    elif numel <= PIECE:
        total = float(torch.dot(flat, flat))
    else:
        total = sum([float(torch.dot(piece, piece)) for piece in flat.split(PIECE)])
    if _SAFE_LOW * numel < total < _SAFE_HIGH * numel:
        return total
    if math.isnan(total):  # squares that overflow are infinite: a NaN was there before
        return total
    return 0.0 if total == 0 and not tensor.any() else _exact(tensor)


def square_sums(tensors: Sequence[Tensor]) -> Floats:
    """The sum of squares of each tensor, as `square_sum` gives it, in fewer calls."""
    squares = np.zeros(len(tensors))
    small: list[Tensor] = []
    places: list[int] = []
    for i, tensor in enumerate(tensors):
        if tensor.dtype is torch.float32 and tensor.numel() <= _SMALL:
            small.append(tensor)
            places.append(i)
        else:
            squares[i] = square_sum(tensor)
    if small:
        # One call for all small ones: the call itself is what such a tensor costs.
        norms = torch.stack(torch._foreach_norm(small)).double().numpy()
        squares[places] = norms * norms
        for j in np.flatnonzero(~((norms > _SAFE_NORM[0]) & (norms < _SAFE_NORM[1]))):
            squares[places[j]] = square_sum(small[j])
    return squares


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


def _converted(tensor: Tensor) -> Iterator[Tensor]:
    """The elements in float32 (float64 stays), piece by piece in the same memory."""
    dtype = torch.float32 if tensor.dtype in _HALF else tensor.dtype
    scratch = torch.empty(min(tensor.numel(), _SCRATCH), dtype=dtype)
    for piece in _pieces(tensor):
        copy = scratch[: piece.numel()]
        copy.view(piece.shape).copy_(piece)
        yield copy


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
    """The tensor in views of at most _SCRATCH elements, cut along its outermost dimensions in memory."""
    if tensor.numel() <= _SCRATCH:
        yield tensor
        return
    dimension = max((d for d in range(tensor.dim()) if tensor.shape[d] > 1), key=lambda d: (tensor.stride(d), tensor.shape[d]))
    size = max(1, _SCRATCH // (tensor.numel() // tensor.shape[dimension]))
    for piece in tensor.split(size, dimension):
        yield from _pieces(piece)
