"""The numbers of sites whose tensors are on an accelerator, computed there and fetched once a step.

Everything here is queued on the device and nothing waits for it. Sums run in float64, as on the CPU, so that one which is not
finite means that an element is not; how many are not is counted only where `exactly` asks for it, for that takes three readings
more. What a pass has left is put together when the pass is over; what the host makes of it when it arrives is in drafts.py.
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

from resmon.capture.host import fetch
from resmon.capture.probes import keeping
from resmon.capture.probes.columns import (
    BACKWARD_NONFINITE,
    BRANCH,
    CELLS,
    FILL,
    FORWARD_NONFINITE,
    GRADIENT,
    KEPT,
    KEPT_SQUARE,
    OUTPUT,
    PEAK,
    SAMPLES,
    SKIP,
)
from resmon.capture.probes.sample import flat
from resmon.records import MAGNITUDE_LARGER, MAGNITUDE_LOW, MAGNITUDE_NONFINITE, MAGNITUDE_ZERO

if TYPE_CHECKING:
    from resmon.capture.probes.channel import Channel

_INFINITE = 0x7F800000  # the bits of float32's infinity; those of NaN are larger

ENDS = {dtype: torch.finfo(dtype).max for dtype in (torch.float16, torch.bfloat16)}  # of the dtypes whose end may be near


def norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The norm of each tensor, all of one device and dtype, on that device, in float64."""
    return torch._foreach_norm([tensor.detach() for tensor in tensors], 2.0, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Place:
    """Which number of a site a norm, or a count, belongs to."""

    channel: Channel
    column: int
    factor: float  # of the norm's square, or of the number


@dataclass(frozen=True, slots=True)
class Gathered:
    """What one device has gathered: numbers [places], and histograms [sites, CELLS]."""

    numbers: Tensor
    places: list[Place]
    histograms: Tensor
    sites: Sequence[Channel]


class Pass:
    """An add's numbers in one forward pass, which count only when `count` says so."""

    __slots__ = ("_broken", "_factors", "_norms", "_numbers", "_sample")

    def __init__(self, skip: Tensor, branch: Tensor, factors: tuple[float, float], *, drops: bool) -> None:
        fetch.check(skip.device)
        self._numbers: list[tuple[Tensor, int, float]] = []  # others, with the column and factor of each
        for operand in (skip, branch):
            self._peak(operand)
        if drops:
            kept = keeping.kept_elsewhere(branch)
            self._numbers += [
                (kept.sum().double(), KEPT, 1.0),
                (torch.ones_like(kept, dtype=torch.float64).sum(), SAMPLES, 1.0),
                (keeping.kept_norm(skip, kept), KEPT_SQUARE, factors[0] ** 2),
            ]
        self._norms = list(norms([skip, branch]) if skip.dtype is branch.dtype else (*norms([skip]), *norms([branch])))
        self._factors = factors

    def output(self, tensor: Tensor, most: int, *, exactly: bool) -> None:
        """Take the result, with a sample of about `most` elements."""
        tensor = tensor.detach().to(self._norms[0].device, non_blocking=True)  # where the loop has sent it elsewhere since
        self._norms[OUTPUT:] = norms([tensor])
        self._peak(tensor, of_output=True)
        self._sample = flat(tensor, most).to(torch.float32, copy=True)
        self._broken = _nonfinite(tensor) if exactly else None

    def count(self, channel: Channel, into: Accelerators) -> None:
        first, second = self._factors
        for norm, column, factor in zip(self._norms, (SKIP, BRANCH, OUTPUT), (first * first, second * second, 1.0), strict=True):
            into.note(norm, Place(channel, column, factor))
        for number, column, factor in self._numbers:
            into.note(number, Place(channel, column, factor))
        if self._broken is not None:
            into.note(self._broken, Place(channel, FORWARD_NONFINITE, 1.0))
        into.sample(self._sample, channel)

    def _peak(self, tensor: Tensor, *, of_output: bool = False) -> None:
        """The largest magnitude, which takes a reading more, where the dtype's end may be near."""
        if (end := ENDS.get(tensor.dtype)) is not None:
            peak = torch.linalg.vector_norm(tensor.detach(), math.inf, dtype=torch.float32).double()
            self._numbers.append((peak, FILL, 1 / end))
            if of_output:
                self._numbers.append((peak, PEAK, 1.0))


class Accelerators:
    """All devices that a session's tensors are on, and what they have gathered in the step under way."""

    def __init__(self) -> None:
        self._noted: dict[torch.device, tuple[list[Tensor], list[Place]]] = {}
        self._samples: dict[torch.device, tuple[list[Tensor], list[Channel]]] = {}
        self._gathered: list[Gathered] = []

    def note(self, number: Tensor, place: Place) -> None:
        numbers, places = self._noted.setdefault(number.device, ([], []))
        numbers.append(number)
        places.append(place)

    def sample(self, values: Tensor, channel: Channel) -> None:
        samples, channels = self._samples.setdefault(values.device, ([], []))
        samples.append(values)
        channels.append(channel)

    def gradient(self, tensor: Tensor, channel: Channel, factor: float, *, exactly: bool) -> None:
        """A gradient of the channel's output has arrived, whose square is to be multiplied with `factor`."""
        fetch.check(tensor.device)
        self.note(norms([tensor])[0], Place(channel, GRADIENT, factor))
        if exactly:
            self.note(_nonfinite(tensor), Place(channel, BACKWARD_NONFINITE, 1.0))

    def forget_gradients(self, channels: Sequence[Channel], nobody: Channel) -> None:
        """The gradients of these channels that have arrived are `nobody`'s: the loop has cleared them."""
        theirs = set(map(id, channels))
        for places in (*(places for _, places in self._noted.values()), *(each.places for each in self._gathered)):
            for i, place in enumerate(places):
                if place.column == GRADIENT and id(place.channel.stands_for) in theirs:
                    places[i] = Place(nobody, GRADIENT, 0.0)

    def fold(self) -> None:
        """A pass is over: what it has left takes little room from here on."""
        for device, (numbers, places) in self._noted.items():
            samples, channels = self._samples.get(device, ([], []))
            self._gathered.append(Gathered(torch.stack(numbers), places, _histograms(device, samples), channels))
        self._noted.clear()
        self._samples.clear()

    def take(self) -> Sequence[Gathered]:
        """What the step has gathered; the next one begins."""
        self.fold()
        gathered, self._gathered = self._gathered, []
        return gathered


def _nonfinite(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.count_nonzero(tensor - tensor).double()  # what is finite is 0 less itself, everything else is NaN


def buckets(bits: Tensor) -> tuple[Tensor, Tensor]:
    """The histogram's column of each magnitude, and which are finite, by its bits as float32: of larger numbers they are larger."""
    finite = bits < _INFINITE
    # One less, so that a power of two falls into the bucket that it closes.
    column = (((bits - 1) >> 23) - (126 + MAGNITUDE_LOW)).clamp_(0, MAGNITUDE_LARGER)
    return torch.where(bits == 0, MAGNITUDE_ZERO, torch.where(finite, column, MAGNITUDE_NONFINITE)), finite


def _histograms(device: torch.device, samples: Sequence[Tensor]) -> Tensor:
    """The histogram of each sample's magnitudes, behind the sum of the finite ones: [samples, CELLS]."""
    if not samples:
        return torch.zeros((0, CELLS), dtype=torch.float64, device=device)
    bits = torch.cat(list(samples)).abs_().view(torch.int32)
    column, finite = buckets(bits)
    row = _rows(device, tuple(sample.numel() for sample in samples))
    table = torch.zeros((len(samples), CELLS), dtype=torch.float64, device=device)
    table.view(-1).index_add_(0, row * CELLS + 1 + column, torch.ones((), dtype=torch.float64, device=device).expand(bits.shape))
    table[:, 0].index_add_(0, row, torch.where(finite, bits, 0).view(torch.float32).double())
    return table


@lru_cache(maxsize=64)
def _rows(device: torch.device, sizes: tuple[int, ...]) -> Tensor:
    """For each element of samples of these sizes, one behind the other, which sample it is of."""
    return fetch.to_device(torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)), device)
