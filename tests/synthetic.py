"""Records as capture makes them, from a seed: a training without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    DURATION_COLUMNS,
    DURATION_EDGES,
    GROUP_VALUES,
    MAGNITUDE_COLUMNS,
    PHASES,
    RUN_VALUES,
    Floats,
    ResidualSite,
    RunInfo,
    StepRecord,
)


def sites(count: int, model: str = "") -> tuple[ResidualSite, ...]:
    return tuple(ResidualSite(f"h.{i}", f"h.{i}", "identity", (f"h.{i}.mlp",), (), (4, 8), model=model) for i in range(count))


def info(**changes: object) -> RunInfo:
    made = RunInfo(
        run="digits",
        attempt=1,
        rank=0,
        world_size=1,
        models={"": "Net"},
        started=1000.0,
        start_step=0,
        launch="launch",
        host="here",
        boot_id="boot",
        pid=1,
        resmon="0",
        python="3.11",
        torch="2.13",
        command=("train.py",),
        working_directory="/",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def run_values(**changes: float) -> Floats:
    """The run's values of a step, as a record holds them."""
    usual = {"duration": 0.25, "learning_rate": 0.1, "gradient_square": 4.0, "stepped_square": 1.0, "monitor_seconds": 0.001}
    values = usual | changes
    return np.array([values.get(name, 0.0) for name in RUN_VALUES])


class Training:
    """Gives one record after another; what is cumulative in a flight is so here."""

    def __init__(
        self, sites: Sequence[ResidualSite], seed: int = 0, start: float = 1000.0, groups: Sequence[str] = (), drops: bool = False
    ) -> None:
        self.sites = tuple(sites)
        self.drops = drops  # whether the branches of samples may be dropped
        self.groups = tuple(groups)
        self.random = np.random.default_rng(seed)
        self.now = start
        self.steps = 0
        self.skipped = 0
        self.durations = np.zeros(DURATION_COLUMNS, np.int64)
        self.duration_total = 0.0
        self.nonfinite = np.zeros(len(sites), np.int64)
        self.buckets = np.zeros((len(sites), MAGNITUDE_COLUMNS), np.int64)
        self.sums = np.zeros(len(sites))

    def step(
        self,
        forward: Sequence[int] = (),
        backward: Sequence[int] = (),
        absent: Sequence[tuple[str, int]] = (),
        values: dict[tuple[str, int], float] | None = None,
        time: float | None = None,
        skipped: bool = False,
        scale: float = 1024.0,
    ) -> StepRecord:
        """The next step. `forward` and `backward` name sites that are non-finite, `values` and `absent` change single values."""
        self.skipped += skipped
        count = len(self.sites)
        duration = 0.25
        self.now = self.now + duration if time is None else time
        blocks = self.random.uniform(1.0, 100.0, (len(BLOCK_VALUES), count))
        # As healthy blocks have them: shares, a ratio, and how much of its range a dtype has taken.
        for name in ("norm_gap", "norm_collapsed", "dead", "fill", "position_ratio"):
            blocks[BLOCK_VALUES.index(name)] /= 1000
        present = np.ones(blocks.shape, bool)
        counts = np.zeros((len(BLOCK_COUNTS), count), np.int64)
        counts[0] = 32
        present[BLOCK_VALUES.index("kept_square")] = self.drops
        if self.drops:
            counts[BLOCK_COUNTS.index("samples")], counts[BLOCK_COUNTS.index("kept")] = 4, 3
            blocks[BLOCK_VALUES.index("kept_square")] = 0.5
        for i in forward:
            counts[1, i] = 3
            blocks[[BLOCK_VALUES.index("branch_square"), BLOCK_VALUES.index("output_square")], i] = np.nan
        for i in backward:
            counts[2, i] = 5
            blocks[BLOCK_VALUES.index("output_gradient_square"), i] = np.nan
        for (name, i), value in (values or {}).items():
            blocks[BLOCK_VALUES.index(name), i] = value
        for name, i in absent:
            present[BLOCK_VALUES.index(name), i] = False
        self.nonfinite[sorted({*forward, *backward})] += 1
        sampled = self.random.integers(0, 5, self.buckets.shape)
        self.buckets += sampled
        self.sums += self.random.uniform(0, 50, count)
        self.durations[np.searchsorted(DURATION_EDGES, duration)] += 1
        self.duration_total += duration
        record = StepRecord(
            step=self.steps,
            time=self.now,
            complete=True,
            skipped=skipped,
            run=run_values(duration=duration, loss_scale=scale),
            run_present=np.ones(len(RUN_VALUES), bool),
            groups=self.random.uniform(0, 1, (len(GROUP_VALUES), len(self.groups))),
            groups_present=np.ones((len(GROUP_VALUES), len(self.groups)), bool),
            blocks=blocks,
            blocks_present=present,
            counts=counts,
            steps_total=self.steps + 1,
            skipped_total=self.skipped,
            clipped_total=self.steps + 1,
            errors_total=0,
            samples_total=8 * (self.steps + 1),
            duration_total=self.duration_total,
            phase_totals=self.duration_total * np.array([0.1, 0.3, 0.5, 0.05])[: len(PHASES)],
            duration_buckets=self.durations.copy(),
            nonfinite_steps=self.nonfinite.copy(),
            magnitude_buckets=self.buckets.copy(),
            magnitude_sum=self.sums.copy(),
        )
        self.steps += 1
        return record
