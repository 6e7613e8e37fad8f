"""Where the numbers of one site gather during a step.

A forward pass *offers* skip, branch and output, in whatever order hooks meet them, and they can be *counted* only when all three of
one pass are there and of one size: a block that returns early leaves nothing behind. Several passes of one step add up.

Skip and branch are read when both have been offered, together and once, and their sum with them. The output itself is read only
where it is not plainly that sum: where a dtype is not float32, the operands lie differently in memory, or a fused kernel made it.
What is on an accelerator is read there (accelerator.py): of it the channel keeps only what the host knows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resmon.capture import _native
from resmon.capture.host import fetch
from resmon.capture.host.placement import is_distributed, local
from resmon.capture.probes import keeping
from resmon.capture.probes.accelerator import ENDS, Accelerators, Pass, Place
from resmon.capture.probes.columns import (
    ACTIVATION,
    ARRIVED,
    BACKWARD_NONFINITE,
    BRANCH,
    CHECKPOINT,
    COLLAPSED,
    COLUMNS,
    DEAD,
    ELEMENTS,
    EXTREMES,
    FILL,
    FORWARD_NONFINITE,
    GAP,
    GRADIENT,
    KEPT,
    KEPT_SQUARE,
    MAGNITUDES,
    MEDIAN,
    OUTPUT,
    PEAK,
    PRODUCT,
    SAMPLES,
    SKIP,
    SUMS,
    VARIANCE,
)
from resmon.capture.probes.positions import Sampling, Units, median_ratio
from resmon.capture.probes.sample import EDGES, magnitudes, stride
from resmon.capture.probes.sums import is_dense, nonfinite_count, square_sum
from resmon.records import Floats, ResidualSite

if TYPE_CHECKING:
    from resmon.capture.probes.activations import Kept
    from resmon.capture.probes.cells import Cell
    from resmon.capture.probes.norms import Norms

# What a channel's row holds, COLUMNS each: what a pass has offered, and what has counted in the step.
OF_PASS, IN_ALL = range(2)
_BYTES = 8
_CPU = torch.device("cpu")


def board(sites: int) -> Floats:
    """The rows of so many channels, [sites, 2, COLUMNS]."""
    rows = np.zeros((sites, 2, COLUMNS))
    begin_step(rows[:, IN_ALL])
    return rows


def begin_step(in_all: Floats) -> None:
    """Clear what has counted, [sites, COLUMNS]."""
    in_all[:, :MEDIAN] = 0.0
    in_all[:, MEDIAN:] = math.nan


class Channel:
    """One site's numbers of the step under way.

    `sums_output` says that the output is the plain sum of the operands, so that it need not be read; `drops` that a random
    operation may drop the branch of whole samples; `axis` which dimension of the operands holds channels. Of a DTensor the part on
    this rank is read; `operands_unknown` and `gradient_unknown` say why that part tells nothing of the whole, "" where it does.
    """

    __slots__ = (
        "_accelerators",
        "_address",
        "_arrived",
        "_branch",
        "_branch_factor",
        "_elements",
        "_nonfinite",
        "_offered",
        "_output",
        "_places",
        "_queued",
        "_read_output",
        "_sampling",
        "_shape",
        "_size",
        "_skip",
        "_skip_factor",
        "_stride",
        "_units",
        "axis",
        "cell",
        "device",
        "distributed",
        "drops",
        "gradient_unknown",
        "in_all",
        "kept",
        "norms",
        "of_pass",
        "operands_unknown",
        "site",
        "stands_for",
        "sums_output",
        "suspect",
        "turn",
    )

    def __init__(self, site: ResidualSite, sampling: Sampling, accelerators: Accelerators, *, sums_output: bool) -> None:
        self.site = site
        self.sums_output = sums_output
        self.drops = False
        self.axis: int | None = None  # not known yet
        self.turn = 0  # at which it is looked at more closely
        self.cell: Cell | None = None  # where a compiled model writes
        self.device = _CPU  # that its operands were on last
        self.stands_for: Channel = self
        self.kept: Kept | None = None  # by autograd, when it was last looked at
        self.norms: Norms | None = None  # on branch and projection
        self.suspect = False  # something there was not finite, so that from now on it is counted
        self.distributed = False
        self.operands_unknown = self.gradient_unknown = ""
        self._sampling = sampling
        self._units = Units()
        self._accelerators = accelerators
        self._queued: Pass | None = None  # the pass under way, where it is not read here
        self._nonfinite = 0
        self._use(board(1)[0])
        self.begin_pass()

    def move(self, row: Floats) -> None:
        """Gather in `row` from here on."""
        row[:] = (self.of_pass, self.in_all)
        self._use(row)

    def _use(self, row: Floats) -> None:
        self.of_pass, self.in_all = row
        self._shape: torch.Size | None = None  # of the operands that the row, the size and the stride are for
        self._size, self._stride = -1, 1
        self._address = address = self.of_pass.ctypes.data
        self._places = (address, address + PEAK * _BYTES, *EDGES, address + MAGNITUDES * _BYTES)
        self._arrived = self.in_all.ctypes.data + GRADIENT * _BYTES

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
        self._skip = self._branch = self._queued = None
        if self.sums_output and not self.operands_unknown and self._add(skip, branch, vouched=False):
            self._elements = self._size
        else:
            self._elements = -1
            self._read_otherwise(skip, branch)
        if self._elements >= 0:
            if self.drops and self._queued is None:
                self._keep(skip, branch)
            self._look(skip, branch)

    def _add(self, skip: Tensor, branch: Tensor, *, vouched: bool) -> bool:
        """Read both operands together; whether that could be done."""
        factors = self._skip_factor, self._branch_factor
        output = _native.addition(skip, branch, *factors, self._shape, self._stride, vouched, *self._places)
        if output is None:
            return False
        self._output, self._read_output = output, False
        return True

    def _read_otherwise(self, skip: Tensor, branch: Tensor) -> None:
        """Operands that are of a new shape, or not here, or not to be read together by what they say of themselves."""
        elements = skip.numel()
        if branch.numel() != elements or self.operands_unknown:
            return
        self._elements = elements
        if not fetch.is_here(skip):
            self.device = skip.device
            self._queued = Pass(skip, branch, (self._skip_factor, self._branch_factor), drops=self.drops)
            return
        if skip.shape != self._shape:
            self._shape, self._size = skip.shape, elements
            self._stride = stride(skip.shape, self._sampling.most)
            self.of_pass[ELEMENTS] = elements
        if not (self.sums_output and _are_alike(skip, branch) and self._add(skip, branch, vouched=True)):
            self.of_pass[FILL] = self.of_pass[PRODUCT] = 0.0
            self.of_pass[SKIP] = self._square(skip) * self._skip_factor**2
            self.of_pass[BRANCH] = self._square(branch) * self._branch_factor**2
            self._read_output = True

    def _keep(self, skip: Tensor, branch: Tensor) -> None:
        """Tell the samples that kept their branch from those that lost it."""
        numbers, factor = self.of_pass, self._skip_factor**2
        numbers[SAMPLES] = len(branch) if branch.dim() else 1
        square = numbers[SKIP] / factor if factor else math.nan
        numbers[KEPT_SQUARE] = keeping.kept_square(skip, branch, square, self._address + KEPT * _BYTES) * factor

    def _square(self, tensor: Tensor) -> float:
        """The tensor's square; its largest number is looked for where its dtype's end is near."""
        end = ENDS.get(tensor.dtype)
        if end is None:
            return square_sum(tensor)
        self.of_pass[PEAK] = 0.0
        square = square_sum(tensor, self._address + PEAK * _BYTES)
        self.of_pass[FILL] = max(self.of_pass[FILL], self.of_pass[PEAK] / end)
        return square

    def _look(self, skip: Tensor, branch: Tensor) -> None:
        """Look at the operands more closely, where it is the site's turn."""
        if self.axis is not None and self._sampling.is_turn(self.turn):
            self._note(median_ratio(skip, branch, self.axis, (self._skip_factor, self._branch_factor)), MEDIAN)

    def take_units(self, tensor: Tensor, axis: int) -> None:
        """The input of the branch's last layer, at the site's turn."""
        if type(tensor) is not Tensor:
            tensor = self._local(tensor)
        self._note(self._units.dead(tensor, axis), DEAD)

    def look_at_norms(self) -> None:
        """The step at which the site has its turn is over."""
        if self.norms is not None and (found := self.norms.look()) is not None:
            for number, column in zip(found, (GAP, VARIANCE, COLLAPSED), strict=True):
                self._note(number, column)

    def _note(self, number: Tensor | float, column: int) -> None:
        if isinstance(number, float) or fetch.is_here(number):
            self.in_all[column] = float(number)
        else:
            self._accelerators.note(number, Place(self, column, 1.0))

    def offer_output(self, tensor: Tensor) -> bool:
        """False where the operands were not seen in this pass, so that this is no result of the add and not to be counted."""
        output = tensor
        if type(tensor) is not Tensor:
            tensor = self._local(tensor)
        if tensor.numel() != self._elements:
            return False
        if self._queued is not None:
            self._queued.output(tensor, self._sampling.most, exactly=self.suspect)
        else:
            if self._read_output:
                self.of_pass[PEAK] = 0.0
                self._output = self.of_pass[OUTPUT] = square_sum(tensor, self._address + PEAK * _BYTES)
                if end := ENDS.get(tensor.dtype):
                    self.of_pass[FILL] = max(self.of_pass[FILL], self.of_pass[PEAK] / end)
                magnitudes(tensor, self._sampling.most, self._address + MAGNITUDES * _BYTES)
            self._nonfinite = 0 if math.isfinite(self._output) else nonfinite_count(tensor)
        self._offered, self._elements = self._elements, -1
        if self._sampling.activations is not None and (kept := self._sampling.activations.block(output)) is not None:
            self.kept = kept
            self.in_all[ACTIVATION], self.in_all[CHECKPOINT] = kept
        return True

    def count(self) -> None:
        """Add what was offered to the step's numbers."""
        if self._queued is not None:
            self._queued.count(self, self._accelerators)
            self.in_all[ELEMENTS] += self._offered
        else:
            _native.accumulate(self._address, self._address + COLUMNS * _BYTES, SUMS, EXTREMES)
            if self._nonfinite:
                self.in_all[FORWARD_NONFINITE] += self._nonfinite

    def gradient(self, tensor: Tensor) -> None:
        """A gradient of the output has arrived."""
        is_finite = _native.arrived(tensor, self._arrived)
        if is_finite is None:
            self._take_gradient(tensor)
        elif not is_finite:
            self.in_all[BACKWARD_NONFINITE] += nonfinite_count(tensor)

    def _take_gradient(self, tensor: Tensor) -> None:
        """One that is no plain tensor."""
        factor = 1.0
        if type(tensor) is not Tensor:
            self.distributed = is_distributed(tensor)
            tensor, share = local(tensor)
            factor, self.gradient_unknown = share.factor, share.reason
        numbers = self.in_all
        numbers[ARRIVED] += 1
        if not fetch.is_here(tensor):
            self._accelerators.gradient(tensor, self, factor, exactly=self.suspect)
            return
        square = square_sum(tensor)
        numbers[GRADIENT] += square * factor
        if not math.isfinite(square):
            numbers[BACKWARD_NONFINITE] += nonfinite_count(tensor)

    def absorb(self, other: Channel) -> None:
        """Add what `other`, a stand-in for this channel in a traced pass, has gathered."""
        other.stands_for = self
        self.device = other.device
        self.kept = other.kept or self.kept
        self.in_all[:SUMS] += other.in_all[:SUMS]
        np.fmax(self.in_all[SUMS:], other.in_all[SUMS:], out=self.in_all[SUMS:])


def _are_alike(skip: Tensor, branch: Tensor) -> bool:
    """Whether the native part can read them together."""
    return (
        skip.dtype is branch.dtype is torch.float32
        and skip.is_cpu
        and branch.is_cpu
        and ((skip.is_contiguous() and branch.is_contiguous()) or (skip.stride() == branch.stride() and is_dense(skip)))
    )
