"""Weights & Biases, through its own package, which says where to: WANDB_MODE, WANDB_PROJECT and the rest are its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from resmon.formats.story import Moment
from resmon.records import MAGNITUDE_EDGES, MAGNITUDE_LARGER, MAGNITUDE_ZERO, Ints, RunInfo

# Of the buckets: zeros and the smallest, then the powers of two, then what is larger than the last.
_EDGES = np.r_[0.0, MAGNITUDE_EDGES, MAGNITUDE_EDGES[-1] * 2]


class Wandb:
    """A run of W&B that has the run's name, and what is known of it as its configuration."""

    def __init__(self, folder: Path, info: RunInfo) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "resmon"),
            name=info.run,
            dir=folder,
            config=_configuration(info),
            reinit="create_new",
        )
        self._before: dict[str, Ints] = {}

    def add(self, moment: Moment, *, blocks: bool) -> None:
        """Log a step; of its blocks only where `blocks` says so."""
        values: dict[str, Any] = moment.values() | (moment.blocks() if blocks else {})
        if blocks:
            values |= self._histograms(moment)
        self._run.log(values, step=moment.step)

    def close(self) -> None:
        self._run.finish()

    def _histograms(self, moment: Moment) -> Mapping[str, Any]:
        """Of the magnitudes since the step that was logged before."""
        found = {}
        for name, counts in zip(moment.names, moment.magnitudes, strict=True):
            new = counts - self._before.get(name, np.zeros_like(counts))
            self._before[name] = counts
            buckets = new[: MAGNITUDE_LARGER + 1].copy()
            buckets[0] += new[MAGNITUDE_ZERO]
            if buckets.any():
                found[f"activation_magnitude/{name}"] = wandb.Histogram(np_histogram=(buckets, _EDGES))
        return found


def _configuration(info: RunInfo) -> dict[str, Any]:
    names = ("attempt", "models", "host", "world_size", "git_commit", "seed", "torch", "resmon", "start_step")
    return {name: getattr(info, name) for name in names} | {"command": " ".join(info.command)}
