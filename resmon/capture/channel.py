"""Where the numbers of one site gather during a step.

A forward pass *offers* skip, branch and output, in whatever order hooks meet them, and they can be *counted* only when all three of
one pass are there and of one size: a block that returns early leaves nothing behind. Several passes of one step add up.

Skip and branch are read when both have been offered, together and once, and their sum with them. The output itself is read only
where it is not plainly that sum: where a dtype is not float32, the operands lie differently in memory, or a fused kernel made it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resmon.capture import _native
from resmon.capture.placement import is_distributed, local
from resmon.capture.sample import CELLS, EDGES, magnitudes, stride
from resmon.capture.sums import is_dense, nonfinite_count, square_sum
from resmon.records import Floats, ResidualSite

if TYPE_CHECKING:
    from resmon.capture.cells import Cell

# What a channel's row holds, per pass (offered, and counted once the output is there) and in all.
SKIP, BRANCH, OUTPUT, ELEMENTS, MAGNITUDES = range(5)  # squares of the first three; the histogram goes on to the end
COLUMNS = MAGNITUDES + CELLS
OF_PASS, IN_ALL = range(2)
_BYTES = 8


def board(sites: int) -> Floats:
    """The rows of so many channels, [sites, 2, COLUMNS]."""
    return np.zeros((sites, 2, COLUMNS))


class Channel:
    """One site's numbers of the step under way, and its cumulative counters.

    `sums_output` says that the output is the plain sum of the operands, so that it need not be read. Of a DTensor the part on this
    rank is read; `operands_unknown` and `gradient_unknown` say why that part tells nothing of the whole, "" where it does.
    """

    __slots__ = (
        "_address",
        "_branch",
        "_branch_factor",
        "_elements",
        "_nonfinite",
        "_output",
        "_read_output",
        "_sample",
        "_shape",
        "_skip",
        "_skip_factor",
        "_stride",
        "cell",
        "distributed",
        "gradient_arrived",
        "gradient_unknown",
        "in_all",
        "nonfinite_backward",
        "nonfinite_forward",
        "nonfinite_steps",
        "of_pass",
        "operands_unknown",
        "output_gradient_square",
        "site",
        "sums_output",
    )

    def __init__(self, site: ResidualSite, sample_size: int, *, sums_output: bool) -> None:
        self.site = site
        self.sums_output = sums_output
        self.nonfinite_steps = 0
        self.cell: Cell | None = None  # where a compiled model writes
        self.distributed = False
        self.operands_unknown = self.gradient_unknown = ""
        self._sample = sample_size
        self._use(board(1)[0])
        self.clear()

    def move(self, row: Floats) -> None:
        """Gather in `row` from here on."""
        row[:] = (self.of_pass, self.in_all)
        self._use(row)

    def _use(self, row: Floats) -> None:
        self.of_pass, self.in_all = row
        self._shape: torch.Size | None = None  # of the operands that the row and the stride are for
        self._address = self.of_pass.ctypes.data

    def clear(self) -> None:
        """Begin a step."""
        self.in_all[:MAGNITUDES] = 0
        self.output_gradient_square = 0.0
        self.nonfinite_forward = self.nonfinite_backward = 0
        self.gradient_arrived = False
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget what an earlier pass offered without reaching the add."""
        self._skip: Tensor | None = None
        self._branch: Tensor | None = None
        self._elements = -1

    def offer_skip(self, tensor: Tensor, factor: float) -> None:
        if type(tensor) is not Tensor:
            tensor = self._local(tensor)
        self._skip, self._skip_factor = tensor, factor
        if self._branch is not None:
            self._read(tensor, self._branch)

    def offer_branch(self, tensor: Tensor, factor: float) -> None:
        if type(tensor) is not Tensor:
            tensor = self._local(tensor)
        self._branch, self._branch_factor = tensor, factor
        if self._skip is not None:
            self._read(self._skip, tensor)

    def _local(self, tensor: Tensor) -> Tensor:
        tensor, share = local(tensor)
        self.operands_unknown = share.reason or self.operands_unknown
        return tensor

    def _read(self, skip: Tensor, branch: Tensor) -> None:
        self.begin_pass()
        elements = skip.numel()
        if branch.numel() != elements or self.operands_unknown:
            return
        if skip.shape != self._shape:
            self._shape = skip.shape
            self._stride = stride(skip.shape, self._sample)
            self.of_pass[ELEMENTS] = elements
        if self.sums_output and _are_alike(skip, branch):
            address = self._address
            self._output = _native.addition(
                skip.data_ptr(),
                branch.data_ptr(),
                self._skip_factor,
                self._branch_factor,
                elements,
                address,
                self._stride,
                *EDGES,
                address + MAGNITUDES * _BYTES,
            )
            self._read_output = False
        else:
            self.of_pass[SKIP] = square_sum(skip) * self._skip_factor**2
            self.of_pass[BRANCH] = square_sum(branch) * self._branch_factor**2
            self._read_output = True
        self._elements = elements

    def offer_output(self, tensor: Tensor) -> bool:
        """False where the operands were not seen in this pass, so that this is no result of the add and not to be counted."""
        if type(tensor) is not Tensor:
            tensor = self._local(tensor)
        if tensor.numel() != self._elements:
            return False
        if self._read_output:
            self._output = self.of_pass[OUTPUT] = square_sum(tensor)
            magnitudes(tensor, self._sample, self._address + MAGNITUDES * _BYTES)
        self._nonfinite = 0 if math.isfinite(self._output) else nonfinite_count(tensor)
        self._skip = self._branch = None
        self._elements = -1
        return True

    def count(self) -> None:
        """Add what was offered to the step's numbers."""
        _native.accumulate(self._address, self._address + COLUMNS * _BYTES, COLUMNS)
        self.nonfinite_forward += self._nonfinite

    def gradient(self, tensor: Tensor) -> None:
        """A gradient of the output has arrived."""
        factor = 1.0
        if type(tensor) is not Tensor:
            self.distributed = is_distributed(tensor)
            tensor, share = local(tensor)
            factor, self.gradient_unknown = share.factor, share.reason
        square = square_sum(tensor)
        self.output_gradient_square += square * factor
        self.gradient_arrived = True
        if not math.isfinite(square):
            self.nonfinite_backward += nonfinite_count(tensor)

    def absorb(self, other: Channel) -> None:
        """Add what `other`, a stand-in for this channel in a traced pass, has gathered."""
        self.in_all += other.in_all
        self.nonfinite_forward += other.nonfinite_forward


def _are_alike(skip: Tensor, branch: Tensor) -> bool:
    """Whether the native part can read them together."""
    return (
        skip.dtype is branch.dtype is torch.float32
        and skip.is_cpu
        and branch.is_cpu
        and ((skip.is_contiguous() and branch.is_contiguous()) or (skip.stride() == branch.stride() and is_dense(skip)))
    )
