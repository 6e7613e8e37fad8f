"""What the model is given, step by step: sums over a sample of its inputs, which tell inputs that drift from those that are harder.

A normalisation behind the stem hides a drift of the inputs from every block. Of the first floating-point tensor among the
model's arguments a sample is summed, that of a histogram in size and place (sample.py), and squared; of a model that is given
integers only, the first of these: what the mean of tokens' numbers is says nothing, but that it changes says that they are
others. Where several models are watched it is the one that was given such a tensor first, for another's are of another kind (a
discriminator's images beside a generator's noise). Evaluation counts nothing. Where a pass begins inside a graph of the
compiler the graph sums (entrance.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from resmon.capture import _native
from resmon.capture.discovery.dataflow import tensors
from resmon.capture.host import fetch
from resmon.capture.host.fetch import OBSERVED, Fetch, Later
from resmon.capture.host.placement import local
from resmon.capture.probes.sample import flat, places, stride
from resmon.capture.probes.sums import CODES, is_dense
from resmon.records import Floats

if TYPE_CHECKING:
    from resmon.capture.probes.entrance import Entered

INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


@dataclass(frozen=True, slots=True)
class InputSums:
    """Of a step's samples: elements, and what the host has summed already besides what arrives.

    What graphs have counted (entrance.py), model by model, stands where no pass began outside of one.
    """

    elements: int
    sums: Floats  # of the elements, of their squares
    arriving: Later | None
    entered: Sequence[Entered] = ()

    def samples(self) -> int:
        """How many samples graphs have counted; of several models the most."""
        return max((each.samples() for each in self.entered), default=0)

    def values(self, *, arrived: bool) -> dict[str, float]:
        """By names of records.RUN_VALUES; none where there is nothing, or where it did not arrive."""
        if not (arrived or (self.arriving is None and not self.entered)):
            return {}
        elements = self.elements
        total, square = self.sums.tolist()  # Python's numbers overflow without a warning
        if not elements:
            elements, total, square = next((each.sums() for each in self.entered if each.sums()[0]), (0, 0.0, 0.0))
        elif self.arriving is not None:
            for more, squares in self.arriving.numbers().reshape(-1, 2).tolist():
                total, square = total + more, square + squares
        return {"input_elements": float(elements), "input_sum": total, "input_square": square} if elements else {}


class Inputs:
    """Gathers a step's sums; `most` elements of a tensor are sampled."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._whose: object | None = None  # the model
        self._elements = 0
        self._sums: Floats = np.zeros(2)
        self._address = self._sums.ctypes.data
        self._elsewhere: list[Tensor] = []

    def see(self, model: object, args: Any, kwargs: Any) -> None:
        """A pass of `model` begins with these."""
        if self._whose is not None and self._whose is not model:
            return
        tensor = _first(args, kwargs)
        if tensor is None:
            return
        self._whose = model
        if fetch.is_here(tensor) and tensor.dtype in CODES:
            step = stride(tensor.shape, self._most)
            if not is_dense(tensor):  # the sample is copied, element by element
                tensor, step = tensor.detach()[places(tensor.shape, self._most)], 1
            elements = tensor.numel()
            _native.sampled(tensor.data_ptr(), CODES[tensor.dtype], elements, step, self._address)
            self._elements += -(-elements // step)
        elif fetch.is_here(tensor) and type(tensor) is Tensor:  # integers
            numbers = flat(tensor, self._most).numpy().astype(np.float64)
            self._elements += numbers.size
            self._sums += numbers.sum(), np.square(numbers).sum()
        else:
            sample = flat(tensor, self._most).double()
            self._elements += sample.numel()
            self._elsewhere.append(torch.stack((sample.sum(), sample.square().sum())))

    def take(self, by: Fetch, entered: Sequence[Entered] = ()) -> InputSums:
        """What the step has gathered, beside what graphs have; the next one begins."""
        elsewhere, self._elsewhere = self._elsewhere, []
        arriving = by.add(torch.cat([each.to(elsewhere[0].device) for each in elsewhere])) if elsewhere else None
        found = InputSums(self._elements, self._sums.copy(), arriving, entered)
        self._elements = 0
        self._sums.fill(0.0)
        return found


def _first(args: Any, kwargs: Any) -> Tensor | None:
    """The tensor that is looked at, or the part of it that lies on this rank: of floats, else of integers."""
    tensor: Tensor | None = None
    for each in tensors(args, kwargs):
        if each.is_floating_point():
            tensor = each
            break
        if tensor is None and each.dtype in INTEGERS and each.dim():
            tensor = each
    if tensor is None:
        return None
    if type(tensor) is not Tensor:
        tensor, share = local(tensor)
        if not share.known:
            return None
    readable = tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type in OBSERVED
    return tensor if readable and tensor.numel() and tensor.dim() else None
