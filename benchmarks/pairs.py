"""Measures one workload with one observer, in a process of its own: two equal trainings take turns, one bare, one watched.

Both start from the same weights, get the same batch and the same random state at every pair, and the order within a pair
alternates. On a GPU a step begins and ends where the device has nothing left to do, so that its time is the device's; after the
pairs both train on without such pauses, and the host's waits for the device are counted.

`python -m benchmarks.pairs` is started by `benchmarks.run`; it says on stdout how many pairs are done and writes the measurement as
JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from benchmarks import device, waits
from benchmarks.measurement import Measurement
from benchmarks.observers import OBSERVERS, Observer, sites
from benchmarks.processes import background_seconds
from benchmarks.workloads import WORKLOADS, Training

NEWS = 1.0  # seconds between two lines on stdout: who reads them needs a core for a moment
FEWEST = 6  # pairs that are measured also where the time is up
STRETCH = 5  # steps in which waits are counted
BARE, WATCHED = 0, 1

Log = Callable[[Tensor], None]  # told the loss within each step


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
    on: torch.device = device.CPU,
) -> Measurement:
    """Measure `pairs` pairs after `warm_up` others, fewer where that takes longer than `seconds`.

    `progress` is told how many of all are done.
    """
    device.prepare(on)
    memory = device.Memory(torch.cuda if on.type == "cuda" else None)
    with on, memory.of(BARE):
        bare = make()
    with on, memory.of(WATCHED):
        watched = make()
    found = len(sites(bare))
    with memory.of(WATCHED):
        watcher = watch(watched)
    twins = (bare, None), (watched, watcher.log)
    times: tuple[list[float], list[float]] = ([], [])
    background, end = None, math.inf
    for i in range(warm_up + pairs):
        done = i - warm_up
        if done >= FEWEST and done % 2 == 0 and perf_counter() > end:  # each order as often as the other
            break
        if i == warm_up:
            background = background_seconds(watcher.processes())
            end = perf_counter() + seconds
            memory.forget_peaks()
        random = device.random_state(on)
        for turn in (BARE, WATCHED) if i % 2 else (WATCHED, BARE):
            device.set_random_state(on, random)
            with memory.of(turn):
                duration = _timed(on, i, *twins[turn])
            if i >= warm_up:
                times[turn].append(duration)
        progress(i + 1)
    after = background_seconds(watcher.processes())
    same_weights = _same_weights(bare, watched)
    counts, places = None, []
    if on.type == "cuda":
        stretches = [partial(_stretch, *twin) for twin in twins]
        counts = [waits.count(stretch, on) for stretch in stretches]
        bare_places, watched_places = map(waits.places, stretches)
        places = [place for place in watched_places if place not in bare_places]
    watcher.close()
    return Measurement(
        workload,
        observer,
        found,
        bare=times[BARE],
        watched=times[WATCHED],
        own=watcher.own_seconds()[warm_up:][: len(times[WATCHED])],
        background=None if background is None or after is None else after - background,
        same_weights=same_weights,
        memory=memory.peaks,
        waits=counts,
        places=places,
    )


def _timed(on: torch.device, index: int, training: Training, log: Log | None) -> float:
    device.wait(on)
    started = perf_counter()
    _step(index, training, log)
    device.wait(on)
    return perf_counter() - started


def _stretch(training: Training, log: Log | None) -> None:
    """Some steps of a training that is under way, with nothing in between."""
    for index in range(STRETCH):
        _step(index, training, log)


def _step(index: int, training: Training, log: Log | None) -> None:
    arguments, labels = training.batches[index % len(training.batches)]
    training.optimizer.zero_grad()
    with training.forward():
        loss = training.loss(training.model(**arguments), labels)
    loss.backward()
    training.optimizer.step()
    if log is not None:
        log(loss)


def _same_weights(one: Training, other: Training) -> bool:
    pairs = zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True)
    return all(name == name2 and torch.equal(a, b) for (name, a), (name2, b) in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one workload with one observer; `python -m benchmarks.run` starts it.")
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--observer", choices=OBSERVERS, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
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
        on=arguments.device,
    )
    arguments.result.write_text(json.dumps(asdict(measurement)))


if __name__ == "__main__":
    main()
