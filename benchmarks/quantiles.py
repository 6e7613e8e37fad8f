"""How far the sampled histogram's quantiles are from those of the whole tensor.

The outputs of the residual blocks of some trainings, after a few steps. Of the sample's estimate of a quantile q, the error is in
rank: how much more or less than q of the whole tensor's magnitudes lie below it. The buckets add what the histogram itself loses: a
quantile is known to a factor of two, its bucket's width.

    python -m benchmarks.quantiles
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.observers import trained
from benchmarks.workloads import WORKLOADS, Training
from resmon.capture.discovery.dataflow import leaves
from resmon.capture.probes.sample import flat

WORKLOADS_SEEN = ("digits", "resnet", "gpt2")
QUANTILES = (0.5, 0.9, 0.99, 0.999)
STEPS = 12
SAMPLE = 1024  # the default of the setting


def outputs(training: Training) -> Iterator[Tensor]:
    """What the modules that hold residual adds put out, at every step."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        seen.extend(tensor.detach().clone() for _, tensor in list(leaves(output))[:1])

    for _ in trained(training, STEPS, keep):
        yield from seen
        seen.clear()


def errors(tensor: Tensor) -> list[float]:
    """The rank error of each quantile that the sample gives; of equal numbers, such as a ReLU's zeros, all ranks are right."""
    whole = np.sort(tensor.abs().flatten().double().numpy())
    sample = flat(tensor, SAMPLE).abs().double().numpy()
    estimates = np.quantile(sample, QUANTILES)
    below, up_to = (np.searchsorted(whole, estimates, side) / len(whole) for side in ("left", "right"))
    return (np.clip(QUANTILES, below, up_to) - QUANTILES).tolist()


def main() -> None:
    print("| training | tensors | " + " | ".join(f"{q:g}, rms and worst" for q in QUANTILES) + " |")
    print("| --- " * (2 + len(QUANTILES)) + "|")
    for name in WORKLOADS_SEEN:
        found = np.array([errors(tensor) for tensor in outputs(WORKLOADS[name].make())])
        cells = (f"{np.sqrt(np.mean(each**2)):.4f}, {np.abs(each).max():.4f}" for each in found.T)
        print(f"| {WORKLOADS[name].title} | {len(found)} | {' | '.join(cells)} |")
    expected = (f"{np.sqrt(q * (1 - q) / SAMPLE):.4f}" for q in QUANTILES)
    print(f"| independent draws, by theory | | {' | '.join(expected)} |")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
