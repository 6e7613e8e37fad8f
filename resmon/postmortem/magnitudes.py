"""How large activations were, before the trouble and at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resmon.flight.frames import MAGNITUDE_NAMES, Flight
from resmon.records import Floats, Ints

SHOWN = 4  # blocks whose histograms are drawn
BEFORE, AFTER = 64, 8  # steps of each


@dataclass(frozen=True, slots=True, eq=False)
class Magnitudes:
    """Shares of a block's sampled |y| per bucket, [MAGNITUDE_COLUMNS], before the trouble and at it."""

    block: str
    before: Floats
    after: Floats
    before_steps: tuple[int, int]
    after_steps: tuple[int, int]


def magnitudes(flight: Flight, names: tuple[str, ...], steps: Ints, named: Sequence[str]) -> tuple[Magnitudes, ...]:
    """Of the blocks that are named, then of the last, the first and the middle."""
    if len(steps) < 4 or not names:
        return ()
    wanted = list(dict.fromkeys([*(block for block in named if block in names), names[-1], names[0], names[len(names) // 2]]))[
        :SHOWN
    ]
    after = steps[-min(AFTER, len(steps) // 2) :]
    before = steps[: -len(after)][: len(steps) // 2][-BEFORE:]
    frame = flight.histograms(int(before[0]), int(after[-1]))
    several = len({site.model for site in flight.sites}) > 1
    label = np.asarray(((frame["model"] + ":" + frame["block"]) if several else frame["block"]).to_numpy(dtype=object))
    step = frame["step"].to_numpy(np.int64)
    made = []
    for name in sorted(wanted, key=names.index):
        shares = []
        for part in (before, after):
            rows = frame[(label == name) & (step >= part[0]) & (step <= part[-1])]
            counts = np.array([float(rows[column].sum()) if len(rows) else 0.0 for column in MAGNITUDE_NAMES])
            shares.append(counts / counts.sum() if counts.sum() else np.full(len(counts), np.nan))
        if np.isfinite(shares[1]).any() or np.isfinite(shares[0]).any():
            spans = [(int(part[0]), int(part[-1])) for part in (before, after)]
            made.append(Magnitudes(name, shares[0], shares[1], spans[0], spans[1]))
    return tuple(made)
