"""What a replay costs: reading a flight of 100 blocks, and every detector over it.

    python -m benchmarks.replay

A made-up healthy training is written once. Reading it is clocked, then reading it with a bank in which nothing is on, with one
detector on, and with all that are on by default; of each the processor's time of the fastest of some rounds, the kinds taking
turns. What a detector adds is its own time and what only it asks of the windows; the sum is more than all together, which share
the windows' statistics. The target is a million steps of 100 blocks in five minutes, 300 us a step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from resmon.detectors import DETECTORS, Bank
from resmon.flight.layout import claim
from resmon.flight.reader import Follower
from resmon.flight.writer import FlightWriter
from resmon.records import Columns, RunEnd, StepRecord
from tests import synthetic
from tests.detectors.course import course
from tests.flight.flights import record

TARGET = 300e-6  # seconds a step
AT_ONCE = 200  # steps, as a replay reads 100 blocks
MEASURED = {"position_ratio": 0.3, "product": 0.1, "peak": 3.0, "fill": 0.01, "dead": 0.0, "activation_bytes": 1e6}


def written(folder: Path, steps: int, sites: int) -> Path:
    """A flight, in whole."""
    rank_folder, attempt = claim(folder, "bench", "launch", 0)
    writer = FlightWriter(rank_folder, synthetic.info(run="bench", attempt=attempt), 64 << 30)
    for first in range(0, steps, 250):  # a part at a time, as records take more memory than rows
        loss = [2.0 / (1 + 0.001 * step) for step in range(first, first + 250)]
        record(writer, course(250, sites, first=first, seed=first, scalars={"loss": loss}, **MEASURED))
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
    options = parser.parse_args()
    found = measured(options.steps, options.sites, options.rounds)
    print(f"| of {options.sites} blocks | µs a step | times reading |\n| --- | --- | --- |")
    for name, seconds in found.items():
        print(f"| {name} | {seconds * 1e6:.1f} | {seconds / found['reading']:.2f} |")
    verdict = "met" if found["everything"] <= TARGET else "missed"
    print(f"\nA million steps: {found['everything'] * 1e6:.0f} s; the target is {TARGET * 1e6:.0f} s, {verdict}.")


if __name__ == "__main__":
    main()
