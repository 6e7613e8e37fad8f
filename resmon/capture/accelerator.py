"""The numbers of sites whose tensors are on an accelerator, computed there and fetched once a step.

Everything here is queued on the device and nothing waits for it. A residual add costs four short kernels (three norms and a sample)
and its gradient one; what takes more is done for all sites together, at the end of a pass and of a step. Norms are sums in float32,
as the device's reductions make them: a norm beyond float32's range counts as not finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resmon.capture.sample import CELLS, flat_sample
from resmon.records import (
    MAGNITUDE_COLUMNS,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    MAGNITUDE_NONFINITE,
    MAGNITUDE_ZERO,
    Floats,
)

SKIP, BRANCH, OUTPUT = range(3)
_ABSENT = 0x7FFFFFFF  # in the samples' bits: the one NaN that no arithmetic makes
_INFINITE = 0x7F800000  # the bits of float32's infinity; those of NaN are larger
_FIRST = MAGNITUDE_LOW + 127  # the biased exponent of the first bucket's upper edge


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a step's sites had to say: sums of squares [sites, 3] and of gradients [sites], cumulative magnitudes [sites, CELLS]."""

    squares: Floats
    gradients: Floats
    magnitudes: Floats


class Board:
    """Rows of `sites` sites on `device`, with samples of about `sample` elements."""

    def __init__(self, device: torch.device, sites: int, sample: int) -> None:
        self.device = device
        self._sample = sample
        self._norms = torch.zeros((sites, 3), device=device)  # of the pass
        self._bits = torch.full((sites, 2 * sample), _ABSENT, dtype=torch.int32, device=device)
        self._squares = torch.zeros((sites, 3), dtype=torch.float64, device=device)  # of the step
        self._gradient_norms = torch.zeros(sites, device=device)
        self._gradients = torch.zeros(sites, dtype=torch.float64, device=device)
        self._magnitudes = torch.zeros((sites, CELLS), dtype=torch.float64, device=device)  # of all steps
        # Views are made once: making one takes as long as queueing a kernel.
        self._cells = [[row[k] for k in range(3)] for row in self._norms]
        self._gradient_cells = list(self._gradient_norms)
        self._samples = list(self._bits.view(torch.float32))

    def operands(self, site: int, skip: Tensor, branch: Tensor, factors: tuple[float, float]) -> None:
        for k, tensor, factor in ((SKIP, skip, factors[0]), (BRANCH, branch, factors[1])):
            _norm(tensor, self._cells[site][k])
            if factor != 1:
                self._cells[site][k] *= abs(factor)

    def output(self, site: int, tensor: Tensor) -> None:
        _norm(tensor, self._cells[site][OUTPUT])
        values = flat_sample(tensor, self._sample)
        self._samples[site][: values.numel()].copy_(values)

    def forget(self, site: int) -> None:
        """The operands of this pass led to no output."""
        self._norms[site].zero_()

    def gradient(self, site: int, tensor: Tensor, *, again: bool) -> None:
        """A gradient has arrived, `again` in this step."""
        if again:
            self._gradients[site] += self._gradient_cells[site].double().square()
        _norm(tensor, self._gradient_cells[site])

    def end_pass(self) -> None:
        """Add what the pass has gathered to the step's sums."""
        self._squares += self._norms.double().square()
        self._norms.zero_()
        absent = self._bits == _ABSENT
        bits = self._bits & _ABSENT  # without the sign
        finite = bits < _INFINITE
        # One less, so that a power of two falls into the bucket that it closes; zero is told apart by its bits.
        column = (((bits - 1) >> 23) + 1 - _FIRST).clamp_(0, MAGNITUDE_LARGER)
        column = torch.where(bits == 0, MAGNITUDE_ZERO, column)
        column = torch.where(finite, column, MAGNITUDE_NONFINITE)
        column = torch.where(absent, MAGNITUDE_COLUMNS, column)
        table = torch.zeros((len(bits), MAGNITUDE_COLUMNS + 1), dtype=torch.float64, device=self.device)
        table.scatter_add_(1, column.long(), torch.ones((), dtype=torch.float64, device=self.device).expand(column.shape))
        self._magnitudes[:, 1:] += table[:, :-1]
        self._magnitudes[:, 0] += torch.where(finite, bits.view(torch.float32), 0.0).sum(dim=1, dtype=torch.float64)
        self._bits.fill_(_ABSENT)

    def end_step(self) -> Fetched:
        """Send the step's numbers to the host, and begin the next step."""
        gradients = self._gradients + self._gradient_norms.double().square()
        numbers = torch.cat([self._squares, gradients[:, None], self._magnitudes], dim=1)
        for tensor in (self._squares, self._gradients, self._gradient_norms):
            tensor.zero_()
        return Fetched(numbers)


class Fetched:
    """Numbers on their way from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))
        else:
            self._host = numbers.cpu()

    def has_arrived(self) -> bool:
        return self._event is None or self._event.query()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def numbers(self) -> Numbers:
        """To be asked for when they have arrived."""
        table = self._host.numpy()
        return Numbers(table[:, :3], table[:, 3], table[:, 4:])


def _norm(tensor: Tensor, into: Tensor) -> None:
    if tensor.dtype is torch.float64:  # torch narrows no dtype on the way
        into.copy_(torch.linalg.vector_norm(tensor.detach()))
    else:
        torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32, out=into)
