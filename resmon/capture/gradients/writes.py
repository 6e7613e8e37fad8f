"""How often each parameter was written: whoever but the optimizer writes one, writes it once more than the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from resmon.capture.gradients.reader import Gradients

WITNESSES = 4  # parameters that show whether all of them were written between two steps


class Writes:
    """Counted from the first whole step with the parameters that there are now."""

    def __init__(self, gradients: Gradients) -> None:
        self._gradients = gradients
        self._generation = 0  # of the gradients' selections, for which the versions were taken
        self._versions: dict[int, int] = {}  # of the parameters, by their ids, as they were first
        self._witnesses: Sequence[Tensor] = ()
        self._left: list[int] = []  # the witnesses' versions when the newest step was over
        self._between: list[int] = []  # how often they were written between it and the one before
        self._usually: list[int] = []  # and how often between those before

    def step_begins(self) -> None:
        """The first optimizer of a step is about to write."""
        self._usually = self._between
        self._between = [each._version - left for each, left in zip(self._witnesses, self._left, strict=True)]

    def step_over(self, *, whole: bool) -> None:
        """A step is over; in a `whole` one the optimizers have written, or were kept from it."""
        if whole and self._generation != self._gradients.generation:
            self._generation = self._gradients.generation
            parameters = self._gradients.everything.parameters
            self._versions = {id(each): each._version for each in parameters}
            self._witnesses = parameters[:: max(1, len(parameters) // WITNESSES)][:WITNESSES]
            self._between = [0] * len(self._witnesses)
        self._left = [each._version for each in self._witnesses]

    def are_the_optimizers(self, parameter: Tensor, model: nn.Module) -> bool:
        """Whether a parameter was written as often as most of its model's that have gradients, and none of them now out of turn."""
        if any(now > before for now, before in zip(self._between, self._usually, strict=True)):
            return False
        written = Counter(
            each._version - first
            for each in model.parameters()
            if each.grad is not None and (first := self._versions.get(id(each))) is not None
        )
        first = self._versions.get(id(parameter))
        return first is not None and bool(written) and written.most_common(1)[0][0] == parameter._version - first
