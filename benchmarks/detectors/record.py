"""`python -m benchmarks.detectors.record RUNS`: makes the recordings from flights of the fault bench's healthy runs.

RUNS is a folder with one flight per run, each named after its run. A recording holds the logarithms of a run's numbers at some
thousand steps, rounded to a sixth of each stream's own noise: that adds less than a hundredth to its variance, and lets them be
shipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import resmon
from resmon.detectors.noise import MAD

TUNING = ("plain", "deep", "dropout", "mlp", "pre-activation", "serial", "bert", "resnet", "scaler", "plain-restarts")
SCORING = (
    "gpt2",
    "llama",
    "parallel",
    "masked",
    "depth",
    "convnext",
    "vit",
    "stochastic-depth",
    "drop-path",
    "plain-slow",
    "in-place",
)
QUANTITIES = ("skip_rms", "branch_rms", "branch_skip_ratio", "gradient_norm", "output_gradient_norm")
OF_RUN = ("loss", "gradient_norm")
BEGIN, STEPS = 2000, 2600
PARTS = 6  # of its noise, that a value is rounded to
LEAST_NOISE = 1e-3  # a stream that moves by less than 0.1 % is no noise to try detectors on
UNSTEADY = 2.0  # a run with a stream whose noise differs by so much between quarters has a change of its own, and is left out
FOLDER = Path(__file__).parent / "recordings"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detectors.record", description=__doc__)
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder with the flights of the healthy runs")
    parser.add_argument("--into", type=Path, default=FOLDER, help="where the recordings go")
    arguments = parser.parse_args(argv)
    arguments.into.mkdir(parents=True, exist_ok=True)
    for use, runs in (("tuning", TUNING), ("scoring", SCORING)):
        found = {run: dict(_streams(arguments.runs / run)) for run in runs}
        steady = {run: streams for run, streams in found.items() if all(map(_is_steady, streams.values()))}
        for run in found.keys() - steady.keys():
            print(f"{run} is left out: it has a change of its own")
        streams = {f"{run}/{name}": values for run, streams in steady.items() for name, values in streams.items()}
        write(arguments.into / f"{use}.npz", streams)
        print(f"{use}: {len(streams)} streams of {STEPS} steps from {len(steady)} runs")


def write(path: Path, streams: dict[str, NDArray[np.float64]]) -> None:
    values = np.stack(list(streams.values()), axis=1)
    quantum = (noise(values) / PARTS).astype(np.float32)
    offset = np.median(values, axis=0).astype(np.float32)
    codes = np.rint((values - offset) / quantum)
    if np.abs(codes).max() >= 2**15:
        raise ValueError(f"{path}: a stream moves by more than {2**15} of its noise, in {PARTS}ths")
    np.savez_compressed(path, codes=codes.astype(np.int16), quantum=quantum, offset=offset, names=np.array(list(streams)))


def noise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each column, around a slow trend: the robust spread of the differences of values that follow on each other."""
    moves = np.diff(values, axis=0)
    spread: NDArray[np.float64] = MAD * np.median(np.abs(moves - np.median(moves, axis=0)), axis=0) / 2**0.5
    return spread


def _streams(path: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The middle block's quantities and the run's own, those that are there throughout."""
    flight = resmon.load(path)
    blocks, steps = flight.blocks(), flight.steps()
    names = list(blocks["block"].unique())
    block = blocks[blocks["block"] == names[len(names) // 2]]
    for table, prefix, quantities in ((block, f"{names[len(names) // 2]}/", QUANTITIES), (steps, "", OF_RUN)):
        for quantity in quantities:
            values = table[quantity].to_numpy(dtype=float, na_value=np.nan)[BEGIN : BEGIN + STEPS]
            if len(values) == STEPS and _is_positive(values) and noise(np.log(values[:, None]))[0] >= LEAST_NOISE:
                yield prefix + quantity, np.log(values)


def _is_steady(values: NDArray[np.float64]) -> bool:
    quarters = noise(values.reshape(4, -1).T)
    return bool(quarters.max() < UNSTEADY * quarters.min())


def _is_positive(values: NDArray[np.float64]) -> bool:
    return bool((np.isfinite(values) & (values > 0)).all())


if __name__ == "__main__":
    main()
