"""Flights to export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resmon.flight.layout import claim
from resmon.flight.writer import FlightWriter
from resmon.records import RunEnd, ScalarRecord
from tests import synthetic

STEPS = 24

Recorded = Callable[..., Path]


class Rank:
    """One rank of a run that is being recorded."""

    def __init__(self, directory: Path, run: str, rank: int = 0, world: int = 1, sites: int = 3, **about: object) -> None:
        folder, attempt = claim(directory, run, "launch", rank)
        info = synthetic.info(run=run, rank=rank, world_size=world, local_world_size=world, attempt=attempt, **about)
        self.attempt = folder.parent
        self.writer = FlightWriter(folder, info, 1 << 30)
        self.training = synthetic.Training(synthetic.sites(sites), seed=rank, groups=("decay", "rest"))
        self.writer.sites(self.training.sites, self.training.groups)

    def step(self, **changes: object) -> int:
        record = self.training.step(**changes)  # type: ignore[arg-type]
        self.writer.step(record)
        return record.step

    def log(self, step: int, **values: float) -> None:
        self.writer.scalars(ScalarRecord(step, self.training.now, values))

    def end(self, outcome: str = "finished") -> None:
        self.writer.end(RunEnd(outcome, self.training.now, self.training.steps - 1))  # type: ignore[arg-type]


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    """Two ranks, every step; NaN and infinity among the values, one that is absent, a loss at every second step."""
    for number in range(2):
        rank = Rank(tmp_path / "runs", "digits", number, 2)
        for step in range(STEPS):
            odd = step == 7
            values = {("branch_square", 0): np.nan, ("skip_square", 1): np.inf} if odd else None
            rank.step(values=values, absent=[("gradient_square", 2)] if odd else [], forward=[0] if odd else [])
            if step % 2 == 0:
                rank.log(step, loss=float("inf") if step == 8 else 1.0 / (step + 1), accuracy=float("nan") if step == 4 else 0.5)
        rank.end()
    return tmp_path / "runs" / "digits" / "attempt-0001"
