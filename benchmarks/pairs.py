"""Measures one workload with one observer, in a process of its own: two equal trainings take turns, one bare, one watched.

Both start from the same weights, get the same batch and the same random state at every pair, and the order within a pair
alternates. `python -m benchmarks.pairs` is started by `benchmarks.run`; it says on stdout how many pairs are done and writes the
measurement as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.measurement import Measurement
from benchmarks.observers import OBSERVERS, Observer, sites
from benchmarks.processes import background_seconds
from benchmarks.workloads import WORKLOADS, Training

NEWS = 1.0  # seconds between two lines on stdout: who reads them needs a core for a moment
FEWEST = 6  # pairs that are measured also where the time is up


def measure(
    make: Callable[[], Training],
    watch: Callable[[Training], Observer],
    *,
    workload: str,
    observer: str,
    pairs: int,
    warm_up: int,
    seconds: float = math.inf,
    progress: Callable[[int], None] = lambda _: None,
) -> Measurement:
    """Measure `pairs` pairs after `warm_up` others, fewer where that takes longer than `seconds`.

    `progress` is told how many of all are done.
    """
    bare, watched = make(), make()
    found = len(sites(bare))
    watcher = watch(watched)
    times: tuple[list[float], list[float]] = ([], [])
    background = None
    end = perf_counter() + seconds
    for i in range(warm_up + pairs):
        done = i - warm_up
        if done >= FEWEST and done % 2 == 0 and perf_counter() > end:  # each order as often as the other
            break
        if i == warm_up:
            background = background_seconds(watcher.processes())
        random = torch.get_rng_state()
        batch = i % len(bare.batches)
        for turn in (0, 1) if i % 2 else (1, 0):
            torch.set_rng_state(random)
            duration = _step(watched, batch, watcher.log) if turn else _step(bare, batch)
            if i >= warm_up:
                times[turn].append(duration)
        progress(i + 1)
    after = background_seconds(watcher.processes())
    watcher.close()
    return Measurement(
        workload,
        observer,
        found,
        bare=times[0],
        watched=times[1],
        own=watcher.own_seconds()[-len(times[1]) :],
        background=None if background is None or after is None else after - background,
        same_weights=_same_weights(bare, watched),
    )


def _step(training: Training, batch: int, log: Callable[[Tensor], None] | None = None) -> float:
    arguments, labels = training.batches[batch]
    started = perf_counter()
    training.optimizer.zero_grad()
    with training.forward():
        loss = training.loss(training.model(**arguments), labels)
    loss.backward()
    training.optimizer.step()
    if log is not None:
        log(loss)
    return perf_counter() - started


def _same_weights(one: Training, other: Training) -> bool:
    pairs = zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True)
    return all(name == name2 and torch.equal(a, b) for (name, a), (name2, b) in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one workload with one observer; `python -m benchmarks.run` starts it.")
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--observer", choices=OBSERVERS, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf, help="after so long no further pairs than are needed")
    parser.add_argument("--result", type=Path, required=True, help="file that the measurement is written to")
    arguments = parser.parse_args()
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= NEWS:
            told = time.monotonic()
            print(f"done {done}", flush=True)

    measurement = measure(
        WORKLOADS[arguments.workload].make,
        OBSERVERS[arguments.observer],
        workload=arguments.workload,
        observer=arguments.observer,
        pairs=arguments.pairs,
        warm_up=arguments.warm_up,
        seconds=arguments.seconds,
        progress=tell,
    )
    arguments.result.write_text(json.dumps(asdict(measurement)))


if __name__ == "__main__":
    main()
