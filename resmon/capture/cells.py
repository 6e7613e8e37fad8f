"""Where the numbers of a compiled model's sites gather, written by torch operations inside of its graphs.

What torch.compile traces of a hook is what the graph will do for ever: so it is tensor operations alone, on cells that the graph is
given as it is given parameters. Nothing of ours that differs from block to block or from call to call is a Python number there,
which the graph would be guarded on; whether a pass counts is a tensor too, for a checkpoint that recomputes a compiled block must
run the very graph of the first time. The cells are numpy's memory: hooks between graphs write them without torch, and at the end of
a step they are added to the channels' rows.

Sums are of float32 along the last dimension and of float64 from there on. The sample of magnitudes is taken at places drawn once,
as parts of the whole, so that it needs no stride and no new graph for another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resmon.capture import compiler
from resmon.capture.channel import BRANCH, COLUMNS, ELEMENTS, MAGNITUDES, OUTPUT, SKIP, Channel
from resmon.capture.sample import magnitudes
from resmon.capture.sums import nonfinite_count, square_sum
from resmon.records import MAGNITUDE_LARGER, MAGNITUDE_LOW, MAGNITUDE_NONFINITE, MAGNITUDE_ZERO, Floats

_NONFINITE = COLUMNS  # behind a channel's columns
_WIDTH = COLUMNS + 1
_SQUARE, _ARRIVED, _BROKEN = range(3)  # of the gradient
_NOTHING = -1.0  # elements of an operand that was not offered in this pass
_INFINITE = 0x7F800000  # the bits of infinity in float32; those of NaN are larger
_BYTES = 8
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Cell:
    """One site's numbers since the last step: of operands offered, of an output offered, of what counts, of its gradient."""

    __slots__ = (
        "_live",
        "_most",
        "_offered",
        "_pending",
        "_places",
        "_sums",
        "backward",
        "counted",
        "declined",
        "operands",
        "pending",
    )

    def __init__(self, cells: Cells, site: int) -> None:
        self._live, self._places, self._most = cells.live, cells.places, len(cells.places)
        self._offered, self._pending, self._sums = cells.offered[site], cells.pending[site], cells.sums[site]
        # One tensor each, of a storage of its own as far as torch knows: views of one would have to be told apart in every graph.
        self.operands = (torch.from_numpy(self._offered[SKIP]), torch.from_numpy(self._offered[BRANCH]))
        self.pending = torch.from_numpy(self._pending)
        self.counted = torch.from_numpy(self._sums)
        self.backward = torch.from_numpy(cells.backward[site])
        self.declined = ""  # why tensors were not taken

    def takes(self, tensor: Tensor) -> bool:
        """Whether the operations below are sure to work on it; one that failed while a graph is made would fail the loop's call."""
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            reason = f"a {type(tensor).__name__} does not tell there what part of the whole it is"
        elif tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
            reason = f"tensors of {tensor.dtype} and {tensor.layout} are not read there"
        elif tensor.device != self.pending.device:
            reason = f"the tensor is on {tensor.device}"
        else:
            return True
        compiler.freely(self._decline, reason)
        return False

    def _decline(self, reason: str) -> None:
        self.declined = reason

    # -- in a graph ----------------------------------------------------------------------------------------------------

    def offer(self, role: int, tensor: Tensor, factor: float) -> None:
        """Take an operand: SKIP or BRANCH."""
        square = _square(_wide(tensor)) * (factor * factor)
        self.operands[role].copy_(_row(2, square, tensor.numel()))

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
        row = _row(_WIDTH, skip[0], branch[0], _square(wide), elements, finite, last=_nonfinite(wide))
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

    def count_pending(self) -> None:
        """As `count`."""
        self._sums += self._pending

    def put(self, role: int, tensor: Tensor, factor: float) -> None:
        """As `offer`, where a hook runs between graphs."""
        self._offered[role] = square_sum(tensor) * factor * factor, tensor.numel()

    def put_output(self, tensor: Tensor) -> bool:
        """As `offer_output` and `count`; False where the operands were not offered in this pass."""
        elements = tensor.numel()
        if any(self._offered[:, 1] != elements):
            return False
        row = self._pending
        row[[SKIP, BRANCH]] = self._offered[:, 0]
        row[OUTPUT], row[ELEMENTS] = square_sum(tensor), elements
        row[_NONFINITE] = 0 if np.isfinite(row[OUTPUT]) else nonfinite_count(tensor)
        magnitudes(tensor, self._most, row.ctypes.data + MAGNITUDES * _BYTES)
        self._sums += row
        self._offered[:, 1] = _NOTHING
        return True


class Cells:
    """The cells of the sites of one model, and whether the pass under way counts."""

    def __init__(self, sites: int, sample: int) -> None:
        self.offered = np.full((sites, 2, 2), _NOTHING)  # square and elements of skip and branch
        self.pending: Floats = np.zeros((sites, _WIDTH))
        self.sums: Floats = np.zeros((sites, _WIDTH))
        self.backward: Floats = np.zeros((sites, 3))
        # Half-open, from a generator of its own: the loop's random numbers are left alone.
        self.places = torch.from_numpy(np.random.default_rng(0).random(sample))
        self._live = np.zeros(1)
        self.live = torch.from_numpy(self._live)
        self.of_sites = [Cell(self, site) for site in range(sites)]

    def begin_pass(self) -> None:
        """From here on offers count; those of an earlier pass are forgotten."""
        self._live[0] = 1
        self.offered[:, :, 1] = _NOTHING

    def end_pass(self) -> None:
        self._live[0] = 0

    def settle(self, channels: Sequence[Channel]) -> None:
        """Give the channels of the sites what has gathered, and begin anew."""
        if self.sums[:, ELEMENTS].any():
            for channel, row in zip(channels, self.sums, strict=True):
                channel.in_all += row[:COLUMNS]
                channel.nonfinite_forward += int(row[_NONFINITE])
            self.sums[:] = 0
        if self.backward[:, _ARRIVED].any():
            for channel, row in zip(channels, self.backward, strict=True):
                if row[_ARRIVED]:
                    channel.output_gradient_square += float(row[_SQUARE])
                    channel.gradient_arrived = True
                    channel.nonfinite_backward += int(row[_BROKEN])
            self.backward[:] = 0


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
        ctx.row.add_(_row(3, _square(wide), 1, last=_nonfinite(wide)))
        return gradient, None


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def _square(wide: Tensor) -> Tensor:
    return wide.square().sum(-1).double().sum()


def _nonfinite(wide: Tensor) -> Tensor:
    # What is finite is 0 less itself, everything else is NaN, which is not 0.
    return (wide - wide != 0).to(wide.dtype).sum(-1).double().sum()


def _row(width: int, *first: Tensor | int, last: Tensor | None = None) -> Tensor:
    """These numbers, then zeros, in one float64 row: by selecting, for which a graph needs no memory of its own as for joining."""
    column = torch.arange(width)
    row = torch.zeros(width, dtype=torch.float64)
    for i, number in enumerate(first):
        row = torch.where(column == i, number, row)
    return row if last is None else torch.where(column == width - 1, last, row)
