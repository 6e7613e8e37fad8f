"""What a compiled model is given, where its pass begins inside of a graph: samples, and the sums of inputs.py.

Written by torch operations in the graph, on numbers like a cell's (cells.py), and on the device of the model's first blocks. Only
tensors that are themselves arguments are looked at: to search what is nested would be Python that a graph may break at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resmon.capture.host import compiler
from resmon.capture.host.fetch import Fetch, Later
from resmon.capture.probes.cells import alias, drawn_places, sampled
from resmon.capture.probes.inputs import INTEGERS

# What is counted: elements of the sample, their sum, the sum of their squares; and samples.
ELEMENTS, SUM, SQUARE, SAMPLES = range(4)


@dataclass(frozen=True, slots=True)
class Entered:
    """What a step's passes were given, once it has arrived."""

    numbers: Later

    def sums(self) -> tuple[int, float, float]:
        """Elements that were summed, their sum and that of their squares."""
        numbers = self.numbers.numbers()
        return int(numbers[ELEMENTS]), float(numbers[SUM]), float(numbers[SQUARE])

    def samples(self) -> int:
        return int(self.numbers.numbers()[SAMPLES])


class Entrance:
    """Of one model; at most `sample` elements of an input are summed."""

    def __init__(self, device: torch.device, sample: int) -> None:
        self.device = device
        self._places = drawn_places(device, sample)
        self._numbers = torch.zeros(4, dtype=torch.float64, device=device)
        self._parts = [alias(number) for number in self._numbers.split(1)]
        self._is_used = False  # by some graph

    def see(self, args: Any, kwargs: Any) -> None:
        """In a graph: a pass begins with these."""
        given = [each for each in (*args, *kwargs.values()) if type(each) is Tensor and each.dim() and each.device == self.device]
        given = [each for each in given if each.layout is torch.strided]
        if not given:
            return
        self._is_used = True
        self._parts[SAMPLES].add_(given[0].shape[0])
        looked_at = [each for each in given if each.is_floating_point()] or [each for each in given if each.dtype in INTEGERS]
        if not looked_at:
            return
        seen = looked_at[0].detach()
        elements, most = seen.numel(), len(self._places)
        if compiler.is_sure(elements <= most):
            wide = seen.double()
            self._parts[ELEMENTS].add_(elements)
        else:
            there = torch.arange(most, device=self.device) < elements
            wide = torch.where(there, sampled(seen, self._places).double(), 0.0)
            self._parts[ELEMENTS].add_(there.sum())
        self._parts[SUM].add_(wide.sum())
        self._parts[SQUARE].add_(wide.square().sum())

    def take(self, by: Fetch) -> Entered | None:
        """What the step has counted; the next one begins. None where no graph counts."""
        if not self._is_used:
            return None
        counted = Entered(by.add(self._numbers.clone()))
        self._numbers.zero_()
        return counted
