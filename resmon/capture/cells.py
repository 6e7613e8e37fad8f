"""Where the numbers of a compiled model's sites gather, written by torch operations inside of its graphs.

What torch.compile traces of a hook is what the graph will do for ever: so it is tensor operations alone, on cells that the graph is
given as it is given parameters. Nothing of ours that differs from block to block or from call to call is a Python number there,
which the graph would be guarded on; whether a pass counts is a tensor too, for a checkpoint that recomputes a compiled block must
run the very graph of the first time. Hooks between graphs write the same cells, and at the end of a step they are added to what
the channels have.

Sums are of float32 along the last dimension and of float64 from there on. The sample of magnitudes is taken at places drawn once,
as parts of the whole, so that it needs no stride and no new graph for another shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resmon.capture import fetch
from resmon.capture.channel import Channel
from resmon.capture.columns import (
    BRANCH,
    COLUMNS,
    ELEMENTS,
    FORWARD_NONFINITE,
    GRADIENT,
    MAGNITUDES,
    OUTPUT,
    SKIP,
)
from resmon.capture.sample import magnitudes
from resmon.capture.sums import nonfinite_count, square_sum
from resmon.records import MAGNITUDE_LARGER, MAGNITUDE_LOW, MAGNITUDE_NONFINITE, MAGNITUDE_ZERO, Floats

_BACKWARD = slice(GRADIENT, MAGNITUDES)  # the columns that a backward pass writes: its square, that it arrived, what is not finite
_NOTHING = 0.0  # elements of an operand that was not offered in this pass, as of one that has none
_INFINITE = 0x7F800000  # the bits of infinity in float32; those of NaN are larger
_BYTES = 8


class Cell:
    """One site's numbers since the last step: of operands offered, of an output offered, of what counts, of its gradient."""

    __slots__ = ("_device", "_live", "_most", "_places", "backward", "counted", "operands", "pending")

    def __init__(self, cells: Cells, operands: tuple[Tensor, Tensor], pending: Tensor, counted: Tensor, backward: Tensor) -> None:
        self._device, self._live, self._places, self._most = cells.device, cells.live, cells.places, len(cells.places)
        self.operands, self.pending, self.counted, self.backward = operands, pending, counted, backward

    # -- in a graph ----------------------------------------------------------------------------------------------------

    def offer(self, role: int, tensor: Tensor, factor: float) -> None:
        """Take an operand: SKIP or BRANCH."""
        square = _square(_wide(tensor)) * (factor * factor)
        self.operands[role].copy_(_row(self._device, 2, {0: square, 1: tensor.numel()}))

    def offer_output(self, tensor: Tensor) -> None:
        """Take an output, which is nothing where the operands were not offered in this pass."""
        wide = _wide(tensor)
        elements = tensor.numel()
        skip, branch = self.operands
        of_pass = (skip[1] == elements) & (branch[1] == elements) & (self._live[0] > 0)
        sample = self._sample(wide)
        broken = sample >= _INFINITE
        # One less, so that a power of two falls into the bucket that it closes.
        bucket = (((sample - 1) >> 23) - (126 + MAGNITUDE_LOW)).clamp(0, MAGNITUDE_LARGER)
        bucket = torch.where(sample == 0, MAGNITUDE_ZERO, torch.where(broken, MAGNITUDE_NONFINITE, bucket))
        finite = torch.where(broken, 0, sample).view(torch.float32).double().sum()
        row = _row(
            self._device,
            COLUMNS,
            {
                SKIP: skip[0],
                BRANCH: branch[0],
                OUTPUT: _square(wide),
                ELEMENTS: elements,
                FORWARD_NONFINITE: _nonfinite(wide),
                MAGNITUDES: finite,
            },
        )
        row = row.scatter_add(0, bucket.long() + (MAGNITUDES + 1), torch.ones_like(bucket, dtype=torch.float64))
        self.pending.copy_(torch.where(of_pass, row, 0.0))
        skip.fill_(_NOTHING)
        branch.fill_(_NOTHING)

    def count(self) -> None:
        """Add the output that was offered to the step's numbers."""
        self.counted.sub_(self.pending, alpha=-1)  # an addition would be seen by the AddMode of a block around the module

    def expect_gradient(self, output: Tensor) -> None:
        """Take the gradient of the output when it arrives."""
        _Passage.apply(output, self.backward)  # type: ignore[no-untyped-call]

    def _sample(self, tensor: Tensor) -> Tensor:
        """The magnitudes of some elements, as the bits of float32, in which larger numbers are larger numbers."""
        elements = tensor.numel()
        if elements <= self._most:
            sample = tensor.reshape(-1)
        else:
            place = (self._places * elements).long()
            index = []
            for size in reversed(tensor.shape):
                index.append(place % size)
                place = place // size
            sample = tensor[tuple(reversed(index))]
        return sample.float().abs().view(torch.int32)

    # -- between graphs ------------------------------------------------------------------------------------------------

    def put(self, role: int, tensor: Tensor, factor: float) -> None:
        """As `offer`, where a hook runs between graphs."""
        if fetch.is_here(tensor):
            self._offered(role)[:] = square_sum(tensor) * factor * factor, tensor.numel()
        else:
            self.offer(role, tensor, factor)

    def put_output(self, tensor: Tensor) -> bool:
        """As `offer_output` and `count`; False where the operands are known not to have been offered in this pass."""
        if not fetch.is_here(tensor):
            self.offer_output(tensor)
            self.count()
            return True
        skip, branch, elements = self._offered(SKIP), self._offered(BRANCH), tensor.numel()
        if not skip[1] == branch[1] == elements:
            return False
        row: Floats = self.pending.numpy()
        row[SKIP], row[BRANCH], row[OUTPUT], row[ELEMENTS] = skip[0], branch[0], square_sum(tensor), elements
        row[FORWARD_NONFINITE] = 0 if np.isfinite(row[OUTPUT]) else nonfinite_count(tensor)
        magnitudes(tensor, self._most, row.ctypes.data + MAGNITUDES * _BYTES)
        self.counted.numpy()[:] += row
        skip[1] = branch[1] = _NOTHING
        return True

    def _offered(self, role: int) -> Floats:
        return self.operands[role].numpy()


class Cells:
    """The cells of those channels of a model that are on one device, and whether the pass under way counts.

    Each site's tensors have storages of their own as far as torch knows: views of one would have to be told apart in every graph.
    """

    def __init__(self, device: torch.device, channels: Sequence[Channel], sample: int) -> None:
        self.device = device
        self.channels = channels
        sites = len(channels)
        # Half-open, from a generator of its own: the loop's random numbers are left alone.
        self.places = torch.from_numpy(np.random.default_rng(0).random(sample)).to(device)
        (self.live,) = self._tensors(1, 1)
        skips, branches = self._tensors(sites, 2), self._tensors(sites, 2)
        self._counted = self._tensors(sites, COLUMNS)
        self._backward = self._tensors(sites, _BACKWARD.stop - _BACKWARD.start)
        self._operands = skips + branches
        pending = self._tensors(sites, COLUMNS)
        for channel, skip, branch, *others in zip(channels, skips, branches, pending, self._counted, self._backward, strict=True):
            channel.cell = Cell(self, (skip, branch), *others)

    def _tensors(self, sites: int, width: int) -> list[Tensor]:
        tensors = [torch.zeros(width, dtype=torch.float64, device=self.device) for _ in range(sites)]
        if self.device.type == "cuda":
            for tensor in tensors:  # CUDA graphs write where they wrote when they were recorded
                torch._dynamo.mark_static_address(tensor)
        return tensors

    def begin_pass(self) -> None:
        """From here on offers count; those of an earlier pass are forgotten."""
        self.live.fill_(1)
        if self._operands:
            torch._foreach_zero_(self._operands)

    def end_pass(self) -> None:
        self.live.fill_(0)

    def take(self) -> Tensor:
        """What has gathered, [sites, COLUMNS]; the cells begin anew."""
        rows = torch.stack(self._counted)
        rows[:, _BACKWARD] += torch.stack(self._backward)
        torch._foreach_zero_(self._counted + self._backward)
        return rows


class _Passage(torch.autograd.Function):
    """Leaves a tensor as it is, and reads the gradient that comes back through it.

    A hook on the tensor would be plainer; but where torch (2.13) traces one, it forgets what the code before it, the model's own
    too, has done to Python objects. The tensor is said to be changed in place, so that what changes it afterwards finds no view.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, row: Tensor) -> Tensor:
        ctx.row = row
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        wide = _wide(gradient)
        ctx.row.add_(_row(ctx.row.device, 3, {0: _square(wide), 1: 1, 2: _nonfinite(wide)}))
        return gradient, None


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def _square(wide: Tensor) -> Tensor:
    return wide.square().sum(-1).double().sum()


def _nonfinite(wide: Tensor) -> Tensor:
    # What is finite is 0 less itself, everything else is NaN, which is not 0.
    return (wide - wide != 0).to(wide.dtype).sum(-1).double().sum()


def _row(device: torch.device, width: int, numbers: Mapping[int, Tensor | int]) -> Tensor:
    """These numbers and zeros in one float64 row: by selecting, for which a graph needs no memory of its own as for joining."""
    column = torch.arange(width, device=device)
    row = torch.zeros(width, dtype=torch.float64, device=device)
    for i, number in numbers.items():
        row = torch.where(column == i, number, row)
    return row
