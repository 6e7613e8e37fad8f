"""Where the numbers of one site gather during a step.

A forward pass *offers* skip, branch and output, in whatever order hooks meet them, and they count only when all three of one pass
are there and of one size: a block that returns early leaves nothing behind. Several passes of one step add up.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from resmon.capture import sample
from resmon.capture.sums import nonfinite_count, square_sum
from resmon.records import MAGNITUDE_COLUMNS, Ints, ResidualSite


class Gauge:
    """Measures tensors, the same tensor twice in a row only once: a block's output is the next one's skip."""

    __slots__ = ("_last", "_square", "_version")

    def __init__(self) -> None:
        self._last: Any = _nothing
        self._version = -1
        self._square = 0.0

    def square(self, tensor: Tensor) -> float:
        version = tensor._version
        if self._last() is tensor and version == self._version:
            return self._square
        square = square_sum(tensor)
        self._last, self._version, self._square = weakref.ref(tensor), version, square
        return square


def _nothing() -> None:
    return None


class Channel:
    """One site's numbers of the step under way, and its cumulative counters."""

    __slots__ = (
        "_branch",
        "_branch_elements",
        "_skip",
        "_skip_elements",
        "branch_square",
        "elements",
        "gradient_arrived",
        "magnitude_buckets",
        "magnitude_sum",
        "nonfinite_backward",
        "nonfinite_forward",
        "nonfinite_steps",
        "output_gradient_square",
        "output_square",
        "row",
        "sampled",
        "site",
        "skip_square",
    )

    def __init__(self, site: ResidualSite, sample_size: int) -> None:
        self.site = site
        self.row: npt.NDArray[np.float32] = np.zeros(sample_size, np.float32)
        self.magnitude_buckets: Ints = np.zeros(MAGNITUDE_COLUMNS, np.int64)
        self.magnitude_sum = 0.0
        self.nonfinite_steps = 0
        self.clear()

    def clear(self) -> None:
        """Begin a step."""
        self.skip_square = self.branch_square = self.output_square = self.output_gradient_square = 0.0
        self.elements = self.nonfinite_forward = self.nonfinite_backward = 0
        self.gradient_arrived = False
        self.sampled = 0
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget what an earlier pass offered without reaching the add."""
        self._skip_elements = self._branch_elements = -1

    def offer_skip(self, gauge: Gauge, tensor: Tensor, factor: float) -> None:
        self._skip = gauge.square(tensor) * factor * factor
        self._skip_elements = tensor.numel()

    def offer_branch(self, gauge: Gauge, tensor: Tensor, factor: float) -> None:
        self._branch = gauge.square(tensor) * factor * factor
        self._branch_elements = tensor.numel()

    def offer_output(self, gauge: Gauge, tensor: Tensor) -> bool:
        """Count the pass; False where the operands were not seen in it, so that this is no result of the add."""
        elements = tensor.numel()
        if self._skip_elements != elements or self._branch_elements != elements:
            return False
        square = gauge.square(tensor)
        self.skip_square += self._skip
        self.branch_square += self._branch
        self.output_square += square
        self.elements += elements
        if not math.isfinite(square):
            self.nonfinite_forward += nonfinite_count(tensor)
        if self.sampled:
            self.fold()
        self.sampled = sample.take(tensor, self.row)
        self.begin_pass()
        return True

    def gradient(self, tensor: Tensor) -> None:
        """A gradient of the output has arrived."""
        square = square_sum(tensor)
        self.output_gradient_square += square
        self.gradient_arrived = True
        if not math.isfinite(square):
            self.nonfinite_backward += nonfinite_count(tensor)

    def absorb(self, other: Channel) -> None:
        """Add what `other`, a stand-in for this channel in a traced pass, has gathered."""
        self.skip_square += other.skip_square
        self.branch_square += other.branch_square
        self.output_square += other.output_square
        self.elements += other.elements
        self.nonfinite_forward += other.nonfinite_forward
        if self.sampled:
            self.fold()
        self.row[:] = other.row
        self.sampled = other.sampled

    def fold(self) -> None:
        """Count the sample of an earlier pass of this step, before the next one takes its place."""
        buckets, sums = sample.histograms(self.row[None], np.array([self.sampled]))
        self.magnitude_buckets += buckets[0]
        self.magnitude_sum += float(sums[0])
        self.sampled = 0
