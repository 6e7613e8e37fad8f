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
        self._left = 0  # how often the witnesses had been written when the newest step was over
        self._between = 0  # and were since then, until the first optimizer stepped
        self._usually = 0  # and were so before the step before it

    def _written(self) -> int:
        return sum([each._version for each in self._witnesses])

    def step_begins(self) -> None:
        """The first optimizer of a step is about to write."""
        self._usually, self._between = self._between, self._written() - self._left

    def step_over(self, *, whole: bool) -> None:
        """A step is over; in a `whole` one the optimizers have written, or were kept from it."""
        if whole and self._generation != self._gradients.generation:
            self._generation = self._gradients.generation
            parameters = self._gradients.everything.parameters
            self._versions = {id(each): each._version for each in parameters}
            self._witnesses = parameters[:: max(1, len(parameters) // WITNESSES)][:WITNESSES]
            self._between = 0
        self._left = self._written()

    def are_the_optimizers(self, parameter: Tensor, model: nn.Module) -> bool:
        """Whether a parameter was written as often as most of its model's that have gradients, and none of them now out of turn."""
        if self._between > self._usually:
            return False
        written = Counter(
            each._version - first
            for each in model.parameters()
            if each.grad is not None and (first := self._versions.get(id(each))) is not None
        )
        first = self._versions.get(id(parameter))
        return first is not None and bool(written) and written.most_common(1)[0][0] == parameter._version - first
