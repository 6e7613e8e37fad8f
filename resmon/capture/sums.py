"""Sums of squares that are fast and right, for tensors of any layout and floating dtype.

One-shot float32 norms lose accuracy with size, overflow from about 1e19 and vanish below 1e-22 (FACTS.md, "Sums that are fast
and right"). Here no float32 sum is longer than 262,144 elements (the norm of the worst of constant, spiked and random tensors was
off by 5e-5, that of ordinary ones by 2e-7), and the parts are added in float64. Half precision goes through a small float32
scratch. Where a part leaves float32's range, and only then, the tensor is read again in float64: so a result that is not finite
means that an element is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

PIECE = 262_144  # elements of one float32 dot product, and of the scratch: 1 MiB, which stays in the second-level cache
ROW = 16_384  # elements of one row of a large tensor
_LARGE = 1 << 21
_HALF = (torch.float16, torch.bfloat16)
# Mean squares outside of these are suspected of elements whose squares left float32's range.
_SAFE_LOW = 1e-30
_SAFE_HIGH = 1e36


def square_sum(tensor: Tensor) -> float:
    """The sum of squares of all elements, in float64; NaN or infinite where an element is.

    Cheapest where gradients are disabled.
    """
    # The usual case in as few calls as it takes: in a training loop code is out of the caches each time, and calls are the cost.
    numel = tensor.numel()
    if tensor.dtype is torch.float32 and numel <= PIECE and tensor.is_contiguous():
        flat = tensor.view(-1)
        total = float(torch.dot(flat, flat))
    else:
        total = _any_layout(tensor.detach(), numel)
    if _SAFE_LOW * numel < total < _SAFE_HIGH * numel:
        return total
    return 0.0 if total == 0 and not tensor.any() else _exact(tensor.detach())


def _any_layout(tensor: Tensor, numel: int) -> float:
    if tensor.dtype is torch.float32:
        flat = flattened(tensor)
        if flat is not None:
            return _float32(flat, numel)
    elif tensor.dtype not in _HALF:
        return _exact(tensor)
    scratch = torch.empty(min(numel, PIECE), dtype=torch.float32, device=tensor.device)
    total = 0.0
    for piece in _pieces(tensor):
        copy = scratch[: piece.numel()]
        copy.view(piece.shape).copy_(piece)
        total += torch.dot(copy, copy).item()
    return total


def nonfinite_count(tensor: Tensor) -> int:
    """How many elements are NaN or infinite."""
    return sum(piece.numel() - int(torch.isfinite(piece).sum()) for piece in _pieces(tensor.detach()))


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


def _float32(flat: Tensor, numel: int) -> float:
    if numel < _LARGE:
        return sum([float(torch.dot(piece, piece)) for piece in flat.split(PIECE)])
    # By rows, which all threads share: what is so large comes from memory.
    rows, rest = divmod(numel, ROW)
    norms = torch.linalg.vector_norm(flat[: numel - rest].view(rows, ROW), dim=1).double()
    total = float(torch.dot(norms, norms))
    if rest:
        tail = flat[numel - rest :]
        total += float(torch.dot(tail, tail))
    return total


def _exact(tensor: Tensor) -> float:
    """In float64, scaled by the largest element, so that only a total beyond float64's own range can overflow."""
    total = 0.0
    for piece in _pieces(tensor):
        wide = piece.double()
        largest = wide.abs().max().item()
        if not math.isfinite(largest):
            return float("nan") if math.isnan(largest) else math.inf
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
