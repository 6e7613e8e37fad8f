"""Lines over steps, of a bounded number of points, each with what it ranged over where it stands for several steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from resmon.plots.canvas import Canvas, Data, escaped, rounded
from resmon.records import Floats


class Curve(NamedTuple):
    """A value over the run: of each stretch of steps its lowest, its mean and its highest."""

    step: Floats
    low: Floats
    mean: Floats
    high: Floats

    def over(self, unit: float) -> Curve:
        """The same in another unit."""
        return self if unit == 1 else Curve(self.step, self.low / unit, self.mean / unit, self.high / unit)


def line(
    canvas: Canvas,
    curve: Curve,
    name: str,
    colour: str,
    row: int = 1,
    *,
    rises: bool = False,
    band: bool = True,
    width: float = 1.8,
    dash: str = "solid",
    **more: Any,
) -> None:
    """Draw a curve; `rises` says that it goes from value to value in steps."""
    step = np.round(curve.step).astype(np.int64).tolist()
    if band and bool(np.any(curve.high > curve.low)):
        nothing: Data = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        canvas.add("scatter", row, x=step, y=rounded(curve.low), **nothing)
        canvas.add("scatter", row, x=step, y=rounded(curve.high), fill="tonexty", fillcolor="rgba(128,128,128,0.22)", **nothing)
    canvas.add(
        "scatter",
        row,
        x=step,
        y=rounded(curve.mean),
        name=escaped(name),
        mode="lines" if np.count_nonzero(np.isfinite(curve.mean)) > 1 else "markers",
        line={"color": colour, "width": width, "dash": dash, "shape": "hv" if rises else "linear"},
        marker={"color": colour},
        hovertemplate="step %{x:,}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
        **more,
    )


def scale(curves: Iterable[Curve]) -> Data:
    """The axis of these curves: logarithmic where all is positive and ranges over two decades at least."""
    low = high = None
    for curve in curves:
        if np.isfinite(curve.low).any():
            least, most = float(np.nanmin(curve.low)), float(np.nanmax(curve.high))
            low, high = min(least, least if low is None else low), max(most, most if high is None else high)
    low, high = low or 0.0, high or 0.0
    if low == high != 0:  # what never changed is no noise around itself
        return {"type": "linear", "range": sorted((0.0, 1.5 * low))}
    decades = math.log10(high / low) if low > 0 and high < math.inf else 0.0
    return {"type": "log", "dtick": max(1, math.ceil(decades / 5))} if decades >= 2 else {"type": "linear"}
