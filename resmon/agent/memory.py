"""A rank's memory as the agent follows it, and whether the kernel killed its process for want of it.

The process cannot say so itself. The kernel's counters are noted while it lives and looked at again when it is gone; what there is
to say beyond that stands in its flight.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from resmon.memory.footprint import Footprint, Held, Trail, killed
from resmon.memory.kills import Kills, kills, seen
from resmon.records import BLOCK_VALUES, RUN_VALUES, Bools, Columns, Incident, RunInfo, StepRecord

_FIGURES = [(name, RUN_VALUES.index(name)) for name in RUN_VALUES if "memory" in name]
_SAMPLES = RUN_VALUES.index("samples")
_HELD, _SAVES = map(BLOCK_VALUES.index, ("activation_bytes", "checkpoint_bytes"))


class RankMemory:
    """Follows one rank."""

    def __init__(self, info: RunInfo) -> None:
        self._group = Path(info.memory_group) if info.memory_group else None
        self._before = Kills(info.group_kills, info.machine_kills)
        self._seen_alive = False
        self._trail = Trail()
        self._samples = 0.0  # of the newest step

    def kills(self) -> Kills:
        """The kernel's counters now."""
        return kills(self._group)

    def lived(self, then: Kills) -> None:
        """The process has been seen alive after the counters were read."""
        self._before, self._seen_alive = then, True

    def step(self, record: StepRecord) -> None:
        there = record.run_present & np.isfinite(record.run)
        figures = {name: float(record.run[i]) for name, i in _FIGURES if there[i]}
        self._samples = float(record.run[_SAMPLES]) if there[_SAMPLES] else 0.0
        self._trail.add(record.step, self._samples, figures)

    def killed(self, newest: tuple[Columns, StepRecord] | None) -> Incident | None:
        """The incident of a process that is gone without a word, where the kernel's counters say that memory was why."""
        said = seen(self._before, self.kills(), self._group, alive=self._seen_alive)
        if said is None:
            return None
        blocks: list[Held] = []
        if newest is not None:
            columns, record = newest
            kept = record.blocks[[_HELD, _SAVES]]
            there: Bools = np.logical_and.reduce(record.blocks_present[[_HELD, _SAVES]] & np.isfinite(kept))
            blocks = [
                Held(site.model, site.name, int(held), int(saves))
                for site, (held, saves), known in zip(columns.sites, kept.T.tolist(), there.tolist(), strict=True)
                if known
            ]
        footprint = Footprint(
            trail=self._trail,
            now=self._trail.recent[-1][1] if self._trail.recent else {},
            blocks=blocks,
            size=self._samples,
            samples=int(self._samples),
            batch=self._samples,
        )
        return killed(footprint, newest[1].step if newest else None, time.time(), *said)
