"""Where the numbers of a compiled model's sites gather, written by torch operations inside of its graphs.

What torch.compile traces of a hook is what the graph will do for ever: so it is tensor operations alone, few of them, on cells that
the graph is given as it is given parameters. Nothing of ours that differs from block to block or from call to call is a Python
number there, which the graph would be guarded on. A checkpoint that recomputes a compiled block runs the very graph of the first
time, and writes what nobody reads: what a pass has left in the cells is folded into sums when the pass ends.

Sums are of float32 along the last dimension and of float64 from there on. The sample of magnitudes is taken at places drawn once,
as parts of the whole, so that it needs no stride and no new graph for another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resmon.capture.host import compiler
from resmon.capture.probes.accelerator import ENDS, buckets
from resmon.capture.probes.channel import Channel
from resmon.capture.probes.columns import FORWARD_NONFINITE, GRADIENT, MAGNITUDES, MEDIAN, SKIP, SUMS
from resmon.records import MAGNITUDE_COLUMNS, Floats

# A cell's numbers: square and elements of skip, branch and output, and what is not finite in the output; what share of its dtype's
# range each of them took, and the output's largest magnitude, of 16 bits only; samples, and those that kept their branch, where it
# may be dropped; then the square of the output's gradients, how many arrived, and what is not finite in them.
(
    _SKIP,
    _SKIP_ELEMENTS,
    _BRANCH,
    _BRANCH_ELEMENTS,
    _OUTPUT,
    _ELEMENTS,
    _BROKEN,
    _SKIP_FILL,
    _BRANCH_FILL,
    _OUTPUT_FILL,
    _PEAK,
    _SAMPLES,
    _KEPT,
    _BACKWARD,
    _ARRIVED,
    _BACKWARD_BROKEN,
) = range(16)
_WIDTH = 16
_NOTHING = -1  # elements of what was not offered in this pass
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Cell:
    """One site's numbers of the pass under way, and of the gradients since the last step.

    Each number is a tensor with a storage of its own as far as torch knows: views of one would have to be told apart in every
    graph. It has one dimension: of those without any the compiler takes the value for a Python number that may matter.
    """

    __slots__ = ("_drops", "_numbers", "_places", "_sample", "declined")

    def __init__(self, numbers: Tensor, sample: Tensor, places: Tensor, *, drops: bool) -> None:
        self._drops = drops
        self._numbers = [alias(number) for number in numbers.split(1)]
        self._sample, self._places = alias(sample), places
        self.declined = ""  # why tensors were not taken

    def takes(self, tensor: Tensor) -> bool:
        """Whether the operations below are sure to work on it; one that failed while a graph is made would fail the loop's call."""
        if type(tensor) is not Tensor and type(tensor) is not nn.Parameter:
            reason = f"a {type(tensor).__name__} does not tell there what part of the whole it is"
        elif tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
            reason = f"tensors of {tensor.dtype} and {tensor.layout} are not read there"
        elif tensor.device != self._sample.device:
            reason = f"the tensor is on {tensor.device}"
        elif compiler.traces() and compiler.compiles_backward():
            reason = "torch's compiled autograd fails on a graph that keeps such numbers; without it blocks are observed"
        elif compiler.traces() and compiler.is_in_region():
            reason = (
                "torch trains no torch.compiler.nested_compile_region that anything is written in; without it blocks are observed"
            )
        else:
            return True
        compiler.freely(self._decline, reason)
        return False

    def _decline(self, reason: str) -> None:
        self.declined = reason

    def offer(self, role: int, tensor: Tensor, factor: float) -> None:
        """Take an operand: SKIP or BRANCH."""
        wide = _wide(tensor)
        square = _square(wide)
        self._numbers[2 * role].copy_(square if factor == 1 else square * (factor * factor))
        self._numbers[2 * role + 1].fill_(tensor.numel())
        self._fill(_SKIP_FILL + role, tensor, wide)
        if self._drops and 2 * role == _BRANCH:
            samples = wide.flatten(1) if wide.dim() > 1 else wide[:, None]
            self._numbers[_SAMPLES].fill_(len(samples))
            self._numbers[_KEPT].copy_((samples != 0).any(1).sum())

    def _fill(self, place: int, tensor: Tensor, wide: Tensor) -> None:
        elements = tensor.numel()
        if tensor.dtype in ENDS and not compiler.is_sure(elements == 0):
            magnitudes = wide.abs()
            peak = (magnitudes if compiler.is_sure(elements > 0) else _and_zero(magnitudes)).amax()
            self._numbers[place].copy_(peak * (1 / ENDS[tensor.dtype]))
            if place == _OUTPUT_FILL:
                self._numbers[_PEAK].copy_(peak)

    def offer_output(self, tensor: Tensor) -> None:
        """Take an output, which counts where operands of its size were offered in this pass, unless it is taken back."""
        wide = _wide(tensor)
        self._numbers[_OUTPUT].copy_(_square(wide))
        self._numbers[_ELEMENTS].fill_(tensor.numel())
        self._numbers[_BROKEN].copy_(_nonfinite(wide))
        self._fill(_OUTPUT_FILL, tensor, wide)
        elements = tensor.numel()
        if compiler.is_sure(elements <= len(self._places)):
            self._sample[:elements].copy_(wide.reshape(-1))
        else:
            self._sample.copy_(sampled(wide, self._places))

    def take_back(self) -> None:
        """The output that was offered was none."""
        self._numbers[_ELEMENTS].fill_(_NOTHING)

    def expect_gradient(self, output: Tensor) -> None:
        """Take the gradient of the output when it arrives. What a nested compile region gives is a leaf, and has none."""
        if output.is_leaf:
            return
        _Passage.apply(output, *self._numbers[_BACKWARD:])  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """A pass begins, inside of a graph."""
        for elements in (_SKIP_ELEMENTS, _BRANCH_ELEMENTS, _ELEMENTS):
            self._numbers[elements].fill_(_NOTHING)

    @property
    def numbers(self) -> Tensor:
        """As they are at this point of a graph."""
        return torch.cat(self._numbers)

    @property
    def sample(self) -> Tensor:
        return self._sample


class Cells:
    """The cells of those channels of a model that are on one device."""

    def __init__(self, device: torch.device, channels: Sequence[Channel], sample: int) -> None:
        self.channels = channels
        sites = len(channels)
        places = drawn_places(device, sample)
        self._numbers = torch.zeros((sites, _WIDTH), dtype=torch.float64, device=device)
        self._samples = torch.zeros((sites, sample), device=device)
        self._sums = torch.zeros((sites, MEDIAN), dtype=torch.float64, device=device)
        self._cells = [
            Cell(numbers, sample, places, drops=channel.drops)
            for numbers, sample, channel in zip(self._numbers, self._samples, channels, strict=True)
        ]
        for channel, cell in zip(channels, self._cells, strict=True):
            channel.cell = cell

    def begin_pass(self) -> None:
        """What was offered before counts no more."""
        self._numbers[:, _SKIP_ELEMENTS : _ELEMENTS + 1 : 2].fill_(_NOTHING)

    def end_pass(self) -> None:
        """What was offered counts."""
        self._add(_folded(self._numbers, self._samples))

    def begin_pass_in_graph(self) -> None:
        for cell in self._cells:
            cell.forget()

    def end_pass_in_graph(self) -> None:
        numbers, samples = ([getattr(cell, name) for cell in self._cells] for name in ("numbers", "sample"))
        self._add(_folded(torch.stack(numbers), torch.stack(samples)))

    def _add(self, rows: Tensor) -> None:
        self._sums.copy_(torch.cat([self._sums[:, :SUMS] + rows[:, :SUMS], torch.maximum(self._sums[:, SUMS:], rows[:, SUMS:])], 1))

    def signs(self) -> Floats:
        """What was not finite so far, [sites, 3]: FORWARD_NONFINITE, BACKWARD_NONFINITE and SKIP."""
        sums, backward = self._sums, self._numbers[:, _BACKWARD_BROKEN]
        return torch.stack([sums[:, FORWARD_NONFINITE], backward, sums[:, SKIP]], 1).cpu().numpy()

    def forget_gradients(self) -> None:
        """The loop has cleared what has arrived."""
        self._numbers[:, [_BACKWARD, _ARRIVED]] = 0

    def gradients(self) -> Tensor:
        """What has arrived so far."""
        return self._numbers[:, [_BACKWARD, _ARRIVED]]

    def put_back(self, gradients: Tensor) -> None:
        """What has arrived since then does not count."""
        self._numbers[:, [_BACKWARD, _ARRIVED]] = gradients

    def take(self) -> Tensor:
        """What has counted, the first columns up to MEDIAN of each site's row; the next step begins."""
        rows, gradients = self._sums.clone(), self._numbers[:, _BACKWARD:]
        self._numbers[:, _SKIP_FILL:_BACKWARD] = 0  # which not every graph writes
        rows[:, GRADIENT:MAGNITUDES] = gradients
        self._sums.zero_()
        gradients.zero_()
        return rows


def _folded(numbers: Tensor, samples: Tensor) -> Tensor:
    """The sites' rows, up to MEDIAN, of what a pass has left, 0 where skip, branch and output were not all offered."""
    elements = numbers[:, _ELEMENTS : _ELEMENTS + 1]
    counts = (elements >= 0) & (elements == numbers[:, _SKIP_ELEMENTS, None]) & (elements == numbers[:, _BRANCH_ELEMENTS, None])
    bits = samples.abs().view(torch.int32)
    column, finite = buckets(bits)
    sampled = torch.arange(samples.shape[1], device=samples.device) < elements
    column = torch.where(sampled, column, MAGNITUDE_COLUMNS)
    ones = torch.ones_like(samples, dtype=torch.float64)
    histogram = torch.zeros((len(samples), MAGNITUDE_COLUMNS + 1), dtype=torch.float64, device=samples.device)
    histogram = histogram.scatter_add(1, column.long(), ones)[:, :-1]
    total = torch.where(sampled & finite, bits, 0).view(torch.float32).double().sum(1, keepdim=True)
    backward = torch.zeros((len(samples), MAGNITUDES - GRADIENT), dtype=torch.float64, device=samples.device)
    nothing = backward[:, :1]  # products and what was dropped are told by the rest
    parts = (
        numbers[:, [_SKIP, _BRANCH, _OUTPUT]],
        nothing,
        numbers[:, [_ELEMENTS, _BROKEN]],
        nothing,
        numbers[:, [_SAMPLES, _KEPT]],
    )
    extremes = numbers[:, [_PEAK]], numbers[:, _SKIP_FILL:_PEAK].amax(1, keepdim=True)
    return torch.where(counts, torch.cat([*parts, backward, total, histogram, *extremes], dim=1), 0.0)


class _Passage(torch.autograd.Function):
    """Leaves a tensor as it is, and reads the gradient that comes back through it.

    A hook on the tensor would be plainer; but where torch (2.13) traces one, it forgets what the code before it, the model's own
    too, has done to Python objects. The tensor is said to be changed in place, so that what changes it afterwards finds no view.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, square: Tensor, arrived: Tensor, broken: Tensor) -> Tensor:
        ctx.numbers = square, arrived, broken
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        wide = _wide(gradient)
        square, arrived, broken = ctx.numbers
        square.add_(_square(wide))
        arrived.add_(1)
        broken.add_(_nonfinite(wide))
        return gradient, None, None, None


def sampled(tensor: Tensor, places: Tensor) -> Tensor:
    """As many elements of `tensor` as there are `places`: those there, or all and then others, where it has not so many."""
    elements, most = tensor.numel(), len(places)
    flat = tensor.reshape(-1) if compiler.is_sure(elements > 0) else _and_zero(tensor)
    at = (places * elements).long()
    if not compiler.is_sure(elements > most):
        last = torch.full_like(at, elements) - 1
        each = torch.minimum(torch.arange(most, device=at.device), last).clamp(min=0)
        at = torch.where(last < most, each, at)
    return flat[at]


def _and_zero(tensor: Tensor) -> Tensor:
    """All elements, and one more, for there may be none."""
    return torch.cat([tensor.reshape(-1), tensor.new_zeros(1)])


def drawn_places(device: torch.device, sample: int) -> Tensor:
    """Of a sample, as parts of the whole."""
    # Half-open, from a generator of its own: the loop's random numbers are left alone.
    return torch.from_numpy(np.random.default_rng(0).random(sample)).to(device)


def alias(tensor: Tensor) -> Tensor:
    """The same memory, as a tensor that torch knows nothing of."""
    alias = torch.utils.dlpack.from_dlpack(tensor)
    if alias.is_cuda:  # CUDA graphs write where they wrote when they were recorded
        torch._dynamo.mark_static_address(alias)
    return alias


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype is torch.float64 else tensor.float()


def _square(wide: Tensor) -> Tensor:
    return wide.square().sum(-1).double().sum()


def _nonfinite(wide: Tensor) -> Tensor:
    # What is finite is 0 less itself, everything else is NaN, which is not 0.
    return (wide - wide != 0).to(wide.dtype).sum(-1).double().sum()
