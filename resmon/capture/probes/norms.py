"""What batch normalisation remembers of the batches, held against the batches: a block's running statistics, every now and then.

In evaluation a batch norm normalises with its running mean m and variance v, in training with the mean and variance of the batch.
The two are not the same network where m and v do not fit the batches. No batch is read for that: at the end of each step the
running statistics have moved towards those of the step's batches by a share that momentum and the layer's own count of batches
tell, so what moved them is known from where they were before the step and where they are after it. Small buffers are read twice in
EVERY steps, between two steps, so that passes, graphs of the compiler and recomputations in checkpoints are not touched.

- The gap is the distance between what evaluation would make of the step's batches and what training made of them. Training gives
  each channel mean 0 and standard deviation 1; evaluation, with the statistics as they were before the step, mean d = (mean of
  the batch - m) / s and standard deviation r = sqrt(variance of the batch + eps) / s, where s = sqrt(v + eps). sqrt(d² + (r - 1)²)
  is the 2-Wasserstein distance of the two as normal distributions; the gap is its root mean square over the block's channels.
  Channels whose statistics did not move in the step (a layer in evaluation mode, or one that did not run) take no part.
- The variance is the largest running variance of a channel.
- Collapsed is the share of channels whose running variance is not above eps, which then is all that they are divided by.

Where a running statistic is NaN or infinite, gap and variance are infinite. A DistributedDataParallel gives all ranks the first
one's buffers before each pass; the others' gap then holds the difference between their batches and the first one's besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resmon.capture import _native
from resmon.capture.host import fetch
from resmon.capture.host.placement import local
from resmon.capture.probes.sums import CODES
from resmon.records import Floats

# Running statistics that take less than this of a batch cannot tell it: float32 rounds them to 6e-8 of their size.
LEAST_SHARE = 1e-5
_TINY = torch.finfo(torch.float32).tiny  # in the place of a spread of 0, where eps is 0


_BYTES = 8
Number = Tensor | float
Look = tuple[Number, Number, Number]


class Norms:
    """The batch norms of one block."""

    def __init__(self, layers: Sequence[_NormBase]) -> None:
        self._layers = tuple(layers)
        self._here = _Here()
        self._elsewhere: _Elsewhere | None = None

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Norms | None:
        """Those among `modules`; None where there are none."""
        layers = [module for module in modules if isinstance(module, _NormBase)]
        return cls(layers) if layers else None

    def remember(self) -> None:
        """The step that is looked at begins."""
        here, elsewhere = _find(self._layers)
        self._here.remember(here)
        self._elsewhere = _Elsewhere.of(elsewhere) if elsewhere else None

    def look(self) -> Look | None:
        """It is over: gap, largest variance and share of collapsed channels, floats or [] in float64 on the layers' device.

        The gap is NaN where no statistic has moved. None where no layer has running statistics that could be read.
        """
        here, elsewhere = _find(self._layers)
        before, self._elsewhere = self._elsewhere, None
        if elsewhere:
            return _look_elsewhere(_Elsewhere.of(elsewhere), before)
        return self._here.look(here) if here else None


class _Running(NamedTuple):
    """What a layer remembers, in main memory."""

    layer: _NormBase
    batches: int  # that it has counted
    mean: int  # address
    variance: int  # likewise
    dtype: int  # of both, see CODES
    size: int  # channels


def _find(layers: tuple[_NormBase, ...]) -> tuple[Sequence[_Running], Sequence[_Buffers]]:
    """What those layers remember that remember anything: all of it here, or all elsewhere."""
    plain = _native.running_statistics(layers, torch.int64)
    if plain is not None:
        return [_Running(layer, *each) for layer, each in zip(layers, plain, strict=True)], ()
    found = _buffers(layers)
    if not _are_readable(found):
        return (), found
    return [
        _Running(
            each.layer, int(each.batches), each.mean.data_ptr(), each.variance.data_ptr(), CODES[each.mean.dtype], each.mean.numel()
        )
        for each in found
    ], ()


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What a layer remembers."""

    layer: _NormBase
    batches: Tensor  # that it has counted
    mean: Tensor
    variance: Tensor


def _buffers(layers: Sequence[_NormBase]) -> list[_Buffers]:
    """Of those layers that have them, on the first one's device."""
    found: list[_Buffers] = []
    for layer in layers:
        buffers = layer._buffers
        batches, mean, variance = buffers.get("num_batches_tracked"), buffers.get("running_mean"), buffers.get("running_var")
        if batches is None or mean is None or variance is None:
            continue
        if not (type(batches) is type(mean) is type(variance) is Tensor):
            parts = [local(each) for each in (batches, mean, variance)]
            if not all(share.known for _, share in parts):  # one summand of several
                continue
            batches, mean, variance = (part for part, _ in parts)
        device = found[0].mean.device if found else mean.device
        if mean.numel() and batches.device == mean.device == variance.device == device and device.type in fetch.OBSERVED:
            found.append(_Buffers(layer, batches, mean, variance))
    return found


# -- in main memory --------------------------------------------------------------------------------------------------------


def _are_readable(found: Sequence[_Buffers]) -> bool:
    return all(
        fetch.is_here(each.mean)
        and each.mean.dtype is each.variance.dtype
        and each.mean.dtype in CODES
        and each.mean.is_contiguous()
        and each.variance.is_contiguous()
        for each in found
    )


class _Here:
    """What layers remembered before a step. The memory for it stays: fresh memory costs more than all that is read."""

    def __init__(self) -> None:
        self._batches: Sequence[int] = ()  # of each layer; empty where nothing is remembered
        self._sizes: Sequence[int] = ()  # channels of each layer
        self._numbers: Floats = np.empty(0)  # of each layer its means, then its variances
        self._totals: Floats = np.empty(6)
        self._address, self._into = self._numbers.ctypes.data, self._totals.ctypes.data

    def remember(self, layers: Sequence[_Running]) -> None:
        self._batches = [layer.batches for layer in layers]
        sizes = [layer.size for layer in layers]
        if sizes != self._sizes:
            self._sizes, self._numbers = sizes, np.empty(2 * sum(sizes))
            self._address = self._numbers.ctypes.data
        address = self._address
        for layer in layers:
            for buffer in (layer.mean, layer.variance):
                _native.widened(buffer, layer.dtype, layer.size, address)
                address += layer.size * _BYTES

    def look(self, layers: Sequence[_Running]) -> Look:
        """Those layers after the step; what was remembered is so no more."""
        batches, self._batches = self._batches, ()
        if self._sizes != [layer.size for layer in layers]:
            batches = ()
        address = self._address  # read only where there is a share
        self._totals.fill(0.0)
        for i, (layer, now, mean, variance, dtype, size) in enumerate(layers):
            share = _share(layer.momentum, batches[i], now) if batches else 0.0
            _native.running(mean, variance, dtype, size, address, share if share > LEAST_SHARE else 0.0, layer.eps, self._into)
            address += 2 * size * _BYTES
        distances, moved, largest, collapsed, channels, broken = self._totals.tolist()
        if broken:
            return math.inf, math.inf, collapsed / channels
        return math.sqrt(distances / moved) if moved else math.nan, largest, collapsed / channels


def _share(momentum: float | None, before: int, now: int) -> float:
    """What the running statistics took of the batches that came since."""
    if now <= before:
        return 0.0
    return (now - before) / now if momentum is None else 1 - (1 - momentum) ** (now - before)


# -- on an accelerator -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layers:
    """What the host knows of some layers."""

    sizes: tuple[int, ...]  # channels
    momenta: tuple[float, ...]  # NaN where the running statistics are the means over all batches
    eps: tuple[float, ...]
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    layers: _Layers
    batches: Tensor  # of each layer
    mean: Tensor  # of all channels, one layer behind the other
    variance: Tensor

    @classmethod
    def of(cls, found: Sequence[_Buffers]) -> _Elsewhere:
        told = _Layers(
            sizes=tuple(each.mean.numel() for each in found),
            momenta=tuple(math.nan if each.layer.momentum is None else each.layer.momentum for each in found),
            eps=tuple(each.layer.eps for each in found),
            device=found[0].mean.device,
        )
        columns = zip(*((each.batches, each.mean, each.variance) for each in found), strict=True)
        return cls(told, *(torch.cat([each.detach().reshape(-1) for each in column]).double() for column in columns))


def _look_elsewhere(now: _Elsewhere, before: _Elsewhere | None) -> Look:
    """As `_Here.look`; nothing of it waits for the device."""
    layer, momentum, eps = _constants(now.layers)
    gap = torch.full_like(eps[0], math.nan)
    if before is not None and before.layers.sizes == now.layers.sizes and before.layers.device == now.layers.device:
        batches = now.batches - before.batches
        share = torch.where(momentum.isnan(), batches / now.batches, 1 - (1 - momentum) ** batches)[layer]
        spread = (before.variance + eps).clamp_(min=_TINY)
        shift = (now.mean - before.mean) / share
        variance = (before.variance + (now.variance - before.variance) / share).clamp_(min=0)
        distance = shift.square() / spread + (((variance + eps) / spread).sqrt() - 1).square()
        gap = torch.where(share > LEAST_SHARE, distance, math.nan).nanmean().sqrt()
    finite = (now.mean + now.variance).isfinite().all()
    largest = torch.where(finite, now.variance.amax(), math.inf)
    return torch.where(finite, gap, math.inf), largest, (now.variance <= eps).double().mean()


@lru_cache(maxsize=256)
def _constants(layers: _Layers) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel's layer, each layer's momentum, each channel's eps, where the layers are."""
    layer = torch.repeat_interleave(torch.arange(len(layers.sizes), device="cpu"), torch.tensor(layers.sizes, device="cpu"))
    momentum, eps = (torch.tensor(each, dtype=torch.float64, device="cpu") for each in (layers.momenta, layers.eps))
    on = layers.device
    return fetch.to_device(layer, on), fetch.to_device(momentum, on), fetch.to_device(eps[layer], on)
