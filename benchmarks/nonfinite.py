"""What it costs to be ready for a step that is not finite, until there is one.

    python -m benchmarks.nonfinite

Of each model the calls of `resmon.capture.forensics.nonfinite.NonFinite` in a step are clocked: keeping references and random
states when a pass begins and ends, and the gradient that arrives at its output, asking whether the gradients just read are finite,
and letting go. What they read was read anyhow, and what the clock takes itself, seen by clocking a call that does nothing before
each of them, is taken off. Beside the median of the steps stands the target: 0.1 ms, and 0.1 us for each parameter tensor.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from resmon.capture.forensics.nonfinite import NonFinite
from resmon.capture.loop.session import Session

FIXED, EACH = 100e-6, 0.1e-6  # seconds: of a step, and of a parameter tensor
CLOCKED = ("pass_begun", "pass_ended", "look", "step_over")
BATCH = 128
TARGETS = 1500  # float32 values: a size that nobody has let go of, for which the allocator does what it had put off
WARM = 10  # steps before the first that counts
WIDTH = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.fc(self.norm(x))
        return y


class Nobody:
    """A sink that keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Clock:
    """Adds up the seconds in the methods of one NonFinite, and in the hook on the output, which calls its references."""

    def __init__(self, clocked: NonFinite) -> None:
        self.seconds = 0.0
        for name in CLOCKED:
            setattr(clocked, name, self._timed(getattr(clocked, name)))
        references = clocked._references
        references.arrived = self._timed(references.arrived)  # type: ignore[method-assign]

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        nothing, something = self._added(lambda *_, **__: None, -1), self._added(method, 1)

        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            nothing(*args, **kwargs)
            return something(*args, **kwargs)

        return timed

    def _added(self, method: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += sign * (perf_counter() - started)

        return timed


def seconds_a_step(blocks: int, steps: int) -> tuple[int, list[float]]:
    """How many parameter tensors a stack of so many blocks has, and what each step cost."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(blocks)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    session = Session({"": model}, optimizer)
    session.attach(Nobody())  # type: ignore[arg-type]
    clock = Clock(session._nonfinite)
    found = []
    for step in range(WARM + steps):
        clock.seconds = 0.0
        optimizer.zero_grad()
        _targets = torch.empty(TARGETS)  # whoever asks for memory first pays, in any loop: let it not be what is clocked
        model(torch.randn(BATCH, WIDTH)).square().mean().backward()
        optimizer.step()
        if step >= WARM:
            found.append(clock.seconds)
    session.detach()
    return sum(1 for _ in model.parameters()), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    print("parameter tensors   median us a step   quartiles          target us")
    for blocks in (2, 25, 100, 400):
        tensors, found = seconds_a_step(blocks, steps)
        low, middle, high = (1e6 * each for each in statistics.quantiles(found, n=4))
        target = 1e6 * (FIXED + EACH * tensors)
        verdict = "met" if middle <= target else "missed"
        print(f"{tensors:17,}   {middle:16.1f}   {low:7.1f} to {high:7.1f}   {target:9.1f} {verdict}")


if __name__ == "__main__":
    main()
