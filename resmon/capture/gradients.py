"""The gradients of a model's parameters, read once a step from `.grad`, where they are whole and summed over micro-batches.

Sums of squares are this rank's share of the truth (DESIGN.md, law 3); in a single process that is the truth itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from resmon.capture.sums import square_sums
from resmon.records import Bools, Floats


class Gradients:
    """Reads the squared gradient norms of `parameters`, (name, parameter) pairs in which shared ones stand once."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        pairs = list(parameters)
        names = [name for name, _ in pairs]
        self._parameters = [parameter for _, parameter in pairs]
        self._index = {name: i for i, name in enumerate(names)}
        self._squares: Floats = np.zeros(len(names) + 1)
        self._present: Bools = np.zeros(len(names) + 1, np.bool_)
        self._members: np.ndarray[tuple[int], np.dtype[np.intp]] = np.zeros(0, np.intp)
        self._starts: list[int] = []

    def group(self, groups: Sequence[Sequence[str]]) -> None:
        """Fix which parameters belong to which site, by name."""
        nobody = len(self._parameters)  # its square is 0 and absent, so that every group has a member
        members: list[int] = []
        self._starts = []
        for names in groups:
            self._starts.append(len(members))
            members += [self._index[name] for name in names if name in self._index]
            members.append(nobody)
        self._members = np.array(members, np.intp)

    def read(self) -> None:
        """Take every gradient's sum of squares now."""
        self._present[:] = False
        self._squares[:] = 0
        gradients: list[Tensor] = []
        for i, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if gradient is None or gradient.device.type != "cpu":  # reading elsewhere would wait for the device
                continue
            self._present[i] = True
            gradients.append(gradient if gradient.layout is torch.strided else gradient.coalesce().values())
        self._squares[np.flatnonzero(self._present)] = square_sums(gradients)

    def clear(self) -> None:
        self._present[:] = False

    def total(self) -> tuple[float, bool]:
        """The squared norm of all gradients, and whether there is one."""
        present = bool(self._present.any())
        return (float(self._squares.sum()) if present else 0.0), present

    def by_group(self) -> tuple[Floats, Bools]:
        """The squared norm of each group's gradients, and which groups have one."""
        if not self._starts:
            return np.zeros(0), np.zeros(0, np.bool_)
        squares = np.add.reduceat(self._squares[self._members], self._starts)
        present = np.logical_or.reduceat(self._present[self._members], self._starts)
        return squares, present
