"""A small sample of a tensor, and the histogram of the magnitudes in many samples at once.

The sample is every s-th element, with a stride s that meets channels, positions and pixels all alike (a stride of 96 over 384
channels would see 4 of them). The histogram has power-of-two buckets, read off the bits of the
floats: bucket i holds (2^(i-1), 2^i].
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

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

# Codes are biased exponents of float32 plus 1, that of zero being 0; these are the codes at which a column of the histogram begins,
# beginning with zero and everything up to the first edge.
_ZERO, _NONFINITE, _CODES = 0, 256, 257
_INFINITE = 0x7F800000  # the bits of infinity; those of NaN are larger
_BEGINS = np.array([_ZERO, 1, *range(MAGNITUDE_LOW + 128, MAGNITUDE_HIGH + 129), _NONFINITE])
_COLUMNS = np.array([MAGNITUDE_ZERO, *range(MAGNITUDE_LARGER + 1), MAGNITUDE_NONFINITE])


def take(tensor: Tensor, into: Samples) -> int:
    """Copy a sample of `tensor` to the front of `into` (float32, one-dimensional) and return how many elements it has."""
    stride = _stride(tensor.shape, len(into))
    tensor = tensor.detach()
    flat = flattened(tensor)
    if flat is None:
        values = _array(tensor[_indices(tensor.shape, stride)])
    elif flat.dtype is torch.bfloat16:
        values = _array(flat[::stride])
    else:
        values = flat.numpy()[::stride]  # numpy cuts a slice ten times faster than torch
    count = len(values)
    into[:count] = values
    return count


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


@lru_cache(maxsize=4096)
def _stride(shape: tuple[int, ...], most: int) -> int:
    """The stride, coprime to every dimension, that meets the indices of each dimension most evenly.

    Coprime alone is not enough: 8,193 is so to [64, 32, 64, 64], and meets every other channel only.
    """
    numel = math.prod(shape)
    if numel <= most:
        return 1
    least = -(-numel // most)
    candidates = {_coprime(least + least * i // 32, numel) for i in range(16)}
    return min(sorted(candidates), key=lambda stride: _clustering(shape, stride))


def _coprime(stride: int, numel: int) -> int:
    while math.gcd(stride, numel) != 1:
        stride += 1
    return stride


def _clustering(shape: tuple[int, ...], stride: int) -> float:
    """How much more often than on average the index met most is met, in the worst dimension."""
    places = np.unravel_index(np.arange(0, math.prod(shape), stride), shape)
    count = len(places[0])
    return float(max(np.bincount(place).max() / max(1.0, count / size) for place, size in zip(places, shape, strict=True)))


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
    codes = bits - 1
    codes >>= 23
    codes += 1
    if bits.max(initial=0) >= _INFINITE:
        broken = bits >= _INFINITE
        codes[broken], bits[broken] = _NONFINITE, 0
    unused = size - counts
    if unused.any():
        beyond = np.arange(size) >= counts[:, None]
        codes[beyond], bits[beyond] = _ZERO, 0
    codes += np.arange(0, sites * _CODES, _CODES, dtype=np.int32)[:, None]
    coded = np.bincount(codes.ravel(), minlength=sites * _CODES).reshape(sites, _CODES)
    coded[:, _ZERO] -= unused
    table = np.empty((sites, MAGNITUDE_COLUMNS), np.int64)
    table[:, _COLUMNS] = np.add.reduceat(coded, _BEGINS, axis=1)
    return table, bits.view(np.float32).sum(axis=1, dtype=np.float64)
