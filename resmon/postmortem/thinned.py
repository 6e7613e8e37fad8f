"""The history of a run where its full rows were thinned away: what the bins say that stand for them.

A bin counts as long as not every step of it is there in full; where all are, the rows tell more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from resmon.flight.frames import Flight
from resmon.records import Bools, Floats, Ints


class Bins(NamedTuple):
    """What bins hold of one value: spans of steps, sums and counts over them, and whether any of it was not finite."""

    first: Ints
    last: Ints
    sums: Floats
    counts: Floats
    nonfinite: Bools


class Thinned:
    """The bins of a flight that are needed. `recorded` are the steps of which there is a full row."""

    def __init__(self, flight: Flight, recorded: Ints) -> None:
        self._flight = flight
        every = flight.bins("run")
        first, last, steps = (column(every, name).astype(np.int64) for name in ("first_step", "last_step", "steps"))
        self.runs = every[needed(first, last, steps, recorded)]
        self.last_time = last, pa.array(every["last_time"])
        first, last = (column(self.runs, name).astype(np.int64) for name in ("first_step", "last_step"))
        self.spans: Ints = np.unique(np.stack([first, last], axis=1), axis=0) if len(first) else np.empty((0, 2), np.int64)

    def blocks(self, names: tuple[str, ...]) -> dict[tuple[str, str], Bins]:
        """Of each block and statistic."""
        spans, flight = self.spans, self._flight
        if not len(spans) or not names:
            return {}
        frame = flight.bins("blocks")
        frame = frame[np.isin(column(frame, "first_step").astype(np.int64), spans[:, 0])]
        several = len({site.model for site in flight.sites}) > 1
        labels = (frame["model"] + ":" + frame["block"]) if several else frame["block"]
        found, code = np.unique(labels.to_numpy(dtype=object).astype(str), return_inverse=True)
        rows = dict(zip(found.tolist(), np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1]), strict=True))
        first, last = (column(frame, name).astype(np.int64) for name in ("first_step", "last_step"))
        nonfinite = (column(frame, "nonfinite_forward_sum") + column(frame, "nonfinite_backward_sum")) > 0
        whole = len(flight.info["ranks"]) >= (flight.info["world_size"] or 1)
        made: dict[tuple[str, str], Bins] = {}
        columns = {"branch_skip_ratio": "branch_skip_ratio"} | ({"gradient_norm": "gradient_square"} if whole else {})
        ranks = max(1, len(set(frame["rank"].tolist())))
        for statistic, source in columns.items():
            total, number = column(frame, f"{source}_sum"), column(frame, f"{source}_count")
            if statistic == "gradient_norm":  # shares of ranks add up
                number = number / ranks
            for name in names:
                here = rows.get(name)
                if here is not None:
                    made[name, statistic] = Bins(first[here], last[here], total[here], number[here], nonfinite[here])
        return made


def within(steps: Ints, spans: Ints) -> Bools:
    """Which steps lie in one of the spans, [n, 2], which rise and do not overlap."""
    if not len(spans):
        return np.zeros(len(steps), np.bool_)
    place = np.searchsorted(spans[:, 0], steps, "right") - 1
    inside: Bools = (place >= 0) & (steps <= spans[np.maximum(place, 0), 1])
    return inside


def needed(first: Ints, last: Ints, steps: Ints, full: Ints) -> Bools:
    """Which bins are needed: not all of their steps are there in full."""
    there = np.searchsorted(full, last, "right") - np.searchsorted(full, first, "left")
    needed: Bools = there < steps
    return needed


def column(frame: Any, name: str) -> Floats:
    array = pa.array(frame[name])
    return array.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
