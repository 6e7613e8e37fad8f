"""A small sample of a tensor, and the histogram of the magnitudes in many samples at once.

The sample is every s-th element, with a stride s that shares no factor with any dimension, so that channels, positions and
pixels are all met alike (a stride of 96 over 384 channels would see 4 of them). The histogram has power-of-two buckets, read off the bits of the
floats: bucket i holds (2^(i-1), 2^i].
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resmon.capture.sums import flattened
from resmon.records import (
    MAGNITUDE_COLUMNS,
    MAGNITUDE_HIGH,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    MAGNITUDE_NONFINITE,
    MAGNITUDE_ZERO,
    Floats,
    Ints,
)

Samples = npt.NDArray[np.float32]

_LOWEST = MAGNITUDE_LOW + 127  # biased exponent of float32
_LARGER = MAGNITUDE_HIGH + 127
# Which column a biased exponent belongs to; index 0 is the code of zero, 255 that of NaN and Inf, see `histograms`.
_COLUMN = np.clip(np.arange(-1, 256) - _LOWEST + 1, 0, MAGNITUDE_LARGER)
_COLUMN[0] = MAGNITUDE_ZERO
_COLUMN[256] = MAGNITUDE_NONFINITE


def take(tensor: Tensor, into: Samples) -> int:
    """Copy a sample of `tensor` to the front of `into` (float32, one-dimensional) and return how many elements it has."""
    stride = _stride(tuple(tensor.shape), len(into))
    flat = flattened(tensor.detach())
    sample = flat[::stride] if flat is not None else tensor.detach()[_indices(tuple(tensor.shape), stride)]
    if sample.dtype is torch.bfloat16:
        sample = sample.float()
    count = sample.numel()
    with np.errstate(over="ignore"):
        into[:count] = sample.numpy()
    return count


@lru_cache(maxsize=4096)
def _stride(shape: tuple[int, ...], most: int) -> int:
    numel = math.prod(shape)
    stride = max(1, -(-numel // most))
    while math.gcd(stride, numel) != 1 and numel:
        stride += 1
    return stride


@lru_cache(maxsize=256)
def _indices(shape: tuple[int, ...], stride: int) -> tuple[Tensor, ...]:
    flat = np.arange(0, math.prod(shape), stride)
    return tuple(torch.from_numpy(i) for i in np.unravel_index(flat, shape))


def histograms(samples: Samples, counts: npt.NDArray[np.intp]) -> tuple[Ints, Floats]:
    """The magnitude histograms of `samples` [S, sample], of which the first `counts` [S] elements of each row are meant.

    Returns counts [S, MAGNITUDE_COLUMNS] and the sums of the finite magnitudes [S].
    """
    sites, size = samples.shape
    bits = samples.view(np.int32) & 0x7FFFFFFF
    # One less, so that a power of two falls into the bucket that it closes; zero becomes -1, and -1 >> 23 is -1.
    codes = (bits - 1) >> 23
    codes[bits >= 0x7F800000] = 255
    columns = _COLUMN[codes + 1]
    columns += (np.arange(sites) * (MAGNITUDE_COLUMNS + 1))[:, None]
    magnitudes = bits.view(np.float32)
    if (short := counts < size).any():
        beyond = short[:, None] & (np.arange(size) >= counts[:, None])
        columns[beyond] = np.broadcast_to((np.arange(sites) * (MAGNITUDE_COLUMNS + 1) + MAGNITUDE_COLUMNS)[:, None], columns.shape)[beyond]
        bits[beyond] = 0
    table = np.bincount(columns.ravel(), minlength=sites * (MAGNITUDE_COLUMNS + 1)).reshape(sites, -1)[:, :MAGNITUDE_COLUMNS]
    if table[:, MAGNITUDE_NONFINITE].any():
        bits[bits >= 0x7F800000] = 0
    return table.astype(np.int64, copy=False), magnitudes.sum(axis=1, dtype=np.float64)
