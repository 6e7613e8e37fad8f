"""Making flights, and comparing records with what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from resmon.flight.layout import claim
from resmon.flight.reader import Follower, Item
from resmon.flight.writer import FlightWriter
from resmon.records import RunInfo, ScalarRecord, StepRecord
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
    """Every number to the last bit, NaN equal to NaN; what is absent has no value to compare."""
    for name in ("step", "time", "complete", "steps_total", "errors_total"):
        assert getattr(read, name) == getattr(written, name), name
    np.testing.assert_equal(read.duration_total, written.duration_total)
    for name in ("run_present", "blocks_present", "counts", "duration_buckets", "nonfinite_steps", "magnitude_buckets", "magnitude_sum"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), err_msg=name, strict=True)
    # As bytes, so that the sign of a zero counts too.
    assert read.run[read.run_present].tobytes() == written.run[written.run_present].tobytes()
    assert read.blocks[read.blocks_present].tobytes() == written.blocks[written.blocks_present].tobytes()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
