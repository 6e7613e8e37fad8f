"""Sums of squares that are fast and right, for tensors of any layout and floating dtype.

One-shot float32 norms lose accuracy with size, overflow from about 1e19 and vanish below 1e-22 (FACTS.md, "Sums that are fast
and right"). Here rows of at most 16,384 elements are summed in float32 and combined in float64; half precision goes through a small
float32 scratch; where a row leaves float32's range, and only then, the tensor is read again in float64. So a result that is not
finite means that an element is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

ROW = 16_384
_PIECE = 1 << 18  # elements of the scratch: 1 MiB of float32, which stays in the second-level cache
_SAFE_LOW = 1e-15  # root mean squares outside of these are suspected of lost elements
_SAFE_HIGH = 1e18


def square_sum(tensor: Tensor) -> float:
    """The sum of squares of all elements, in float64; NaN or infinite where an element is."""
    tensor = tensor.detach()
    numel = tensor.numel()
    if numel == 0:
        return 0.0
    if tensor.dtype is torch.float32 and (flat := flattened(tensor)) is not None:
        total = _float32(flat)
    elif tensor.dtype in (torch.float16, torch.bfloat16, torch.float32):
        scratch = torch.empty(min(numel, _PIECE), dtype=torch.float32, device=tensor.device)
        total = 0.0
        for piece in _pieces(tensor):
            copy = scratch[: piece.numel()]
            copy.view(piece.shape).copy_(piece)
            total += _float32(copy)
    else:
        return _exact(tensor)
    if _SAFE_LOW**2 * numel < total < _SAFE_HIGH**2 * numel:
        return total
    return 0.0 if total == 0 and not tensor.any() else _exact(tensor)


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


@lru_cache(maxsize=4096)
def _row_length(numel: int) -> int:
    """The longest row of at most ROW elements that divides `numel`, or ROW where that would be short."""
    for length in range(min(ROW, numel), 255, -1):
        if numel % length == 0:
            return length
    return ROW


def _float32(flat: Tensor) -> float:
    numel = flat.numel()
    if numel <= ROW:
        norm: float = torch.linalg.vector_norm(flat).item()
        return norm * norm
    length = _row_length(numel)
    rows = numel // length
    norms = torch.linalg.vector_norm(flat[: rows * length].view(rows, length), dim=1).double()
    total: float = torch.dot(norms, norms).item()
    if rows * length < numel:
        total += _float32(flat[rows * length :])
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
    """The tensor in views of at most _PIECE elements, cut along its outermost dimensions in memory."""
    if tensor.numel() <= _PIECE:
        yield tensor
        return
    dimension = max((d for d in range(tensor.dim()) if tensor.shape[d] > 1), key=lambda d: (tensor.stride(d), tensor.shape[d]))
    size = max(1, _PIECE // (tensor.numel() // tensor.shape[dimension]))
    for piece in tensor.split(size, dimension):
        yield from _pieces(piece)
