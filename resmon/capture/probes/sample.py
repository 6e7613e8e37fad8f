"""A small sample of a tensor, as a histogram of its magnitudes.

The sample is every s-th element, with a stride s that meets channels, positions and pixels all alike (a stride of 96 over 384
channels would see 4 of them). Of 1,024 elements a quantile q is off by sqrt(q (1 - q) / 1024) in rank, as of independent draws:
0.016 at the median, 0.003 at 0.99 (measured on three trainings, benchmarks/README.md). Bucket i of the histogram holds
(2^(i-1), 2^i]; its edges are in records.py.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from resmon.capture import _native
from resmon.capture.probes.sums import CODES, is_dense
from resmon.records import MAGNITUDE_LARGER, MAGNITUDE_LOW

EDGES = (MAGNITUDE_LOW, MAGNITUDE_LARGER)  # as the native part wants them: the first edge's exponent, and how many there are


def magnitudes(tensor: Tensor, most: int, cells: int) -> None:
    """Write the histogram of a sample of at most `most` elements at the address `cells`: columns.CELLS numbers of float64."""
    shape = tensor.shape
    step = stride(shape, most)
    if tensor.dtype not in CODES or not is_dense(tensor):
        tensor = tensor.detach()[_indices(shape, step)]
        tensor, step = (tensor if tensor.dtype in CODES else tensor.float()).contiguous(), 1
    _native.magnitudes(tensor.data_ptr(), CODES[tensor.dtype], tensor.numel(), step, *EDGES, cells)


def places(shape: tuple[int, ...], most: int) -> tuple[Tensor, ...]:
    """The indices of a sample of about `most` elements, one tensor for each dimension."""
    return _indices(shape, stride(shape, most))


def flat(tensor: Tensor, most: int) -> Tensor:
    """The sample itself, one-dimensional, wherever the tensor is; a view where the tensor is dense."""
    step = stride(tensor.shape, most)
    tensor = tensor.detach()
    return (tensor.as_strided((tensor.numel(),), (1,)) if is_dense(tensor) else tensor.reshape(-1))[::step]


@lru_cache(maxsize=4096)
def stride(shape: tuple[int, ...], most: int) -> int:
    """The stride for a sample of about `most` elements (never twice as many) that meets the indices of each dimension most evenly.

    It is coprime to every dimension. That alone is not enough: 8,193 is so to [64, 32, 64, 64], and meets every other channel only.
    """
    numel = math.prod(shape)
    if numel <= most:
        return 1
    least = -(-numel // most)
    candidates = {_coprime(least + least * i // 32, numel) for i in range(16)}
    if numel <= 2 * most and min(candidates) > 2 * least:  # no stride near by is coprime to 2, 3, 5 and 7: rather all than few
        return 1
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
