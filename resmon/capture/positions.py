"""What is looked at in a few positions, every now and then: the usual ratio of branch to skip, and units that are never active.

A position is one vector of channels: a token, a pixel. What is read here is gathered from memory in bad order, so each site has its
turn at one step in EVERY, and different sites at different steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resmon.capture.sample import places

if TYPE_CHECKING:
    from resmon.capture.activations import Activations

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


def median_ratio(skip: Tensor, branch: Tensor, axis: int, factors: tuple[float, float]) -> Tensor:
    """The median over sampled positions of |branch| / |skip|, [] in float64: of two in the middle the lower, NaN of none."""
    first, second = (
        torch.linalg.vector_norm(_rows(tensor, axis).double(), dim=-1) * abs(factor)
        for tensor, factor in zip((skip, branch), factors, strict=True)
    )
    return torch.nanmedian(torch.where(first > 0, second / first, torch.nan))


class Units:
    """For how many sampled positions in a row each unit of a layer's input has been zero."""

    def __init__(self) -> None:
        self._idle: Tensor | None = None

    def dead(self, tensor: Tensor, axis: int) -> Tensor:
        """Look at a new input, and give the share of dead units, [] in float64."""
        rows = _rows(tensor, axis)
        idle = self._idle
        if idle is None or idle.shape != rows.shape[-1:] or idle.device != rows.device:
            idle = torch.zeros(rows.shape[-1:], dtype=torch.int64, device=rows.device)
        self._idle = torch.where((rows != 0).any(0), 0, idle + rows.shape[0])
        return (self._idle >= IDLE).double().mean()


def _rows(tensor: Tensor, axis: int) -> Tensor:
    """Sampled positions, [positions, channels]."""
    last = tensor.detach().movedim(axis, -1)
    if last.dim() == 1:
        return last[None]
    return last[_places(tuple(last.shape[:-1]), tensor.device)]


@lru_cache(maxsize=256)
def _places(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    found = places(shape, POSITIONS)
    if device.type == "cuda":
        return tuple(each.pin_memory().to(device, non_blocking=True) for each in found)
    return found
