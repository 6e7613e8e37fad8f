"""What a replay costs: reading a flight of 100 blocks, and every detector over it.

    python -m benchmarks.replay
    python -m benchmarks.replay --whole 1000000

A made-up healthy training is written once. Reading it is clocked, then reading it with a bank in which nothing is on, with one
detector on, and with all that are on by default; of each the processor's time of the fastest of some rounds, the kinds taking
turns. What a detector adds is its own time and what only it asks of the windows; the sum is more than all together, which share
the windows' statistics. The target is a million steps of 100 blocks in five minutes, 300 us a step.

With --whole so many steps are read in one go by everything that is on by default, with the state that comes of so long a run. They
would take 62 kB each, so they are written as they are read, within a budget that thins what has been read: only the reading and the
detectors are clocked, in seconds of the processor, and the memory that the process takes on the way is told.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from resmon.detectors import DETECTORS, Bank
from resmon.flight.layout import claim
from resmon.flight.reader import Follower
from resmon.flight.writer import FlightWriter
from resmon.records import Columns, RunEnd, StepRecord
from tests import synthetic
from tests.detectors.course import course
from tests.flight.flights import record

TARGET = 300e-6  # seconds a step
TOGETHER = 250  # steps that are made and written in one go
AT_ONCE = 200  # steps, as a replay reads 100 blocks
MEASURED = {"position_ratio": 0.3, "product": 0.1, "peak": 3.0, "fill": 0.01, "dead": 0.0, "activation_bytes": 1e6}


def written(folder: Path, steps: int, sites: int) -> Path:
    """A flight, in whole."""
    rank_folder, attempt = claim(folder, "bench", "launch", 0)
    writer = FlightWriter(rank_folder, synthetic.info(run="bench", attempt=attempt), 64 << 30)
    for first in range(0, steps, TOGETHER):  # a part at a time, as records take more memory than rows
        loss = [2.0 / (1 + 0.001 * step) for step in range(first, first + TOGETHER)]
        record(writer, course(TOGETHER, sites, first=first, seed=first, scalars={"loss": loss}, **MEASURED))
    writer.end(RunEnd("finished", 5.0, steps - 1))
    return rank_folder


def read(folder: Path, values: Mapping[str, Any] | None) -> None:
    """The whole flight, with a bank under these settings or without one."""
    follower, columns = Follower(folder), Columns()
    bank = None if values is None else Bank(values)
    while items := follower.poll(AT_ONCE):
        for item in items if bank is not None else ():
            if isinstance(item, Columns):
                columns = item
            elif isinstance(item, StepRecord):
                bank.step(item, columns.sites)  # type: ignore[union-attr]
            else:
                bank.scalars(item)  # type: ignore[union-attr]
    follower.close()


def at_length(folder: Path, steps: int, sites: int, note: Callable[[int, float], None]) -> float:
    """Seconds of the processor that a replay of so many steps takes; `note` is told of every hundredth part."""
    rank_folder, attempt = claim(folder, "bench", "launch", 0)
    writer = FlightWriter(rank_folder, synthetic.info(run="bench", attempt=attempt), 4 << 30)
    follower: Follower | None = None
    columns, bank, seconds = Columns(), Bank(), 0.0
    for first in range(0, steps, TOGETHER):
        loss = [2.0 / (1 + 0.001 * step) for step in range(first, first + TOGETHER)]
        record(writer, course(TOGETHER, sites, first=first, seed=first, scalars={"loss": loss}, **MEASURED))
        started = time.process_time()
        follower = follower or Follower(rank_folder)
        while items := follower.poll(AT_ONCE):
            for item in items:
                if isinstance(item, Columns):
                    columns = item
                elif isinstance(item, StepRecord):
                    bank.step(item, columns.sites)
                else:
                    bank.scalars(item)
        seconds += time.process_time() - started
        if (first // TOGETHER) % max(1, steps // TOGETHER // 100) == 0:
            note(first + TOGETHER, seconds)
    writer.end(RunEnd("finished", 5.0, steps - 1))
    return seconds


def fastest(kinds: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of the processor, of each kind; they take turns."""
    found: dict[str, float] = {}
    for _ in range(rounds):
        for name, kind in kinds.items():
            started = time.process_time()
            kind()
            found[name] = min(found.get(name, float("inf")), time.process_time() - started)
    return found


def measured(steps: int, sites: int, rounds: int) -> dict[str, float]:
    """Seconds a step: of reading, of an empty bank, of what each detector adds, and of everything."""
    off = {kind.name: {"enabled": False} for kind in DETECTORS}
    with tempfile.TemporaryDirectory() as folder:
        flight = written(Path(folder), steps, sites)
        one = {kind.name: off | {kind.name: {"enabled": True}} for kind in DETECTORS}
        kinds = {"reading": None, "empty bank": off, **one, "everything": {}}
        found = fastest({name: partial(read, flight, values) for name, values in kinds.items()}, rounds)
    empty = found["empty bank"]
    found |= {kind.name: max(0.0, found[kind.name] - empty) for kind in DETECTORS}
    found["empty bank"] = max(0.0, empty - found["reading"])
    return {name: seconds / steps for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", type=int, metavar="STEPS", help="replay so many in one go instead")
    options = parser.parse_args()
    if options.whole:
        _whole(options.whole, options.sites)
        return
    found = measured(options.steps, options.sites, options.rounds)
    print(f"| of {options.sites} blocks | µs a step | times reading |\n| --- | --- | --- |")
    for name, seconds in found.items():
        print(f"| {name} | {seconds * 1e6:.1f} | {seconds / found['reading']:.2f} |")
    verdict = "met" if found["everything"] <= TARGET else "missed"
    print(f"\nA million steps: {found['everything'] * 1e6:.0f} s; the target is {TARGET * 1e6:.0f} s, {verdict}.")


def _whole(steps: int, sites: int) -> None:
    process = psutil.Process()
    seen: list[float] = []

    def note(done: int, seconds: float) -> None:
        seen.append(process.memory_info().rss / 2**20)
        print(f"{done:,} steps, {seconds:.1f} s, {seen[-1]:.0f} MiB", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        seconds = at_length(Path(folder), steps, sites, note)
    verdict = "met" if seconds / steps <= TARGET else "missed"
    print(f"\n{steps:,} steps of {sites} blocks: {seconds:.0f} s, {seconds / steps * 1e6:.0f} µs a step, {verdict}.")
    print(
        f"Memory after a tenth of them {seen[len(seen) // 10]:.0f} MiB, in the end {seen[-1]:.0f} MiB, at most {max(seen):.0f} MiB."
    )


if __name__ == "__main__":
    main()
