"""How often each parameter was written: whoever but the optimizer writes one, writes it once more than the others."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from resmon.capture.gradients.reader import Gradients


class Writes:
    """Counted from the first whole step with the parameters that there are now."""

    def __init__(self, gradients: Gradients) -> None:
        self._gradients = gradients
        self._generation = 0  # of the gradients' selections, for which the versions were taken
        self._versions: dict[int, int] = {}  # of the parameters, by their ids, as they were first

    def step_over(self) -> None:
        if self._generation != self._gradients.generation:
            self._generation = self._gradients.generation
            self._versions = {id(each): each._version for each in self._gradients.everything.parameters}

    def are_the_optimizers(self, parameter: Tensor, model: nn.Module) -> bool:
        """Whether a parameter was written as often as most of its model's that have gradients."""
        written = Counter(
            each._version - first
            for each in model.parameters()
            if each.grad is not None and (first := self._versions.get(id(each))) is not None
        )
        first = self._versions.get(id(parameter))
        return first is not None and bool(written) and written.most_common(1)[0][0] == parameter._version - first
