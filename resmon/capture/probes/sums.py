"""Sums of squares that are fast and right, for tensors in main memory of any layout and floating dtype.

One-shot float32 norms lose accuracy with size, overflow from about 1e19 and vanish below 1e-22. The native part adds short float32
sums in float64 and reads again in float64 what leaves float32's range. It reads dense memory, in whatever order; a tensor with gaps
or overlaps is copied piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from resmon.errors import UnobservableError

try:
    from resmon.capture import _native
except ImportError as error:
    raise ImportError(
        "resmon's compiled part is missing. Install resmon with pip (from source that takes a C compiler and Python's headers), "
        f"and again after changing Python or resmon's sources. ({error})"
    ) from error

PIECE = 32_768  # elements that are copied at once
_native.plain_is(Tensor, torch.float32, torch.strided)
CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def square_sum(tensor: Tensor, peak: int = 0) -> float:
    """The sum of squares of all elements, in float64; NaN or infinite where an element is.

    `peak` may be the address of a float64, which becomes the largest magnitude where it is smaller; what is NaN has none.

    Raises UnobservableError for a tensor that is not in main memory.
    """
    if not tensor.is_cpu:
        raise UnobservableError(
            f"an add's operands are in main memory and its result is on {tensor.device}, where it is not read. Watch the model "
            "again when it is all on one device."
        )
    code = CODES.get(tensor.dtype)
    if code is not None and is_dense(tensor):
        return _native.square(tensor.data_ptr(), code, tensor.numel(), peak)
    return sum(_native.square(piece.data_ptr(), CODES[piece.dtype], piece.numel(), peak) for piece in _copies(tensor.detach()))


def nonfinite_count(tensor: Tensor) -> int:
    """How many elements are NaN or infinite."""
    # What is finite is 0 less itself, everything else is NaN: ten times as fast as asking isfinite.
    return sum(int(torch.count_nonzero(piece - piece)) for piece in _pieces(tensor.detach()))


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps and overlaps, in any order."""
    return tensor.is_contiguous() or _fills(tensor.shape, tensor.stride())


@lru_cache(maxsize=4096)
def _fills(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _copies(tensor: Tensor) -> Iterator[Tensor]:
    """The elements in a dtype and a layout that the native part reads, a piece at a time."""
    for piece in _pieces(tensor):
        yield (piece if piece.dtype in CODES else piece.float()).contiguous()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor in views of at most PIECE elements, cut along its outermost dimensions in memory."""
    if tensor.numel() <= PIECE:
        yield tensor
        return
    dimension = max((d for d in range(tensor.dim()) if tensor.shape[d] > 1), key=lambda d: (tensor.stride(d), tensor.shape[d]))
    size = max(1, PIECE // (tensor.numel() // tensor.shape[dimension]))
    for piece in tensor.split(size, dimension):
        yield from _pieces(piece)
