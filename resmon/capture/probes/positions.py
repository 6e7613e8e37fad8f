"""What is looked at in a few positions, every now and then: the usual ratio of branch to skip, and units that are never active.

A position is one vector of channels: a token, a pixel. What is read here is gathered from memory in bad order, so each site has its
turn at one step in EVERY, and different sites at different steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resmon.capture import _native
from resmon.capture.host import fetch
from resmon.capture.probes.sample import places
from resmon.capture.probes.sums import CODES
from resmon.records import Ints

if TYPE_CHECKING:
    from resmon.capture.probes.activations import Activations

EVERY = 16  # steps
POSITIONS = 256  # that are looked at, at most
IDLE = 300  # positions in a row at which a unit that is called dead has been zero


class Sampling:
    """How much of a tensor is sampled, and what is looked at now; shared by all sites of a session."""

    def __init__(self, most: int) -> None:
        self.most = most  # elements, for histograms
        self.step = 0  # that is under way
        self.activations: Activations | None = None  # which are looked at in the pass under way

    def is_turn(self, site: int) -> bool:
        """Whether the site of that number is looked at in this step."""
        return (self.step + site) % EVERY == 0

    def turns(self, ahead: int = 0) -> slice:
        """Which of all sites, in order, are looked at so many steps after this one."""
        return slice(-(self.step + ahead) % EVERY, None, EVERY)


def channel_axis(shape: Sequence[int], parameters: Sequence[Sequence[int]]) -> int:
    """Which dimension of an add's operands holds channels, by their shape and those of the branch's parameters in order of use.

    It is one that is as large as what the last parameter puts out. Where several are, a tensor with two or more dimensions besides
    batch and channels is taken to have its channels first, as images have.
    """
    images = len(shape) > 3
    for parameter in reversed(parameters):
        sizes = {parameter[0], parameter[-1]} if parameter else set()
        if found := [axis for axis in range(1, len(shape)) if shape[axis] in sizes]:
            return found[0] if images or len(parameter) > 2 else found[-1]
    return 1 if images else max(0, len(shape) - 1)


def median_ratio(skip: Tensor, branch: Tensor, axis: int, factors: tuple[float, float]) -> Tensor | float:
    """The median over sampled positions of |branch| / |skip|, a float or [] in float64 on the operands' device.

    Of two in the middle it is the lower; where no position has a skip it is NaN.
    """
    if _is_readable(skip) and _is_readable(branch):
        first, second = (_vectors(tensor.shape, tensor.stride(), axis) for tensor in (skip, branch))
        ratio = _native.median_ratio(
            *(skip.data_ptr(), CODES[skip.dtype], first.address, first.stride),
            *(branch.data_ptr(), CODES[branch.dtype], second.address, second.stride),
            *first.extent,
        )
        return ratio * abs(factors[1] / factors[0]) if factors[0] else math.nan
    first, second = (
        torch.linalg.vector_norm(_rows(tensor, axis).double(), dim=-1) * abs(factor)
        for tensor, factor in zip((skip, branch), factors, strict=True)
    )
    return torch.nanmedian(torch.where(first > 0, second / first, torch.nan))


class Units:
    """For how many sampled positions in a row each unit of a layer's input has been zero."""

    def __init__(self) -> None:
        self._idle: Tensor | None = None

    def dead(self, tensor: Tensor, axis: int) -> Tensor | float:
        """Look at a new input, and give the share of dead units, a float or [] in float64 on the input's device."""
        if _is_readable(tensor):
            units = tensor.shape[axis]
            if self._idle is None or self._idle.shape != (units,) or not self._idle.is_cpu:
                self._idle = torch.zeros(units, dtype=torch.int64)
            where = _vectors(tensor.shape, tensor.stride(), axis)
            data, since = (tensor.data_ptr(), CODES[tensor.dtype]), self._idle.data_ptr()
            found = _native.idle(*data, where.address, where.stride, *where.extent, since, IDLE)
            return found / units if units else math.nan
        rows = _rows(tensor, axis)
        idle = self._idle
        if idle is None or idle.shape != rows.shape[-1:] or idle.device != rows.device:
            idle = torch.zeros(rows.shape[-1:], dtype=torch.int64, device=rows.device)
        self._idle = torch.where((rows != 0).any(0), 0, idle + rows.shape[0])
        return (self._idle >= IDLE).double().mean()


def _is_readable(tensor: Tensor) -> bool:
    return fetch.is_here(tensor) and tensor.dtype in CODES


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Where the sampled positions' vectors of channels lie in a tensor, as the native part is told."""

    offsets: Ints  # of their first elements, in elements
    address: int  # of these offsets
    stride: int  # of channels
    extent: tuple[int, int]  # positions and channels


@lru_cache(maxsize=256)
def _vectors(shape: tuple[int, ...], strides: tuple[int, ...], axis: int) -> _Vectors:
    shape, strides = shape or (1,), strides or (1,)  # a single number is one channel at one position
    axis %= len(shape)
    others = [d for d in range(len(shape)) if d != axis]
    offsets = np.zeros(1, np.int64)
    if others:
        found = places(tuple(shape[d] for d in others), POSITIONS)
        offsets = np.stack([index.numpy() * strides[d] for index, d in zip(found, others, strict=True)]).sum(0, np.int64)
    return _Vectors(offsets, offsets.ctypes.data, strides[axis], (len(offsets), shape[axis]))


def _rows(tensor: Tensor, axis: int) -> Tensor:
    """Sampled positions, [positions, channels]."""
    last = tensor.detach().movedim(axis, -1)
    if last.dim() <= 1:
        return last.reshape(1, -1)
    return last[_places(tuple(last.shape[:-1]), tensor.device)]


@lru_cache(maxsize=256)
def _places(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(fetch.to_device(each, device) for each in places(shape, POSITIONS))
