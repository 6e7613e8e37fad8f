"""What each further read of a tensor costs, which is why it is sampled, or taken only where something drops samples.

Of the residual adds of some trainings, while the step goes on around them: the time of each read per site, and what it comes to per
site and step as often as resmon does it. The sums that every step takes of both operands are the measure to hold them against.

    python -m benchmarks.reads
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.observers import trained
from benchmarks.workloads import WORKLOADS, Training
from resmon.capture.discovery.dataflow import leaves
from resmon.capture.probes.keeping import kept_square
from resmon.capture.probes.positions import EVERY, Units, channel_axis, median_ratio
from resmon.capture.probes.sample import flat
from resmon.capture.probes.sums import square_sum

TRAININGS = ("digits", "resnet", "gpt2")
STEPS = 12
KEPT = np.zeros(1)
SAMPLE = 1024  # the default of the setting


def reads(skip: Tensor, branch: Tensor, axis: int, units: Units) -> dict[tuple[str, int], Callable[[], Any]]:
    """What is read, and at one step in how many."""
    return {
        ("sums of both operands", 1): lambda: (square_sum(skip), square_sum(branch)),
        ("histogram's sample", 1): lambda: flat(branch, SAMPLE),
        ("median over positions", EVERY): lambda: median_ratio(skip, branch, axis, (1.0, 1.0)),
        ("dead units", EVERY): lambda: units.dead(branch, axis),
        ("kept samples, where some are dropped", 1): lambda: kept_square(skip, branch, 1.0, KEPT.ctypes.data),
    }


def measure(training: Training) -> dict[tuple[str, int], float]:
    """Median seconds of each read, of one residual add in a step's forward pass."""
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    units: dict[int, Units] = defaultdict(Units)

    def look(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        (_, skip), (_, branch) = next(leaves(arguments)), next(leaves(output))
        if skip.shape != branch.shape:
            return
        axis = channel_axis(branch.shape, ())
        for what, read in reads(skip.detach(), branch.detach(), axis, units[id(module)]).items():
            started = perf_counter()
            read()
            seconds[what].append(perf_counter() - started)

    for _ in trained(training, STEPS, look):
        pass
    return {what: median(found) for what, found in seconds.items()}


def main() -> None:
    found = {name: measure(WORKLOADS[name].make()) for name in TRAININGS}
    print("| read | one step in | " + " | ".join(WORKLOADS[name].title for name in TRAININGS) + " |")
    print("| --- | --- " + "| --- " * len(TRAININGS) + "|")
    for what, every in next(iter(found.values())):
        cells = (f"{found[name][what, every] * 1e6:.0f} µs" for name in TRAININGS)
        print(f"| {what} | {every} | {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
