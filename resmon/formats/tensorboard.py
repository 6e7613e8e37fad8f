"""TensorBoard's event files, written with TensorBoard's own package; torch is not needed.

Tags group by what they show: `branch_skip_ratio/h.0.mlp`. Values are 32-bit floats there: what is larger is infinite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from resmon.formats.story import Moment
from resmon.records import MAGNITUDE_EDGES, MAGNITUDE_LARGER, MAGNITUDE_ZERO, Ints

LARGEST = float(np.finfo(np.float32).max)
# Of the buckets: zeros, then the powers of two, then what is larger than the last.
_LIMITS = [0.0, *MAGNITUDE_EDGES.tolist(), float(MAGNITUDE_EDGES[-1] * 2)]


class TensorBoard:
    """Writes into a folder of its own, in which TensorBoard sees a run."""

    def __init__(self, folder: Path) -> None:
        self._writer = EventFileWriter(str(folder))
        self._before: dict[str, tuple[Ints, float]] = {}

    def add(self, moment: Moment, *, blocks: bool) -> None:
        """Write a step; of its blocks only where `blocks` says so."""
        values = moment.values() | (moment.blocks() if blocks else {})
        summaries = [Summary.Value(tag=tag, simple_value=_single(value)) for tag, value in values.items()]
        if blocks:
            summaries += self._histograms(moment)
        self._writer.add_event(Event(wall_time=moment.time, step=moment.step, summary=Summary(value=summaries)))

    def close(self) -> None:
        self._writer.close()

    def _histograms(self, moment: Moment) -> list[Any]:
        """Of the magnitudes since the step that was written before."""
        found = []
        for name, counts, total in zip(moment.names, moment.magnitudes, moment.magnitude_sum.tolist(), strict=True):
            before, total_before = self._before.get(name, (np.zeros_like(counts), 0.0))
            self._before[name] = counts, total
            new = counts - before
            new = [int(new[MAGNITUDE_ZERO]), *new[: MAGNITUDE_LARGER + 1].tolist()]
            if sum(new):
                found.append(Summary.Value(tag=f"activation_magnitude/{name}", histo=_histogram(new, total - total_before)))
        return found


def _histogram(counts: list[int], total: float) -> Any:
    there = [i for i, count in enumerate(counts) if count]
    middles = [limit * 0.75 for limit in _LIMITS]  # of (2^(i-1), 2^i]
    return HistogramProto(
        min=_LIMITS[there[0] - 1] if there[0] else 0.0,
        max=_LIMITS[there[-1]],
        num=sum(counts),
        sum=total,
        sum_squares=sum(count * middle * middle for count, middle in zip(counts, middles, strict=True)),
        bucket_limit=_LIMITS,
        bucket=counts,
    )


def _single(value: float) -> float:
    return value if abs(value) <= LARGEST or value != value else float("inf") if value > 0 else float("-inf")
