"""A run as it is compared: its series, step by step, read from its flight.

`read_run` takes what is small, the run's own series; `read_blocks`, once the steps to compare are known, what the blocks say at
them. Only rows of whole steps count. A series has the steps at which its value is there; one that is there and not finite is part
of it and is counted by whoever compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from resmon.flight.frames import Flight, load
from resmon.records import Bools, Floats, Ints, ResidualSite
from resmon.statistics import STATISTICS

if TYPE_CHECKING:
    import pandas as pd


class Series(NamedTuple):
    """Values by step, the steps rising."""

    step: Ints
    values: Floats

    def at(self, steps: Ints) -> Series:
        """What there is of it at these steps."""
        keep = np.isin(self.step, steps)
        return Series(self.step[keep], self.values[keep])


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a run, without its blocks."""

    name: str
    folder: Path
    attempt: int
    attempts: int
    outcome: str
    host: str
    seed: int | None
    damage: tuple[str, ...]  # one reason for each place that could not be read
    steps: Ints  # the whole steps that are there in full
    columns: Mapping[str, Series]  # what resmon measured
    scores: Mapping[str, Series]  # what was logged
    sites: tuple[ResidualSite, ...]  # `model` is the model's label, and empty where there is but one

    @property
    def gaps(self) -> int:
        """Steps between the first and the last that are not there in full."""
        return int(self.steps[-1] - self.steps[0]) + 1 - len(self.steps) if len(self.steps) else 0

    def same_training(self, other: Run) -> bool:
        """Whether scores and gradients equal another run's to the last bit, and so come from the same seed."""
        mine, theirs = self._fingerprint(), other._fingerprint()
        # Constants, and very few numbers, may well be the same in two trainings.
        varied = any(len(np.unique(series.values)) > 2 for series in mine.values())
        return varied and mine.keys() == theirs.keys() and all(_equal(mine[name], theirs[name]) for name in mine)

    def _fingerprint(self) -> dict[str, Series]:
        every = {**self.scores, "gradient norm of resmon": self.columns["gradient_norm"]}
        return {name: series for name, series in every.items() if len(series.step)}


def _equal(one: Series, other: Series) -> bool:
    return np.array_equal(one.step, other.step) and np.array_equal(one.values, other.values, equal_nan=True)


def read_run(folder: Path) -> Run:
    """Raises FlightError where there is nothing to read."""
    return run_of(load(folder))


def run_of(flight: Flight) -> Run:
    """The same of a flight that is loaded already."""
    frame = flight.steps()
    info = flight.info
    step = frame["step"].to_numpy(np.int64)
    # A step is there in full where a row of every rank that wrote one is whole; of others only what was logged is known.
    complete, recorded = _values(frame, "complete")
    whole = recorded & (complete != 0)
    # The run's own columns come first, then what was logged; but the loss has a place of its own.
    names = list(frame.columns)
    logged = ["loss", *names[names.index("ranks") + 1 :]]
    measured = [name for name in names if name not in {*logged, "step", "time", "gradients"}]
    series = {}
    for name in measured + logged:
        values, there = _values(frame, name)
        keep = there if name in logged else there & whole
        series[name] = Series(step[keep], values[keep])
    return Run(
        name=info["run"],
        folder=flight.folder,
        attempt=flight.attempt,
        attempts=len(info["attempts"]),
        outcome=flight.outcome,
        host=", ".join(info["hosts"]),
        seed=info["seed"],
        damage=tuple(f"{skip.file.name}: {skip.reason}" for skip in flight.skipped),
        steps=step[whole],
        columns={name: series[name] for name in measured},
        scores={name: series[name] for name in logged if len(series[name].step)},
        sites=_sites(flight),
    )


def _sites(flight: Flight) -> tuple[ResidualSite, ...]:
    labels: Mapping[str, str] = flight.info["models"]
    several = len({site.model for site in flight.sites}) > 1
    return tuple(replace(site, model=labels.get(site.model, site.model) if several else "") for site in flight.sites)


def read_blocks(folder: Path, steps: Ints) -> dict[str, dict[str, Series]]:
    """Of each block the series of its statistics at these steps; of several models a block's name begins with its model's."""
    return blocks_of(load(folder), steps)


def blocks_of(flight: Flight, steps: Ints) -> dict[str, dict[str, Series]]:
    """The same of a flight that is loaded already."""
    frame = flight.blocks(steps=steps)
    names, code = _block_names(flight, frame)
    order = np.argsort(code, kind="stable")
    bounds = np.searchsorted(code[order], np.arange(len(names) + 1))
    step = frame["step"].to_numpy(np.int64)[order]
    columns = {name: _values(frame, name) for name in STATISTICS}
    blocks: dict[str, dict[str, Series]] = {}
    for i, block in enumerate(names):
        part = slice(bounds[i], bounds[i + 1])
        blocks[block] = {}
        for name, (values, there) in columns.items():
            keep = there[order[part]]
            if keep.any():
                blocks[block][name] = Series(step[part][keep], values[order[part]][keep])
    return blocks


def _block_names(flight: Flight, frame: pd.DataFrame) -> tuple[list[str], Ints]:
    several = len({site.model for site in flight.sites}) > 1
    labels = (frame["model"] + ":" + frame["block"]) if several else frame["block"]
    encoded = pa.array(labels, pa.string()).dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _values(frame: pd.DataFrame, name: str) -> tuple[Floats, Bools]:
    """A column's values and which are there, by Arrow: pandas takes a NaN for a value that is missing."""
    array = pa.array(frame[name])
    there = array.is_valid().to_numpy(zero_copy_only=False)
    return array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False), there
