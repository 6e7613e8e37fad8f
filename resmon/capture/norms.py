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

Where a running statistic is NaN or infinite, gap and variance are infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resmon.capture.fetch import OBSERVED
from resmon.capture.placement import local

# Running statistics that take less than this of a batch cannot tell it: float32 rounds them to 6e-8 of their size.
LEAST_SHARE = 1e-5
_TINY = torch.finfo(torch.float32).tiny  # in the place of a spread of 0, where eps is 0


@dataclass(frozen=True, slots=True)
class _Layers:
    """What the host knows of some layers; each is told apart by its place among them."""

    sizes: tuple[int, ...]  # channels
    momenta: tuple[float, ...]  # NaN where the running statistics are the means over all batches
    eps: tuple[float, ...]
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Statistics:
    layers: _Layers
    batches: Tensor  # of each layer, that it has counted
    mean: Tensor  # of all channels, one layer behind the other
    variance: Tensor


class Norms:
    """The batch norms of one block."""

    def __init__(self, layers: Sequence[_NormBase]) -> None:
        self._layers = layers
        self._before: _Statistics | None = None

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Norms | None:
        """Those among `modules`; None where there are none."""
        layers = [module for module in modules if isinstance(module, _NormBase)]
        return cls(layers) if layers else None

    def remember(self) -> None:
        """The step that is looked at begins."""
        self._before = _statistics(self._layers)

    @torch.no_grad()
    def look(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """It is over: gap, largest variance and share of collapsed channels, each [] in float64 on the layers' device.

        The gap is NaN where no statistic has moved. None where no layer has running statistics that could be read.
        """
        now, before = _statistics(self._layers), self._before
        self._before = None
        if now is None:
            return None
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


def _statistics(layers: Sequence[_NormBase]) -> _Statistics | None:
    """As they are now, of those layers that have them, on the first one's device."""
    found: list[tuple[_NormBase, list[Tensor]]] = []
    for layer in layers:
        buffers = [layer._buffers.get(name) for name in ("num_batches_tracked", "running_mean", "running_var")]
        parts = [part for each in buffers if each is not None and (part := _here(each)) is not None]
        device = found[0][1][0].device if found else None
        if len(parts) == 3 and parts[1].numel() and all(part.device == (device or parts[0].device) for part in parts):
            found.append((layer, parts))
    if not found or found[0][1][0].device.type not in OBSERVED:
        return None
    told = _Layers(
        sizes=tuple(mean.numel() for _, (_, mean, _) in found),
        momenta=tuple(math.nan if layer.momentum is None else layer.momentum for layer, _ in found),
        eps=tuple(layer.eps for layer, _ in found),
        device=found[0][1][0].device,
    )
    batches, mean, variance = (torch.cat([parts[i].reshape(-1) for _, parts in found]).double() for i in range(3))
    return _Statistics(told, batches, mean, variance)


def _here(buffer: Tensor) -> Tensor | None:
    """The part of a buffer that lies on this rank; None where that tells nothing."""
    if type(buffer) is Tensor:
        return buffer
    part, share = local(buffer)
    return part if share.known else None


@lru_cache(maxsize=256)
def _constants(layers: _Layers) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel's layer, each layer's momentum, each channel's eps, where the layers are."""
    layer = torch.repeat_interleave(torch.arange(len(layers.sizes), device="cpu"), torch.tensor(layers.sizes, device="cpu"))
    momentum, eps = (torch.tensor(each, dtype=torch.float64, device="cpu") for each in (layers.momenta, layers.eps))
    found = layer, momentum, eps[layer]
    if layers.device.type == "cuda":
        return tuple(each.pin_memory().to(layers.device, non_blocking=True) for each in found)  # type: ignore[return-value]
    return found
