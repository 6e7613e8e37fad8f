"""The run's own values over all of its steps, as lines of a bounded number of points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from resmon.diff.runs import Run, Series
from resmon.flight.frames import Flight
from resmon.plots.curves import Curve
from resmon.postmortem.thinned import Thinned, column, within
from resmon.records import Floats, Ints

POINTS = 1_200  # of a curve


def curves(flight: Flight, run: Run, thinned: Thinned) -> dict[str, Curve]:
    """Of every column and score of the run; of several ranks' bins the lowest rank's."""
    logged = flight.bins("scalars")
    low_rank = min(flight.info["ranks"], default=0)
    bins, logged = (frame[frame["rank"] == low_rank] for frame in (thinned.runs, logged))
    spans = np.stack([column(bins, name).astype(np.int64) for name in ("first_step", "last_step")], axis=1)
    made = {}
    for name, series in {**run.columns, **run.scores}.items():
        keep = ~within(series.step, spans)
        step, value = series.step[keep].astype(float), np.where(np.isfinite(series.values), series.values, np.nan)[keep]
        parts = [(step, value, value, value)]
        source = {"gradient_norm": "gradient_square"}.get(name, name)
        if name in run.scores:
            rows = logged[(logged["name"] == name) & np.isin(logged["first_step"].to_numpy(np.int64), spans[:, 0])]
            parts.append(_bin_curve(rows, "value"))
        elif f"{source}_sum" in bins.columns:
            part = _bin_curve(bins, source)
            several = len(flight.info["ranks"]) > 1 and source == "gradient_square"  # shares of one rank are not the norm
            parts.append(tuple(x[:0] if several else np.sqrt(x) if source != name and i else x for i, x in enumerate(part)))  # type: ignore[arg-type]
        step, low, mean, high = (np.concatenate([part[i] for part in parts]) for i in range(4))
        order = np.argsort(step, kind="stable")
        if len(order):
            made[name] = _shortened(Curve(step[order], low[order], mean[order], high[order]))
    return made


def _bin_curve(frame: Any, name: str) -> tuple[Floats, Floats, Floats, Floats]:
    middle = (column(frame, "first_step") + column(frame, "last_step")) / 2
    number = column(frame, f"{name}_count")
    there = number > 0
    mean = column(frame, f"{name}_sum")[there] / number[there]
    return middle[there], column(frame, f"{name}_min")[there], mean, column(frame, f"{name}_max")[there]


def _shortened(curve: Curve) -> Curve:
    """At most POINTS points, of stretches of equally many points."""
    if len(curve.step) <= POINTS:
        return curve
    begins = np.linspace(0, len(curve.step), POINTS + 1).astype(np.int64)[:-1]
    counts = np.diff(np.r_[begins, len(curve.step)])
    finite = np.isfinite(curve.mean)
    numbers = np.add.reduceat(finite.astype(float), begins)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(finite, curve.mean, 0.0), begins) / np.where(numbers > 0, numbers, np.nan)
    step = np.add.reduceat(curve.step, begins) / counts
    return Curve(step, np.fmin.reduceat(curve.low, begins), mean, np.fmax.reduceat(curve.high, begins))


def clock(steps: Ints, time: pa.Array, thinned: Thinned) -> Series:
    """Unix seconds of steps: of those in full, whose times are given, and of the last ones of bins."""
    there = time.is_valid().to_numpy(zero_copy_only=False)
    last, last_time = thinned.last_time
    step = np.concatenate([steps[there], last])
    value = np.concatenate([_seconds(time)[there], _seconds(last_time)])
    step, places = np.unique(step, return_index=True)
    keep = np.unique(np.linspace(0, max(0, len(step) - 1), 4 * POINTS).astype(np.int64)) if len(step) else np.empty(0, np.int64)
    return Series(step[keep], value[places][keep])


def _seconds(time: pa.Array) -> Floats:
    nanoseconds: Ints = time.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return nanoseconds / 1e9
