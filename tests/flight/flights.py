"""Making flights, and comparing records with what was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from resmon.flight.layout import LOCK, claim
from resmon.flight.reader import Follower, Item
from resmon.flight.writer import FlightWriter
from resmon.records import Columns, ScalarRecord, StepRecord
from tests import synthetic

BUDGET = 64 << 20


def begin(
    directory: Path, run: str = "digits", launch: str = "launch", rank: int = 0, budget: int = BUDGET, **info: Any
) -> tuple[Path, FlightWriter]:
    """A claimed folder and its writer."""
    folder, attempt = claim(directory, run, launch, rank)
    return folder, FlightWriter(folder, synthetic.info(run=run, launch=launch, rank=rank, attempt=attempt, **info), budget)


def write(writer: FlightWriter, training: synthetic.Training, steps: int) -> list[StepRecord]:
    """That many steps, with a loss each."""
    writer.sites(training.sites)
    records = []
    for _ in range(steps):
        record = training.step()
        writer.step(record)
        writer.scalars(ScalarRecord(record.step, record.time, {"loss": 1.0 / (1 + record.step)}))
        records.append(record)
    return records


def record(writer: FlightWriter, items: Iterable[Item]) -> None:
    """Write what is given as it comes."""
    for item in items:
        if isinstance(item, Columns):
            writer.sites(item.sites, item.groups)
        elif isinstance(item, StepRecord):
            writer.step(item)
        else:
            writer.scalars(item)


def read(folder: Path) -> list[Item]:
    """Everything that stands in a rank's folder."""
    follower = Follower(folder)
    items: list[Item] = []
    while new := follower.poll():
        items += new
    follower.close()
    return items


def steps_of(items: list[Item]) -> list[StepRecord]:
    return [item for item in items if isinstance(item, StepRecord)]


def assert_equal(read: StepRecord, written: StepRecord) -> None:
    """Every number to the last bit, the sign of a zero too; what is absent has no value to compare."""
    for name in StepRecord.__slots__:
        was, got = getattr(written, name), getattr(read, name)
        if isinstance(was, np.ndarray):
            assert (got.shape, got.dtype) == (was.shape, was.dtype), name
            if name in ("run", "groups", "blocks"):
                there = getattr(written, f"{name}_present")
                was, got = was[there], got[there]
            assert got.tobytes() == was.tobytes(), name
        else:
            assert got == was or (got != got and was != was), name


def files(folder: Path) -> dict[str, bytes]:
    """What stands in a folder; but for the lock, which its owner would lose by opening it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}
