"""From what a step has gathered to its record.

A draft is complete as far as the host knows when the step is over. Where some of its numbers are still on a device it waits for
them, in its order; the cumulative counters are those of the records, so they are kept on this side of the wait.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from resmon.capture import _native
from resmon.capture.gradients.measured import Measured
from resmon.capture.host.fetch import Fetch, Later, Number, number
from resmon.capture.probes.accelerator import Gathered
from resmon.capture.probes.channel import Channel
from resmon.capture.probes.columns import (
    BACKWARD_NONFINITE,
    BRANCH,
    CELLS,
    COLUMNS,
    FORWARD_NONFINITE,
    GRADIENT,
    KEPT_SQUARE,
    MAGNITUDES,
    MEDIAN,
    OUTPUT,
    SKIP,
    SUMS,
)
from resmon.capture.probes.inputs import InputSums
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    DURATION_COLUMNS,
    DURATION_EDGES,
    GROUP_VALUES,
    PHASES,
    RUN_VALUES,
    Bools,
    Floats,
    Ints,
    StepRecord,
)

NORMS = (SKIP, BRANCH, OUTPUT, GRADIENT, KEPT_SQUARE)  # columns of squares
LOOKS = COLUMNS - MEDIAN
_EDGES: list[float] = DURATION_EDGES.tolist()
_PHASES = tuple(f"{phase}_seconds" for phase in PHASES)
RATE, SQUARE = map(GROUP_VALUES.index, ("learning_rate", "gradient_square"))


class Part(Protocol):
    """Numbers that arrive, some for each of some sites."""

    def add_to(self, numbers: Floats) -> None:
        """Add them to the rows of all sites, [S, COLUMNS]."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one site each, whole or some of their columns."""

    numbers: Later
    first: int  # column
    last: int  # column behind them
    rows: Ints
    sites: Ints

    def add_to(self, numbers: Floats) -> None:
        table = self.numbers.numbers().reshape(-1, self.last - self.first)
        sums = slice(0, min(self.last, SUMS) - self.first)
        np.add.at(numbers[:, self.first : min(self.last, SUMS)], self.sites, table[self.rows][:, sums])
        if self.last > SUMS:
            np.fmax.at(numbers[:, SUMS : self.last], self.sites, table[self.rows][:, sums.stop :])


@dataclass(frozen=True, slots=True)
class Scattered:
    """Single numbers: those of NORMS are to be squared."""

    numbers: Later
    members: Ints  # which of the numbers
    sites: Ints
    columns: Ints
    factors: Floats

    def add_to(self, numbers: Floats) -> None:
        found = self.numbers.numbers()[self.members]
        values = np.where(np.isin(self.columns, NORMS), found * found, found) * self.factors
        sums = self.columns < SUMS
        np.add.at(numbers, (self.sites[sums], self.columns[sums]), values[sums])
        np.fmax.at(numbers, (self.sites[~sums], self.columns[~sums]), values[~sums])


def parts(
    fetch: Fetch, channels: Sequence[Channel], rows: Iterable[tuple[Tensor, Sequence[Channel]]], gathered: Iterable[Gathered]
) -> Sequence[Part]:
    """Have `fetch` bring what graphs have written in rows and what has gathered on accelerators, for those of `channels`."""
    rows, gathered = tuple(rows), tuple(gathered)
    if not rows and not gathered:
        return ()
    position = {id(channel): i for i, channel in enumerate(channels)}

    def places(of: Iterable[Channel]) -> tuple[Ints, Ints]:
        """Which of these are among the channels, and where."""
        found = [(i, place) for i, each in enumerate(of) if (place := position.get(id(each.stands_for))) is not None]
        members, sites = np.array(found, np.int64).reshape(-1, 2).T
        return members, sites

    found: list[Part] = [Rows(fetch.add(numbers), 0, MEDIAN, *places(of)) for numbers, of in rows]
    for each in gathered:
        members, sites = places(place.channel for place in each.places)
        columns = np.array([place.column for place in each.places])[members]
        factors = np.array([place.factor for place in each.places])[members]
        found.append(Scattered(fetch.add(each.numbers), members, sites, columns, factors))
        if each.sites:
            found.append(Rows(fetch.add(each.histograms), MAGNITUDES, SUMS, *places(each.sites)))
    return found


@dataclass(slots=True)
class Draft:
    """One step, S sites."""

    fetch: Fetch
    step: int
    time: float  # Unix seconds at the step boundary
    complete: bool
    duration: float | None
    seconds: float  # that the monitor has cost
    phases: Sequence[float | None]  # seconds of each of PHASES
    samples: int
    inputs: InputSums
    memory: Mapping[str, float | None]  # by names of RUN_VALUES
    channels: Sequence[Channel]
    numbers: Floats  # [S, COLUMNS]
    parts: Sequence[Part]  # of the numbers, that arrive later
    suspect: Bools  # [S]: whether what is not finite was counted on its device
    blocks: bool  # whether its blocks were observed, after all
    gradients: Measured
    learning_rates: Sequence[Number | None]  # of each parameter group
    main: int | None  # the group whose rate is the step's
    scales: Mapping[str, Number]
    summed: Mapping[str, int]  # by model: how many micro-batches' output gradients were added up where their mean is meant
    nonfinite: Sequence[Number]
    not_called: bool
    shares: Floats | None  # [S]: what makes the output gradients' squares this rank's share; NaN where that cannot be known
    errors_total: int


class Totals:
    """The cumulative counters, and the records that carry them."""

    def __init__(self) -> None:
        self._steps = self._skipped = self._clipped = 0
        self._samples = 0
        self._duration = 0.0
        self._phases = [0.0] * len(PHASES)
        self._durations = np.zeros(DURATION_COLUMNS, np.int64)
        self._channels: Sequence[Channel] = ()
        self._nonfinite: Ints = np.zeros(0, np.int64)
        self._magnitudes: Floats = np.zeros((0, CELLS))
        self._looks: Floats = np.zeros((0, LOOKS))  # the newest of what is not looked at in every step, NaN where there is none yet

    def sites(self, channels: Sequence[Channel]) -> None:
        """Records from here on are of these sites."""
        if channels is self._channels:
            return
        known = {id(channel): i for i, channel in enumerate(self._channels)}
        before = self._nonfinite, self._magnitudes, self._looks
        sites = len(channels)
        self._channels = channels
        self._nonfinite, self._magnitudes = np.zeros(sites, np.int64), np.zeros((sites, CELLS))
        self._looks = np.full((sites, LOOKS), np.nan)
        now = self._nonfinite, self._magnitudes, self._looks
        for i, channel in enumerate(channels):
            if (place := known.get(id(channel))) is not None:
                for new, old in zip(now, before, strict=True):
                    new[i] = old[place]

    def record(self, draft: Draft) -> StepRecord:
        """The step's record, when its numbers have arrived, or have failed to."""
        self.sites(draft.channels)
        arrived = not draft.fetch.failed
        samples = max(draft.samples, draft.inputs.samples() if arrived else 0)
        if arrived:
            draft.gradients.settle()
        values, present, counts = self._blocks(draft, arrived)
        gradient, stepped = draft.gradients.total() if draft.blocks and arrived else (None, None)
        scales = [number(scale) for scale in draft.scales.values()] if arrived else []
        skipped = draft.not_called or (arrived and any(number(found) for found in draft.nonfinite))
        if draft.complete:
            self._steps += 1
            self._skipped += skipped
            self._samples += samples
            self._phases = [total + (seconds or 0.0) for total, seconds in zip(self._phases, draft.phases, strict=True)]
            self._clipped += gradient is not None and stepped is not None and stepped < gradient
            if draft.duration is not None:
                self._duration += draft.duration
                self._durations[bisect_left(_EDGES, draft.duration)] += 1
        groups, groups_present = self._groups(draft, arrived)
        main = draft.main
        run: dict[str, float | None] = {
            "duration": draft.duration,
            **dict(zip(_PHASES, draft.phases, strict=True)),
            "samples": float(samples) if samples else None,
            **draft.inputs.values(arrived=arrived),
            **draft.memory,
            "learning_rate": float(groups[RATE, main])
            if main is not None and main < len(groups.T) and groups_present[RATE, main]
            else None,
            "gradient_square": gradient,
            "stepped_square": stepped,
            "loss_scale": max(scales, default=None),
            "monitor_seconds": draft.seconds,
            "unknown_gradients": float(len(draft.gradients.unknown)),
            "replicas": float(draft.gradients.replicas) if draft.blocks and arrived else None,
        }
        values_of_run = [run.get(name) for name in RUN_VALUES]
        return StepRecord(
            step=draft.step,
            time=draft.time,
            complete=draft.complete,
            skipped=skipped,
            run=np.array([math.nan if v is None else v for v in values_of_run]),
            run_present=np.array([v is not None for v in values_of_run]),
            groups=groups,
            groups_present=groups_present,
            blocks=values,
            blocks_present=present,
            counts=counts,
            steps_total=self._steps,
            skipped_total=self._skipped,
            clipped_total=self._clipped,
            errors_total=draft.errors_total,
            samples_total=self._samples,
            duration_total=self._duration,
            phase_totals=np.array(self._phases),
            duration_buckets=self._durations.copy(),
            nonfinite_steps=self._nonfinite.copy(),
            magnitude_buckets=self._magnitudes[:, 1:].astype(np.int64),
            magnitude_sum=self._magnitudes[:, 0].copy(),
        )

    def _groups(self, draft: Draft, arrived: bool) -> tuple[Floats, Bools]:
        """The record's arrays of its parameter groups."""
        shape = len(GROUP_VALUES), len(draft.learning_rates)
        values, present = np.zeros(shape), np.zeros(shape, np.bool_)
        if arrived:
            present[RATE] = [rate is not None for rate in draft.learning_rates]
            values[RATE] = [0.0 if rate is None else number(rate) for rate in draft.learning_rates]
            if draft.blocks:
                values[SQUARE], present[SQUARE] = draft.gradients.of(draft.gradients.parameter_groups)
        return values, present

    def _blocks(self, draft: Draft, arrived: bool) -> tuple[Floats, Bools, Ints]:
        """The record's arrays of its sites."""
        sites = len(draft.channels)
        values = np.zeros((len(BLOCK_VALUES), sites))
        present = np.zeros((len(BLOCK_VALUES), sites), np.bool_)
        counts = np.zeros((len(BLOCK_COUNTS), sites), np.int64)
        if not (sites and draft.blocks and arrived):
            return values, present, counts
        if draft.parts:
            self._complete(draft)
        totals = self._looks, self._nonfinite, self._magnitudes
        _native.blocks(sites, CELLS, LOOKS, draft.numbers, *totals, values, present, counts)
        values[3], present[3] = draft.gradients.of(draft.gradients.groups)
        if draft.scales:  # they are of the scaled loss
            values[4] /= [number(draft.scales.get(channel.site.model, 1.0)) ** 2 for channel in draft.channels]
        if draft.summed:
            values[4] /= [draft.summed.get(channel.site.model, 1) ** 2 for channel in draft.channels]
        if draft.shares is not None:
            present[4] &= ~np.isnan(draft.shares)
            values[4] *= np.where(present[4], draft.shares, 0.0)
        return values, present, counts

    def _complete(self, draft: Draft) -> None:
        """Add what was gathered on devices, where what is not finite is counted only once something was not."""
        numbers = draft.numbers
        for part in draft.parts:
            part.add_to(numbers)
        for square, count in ((OUTPUT, FORWARD_NONFINITE), (GRADIENT, BACKWARD_NONFINITE)):
            broken = ~np.isfinite(numbers[:, square])
            numbers[:, count] += broken & (numbers[:, count] == 0) & ~draft.suspect
            for site in np.flatnonzero(broken).tolist():
                draft.channels[site].suspect = True
