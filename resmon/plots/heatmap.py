"""Heat maps of blocks over steps: the first block on top, colours on the quantity's scale; zero and NaN have colours too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from resmon.plots.canvas import BAD, FAINT, ZERO, Canvas, escaped, packed, shorter
from resmon.quantities import number, power
from resmon.records import Floats, Ints

NAMES = 32  # blocks whose names stand at a heat map
LARGE = 400  # blocks from which on a heat map has half as many columns
DECADES = "decades"  # says that colours are logarithms of what is to be told

Scale = tuple[float, float]


def height(blocks: int, most: int = 900) -> int:
    """Pixels that a map of so many blocks takes."""
    return max(260, min(most, 90 + (18 if blocks <= NAMES else 2 if blocks <= LARGE else 1) * blocks))


def levels(values: Floats, linear: bool = False) -> Floats:
    """What is coloured: decades, or the values themselves; NaN where there is nothing, or zero, or no number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if linear:
            return np.where(np.isfinite(values), values, np.nan)
        made: Floats = np.log10(np.where(np.isfinite(values) & (values > 0), values, np.nan))
        return made


def scale_of(parts: Sequence[Floats], linear: bool = False) -> Scale:
    """The range of colours: all but the outermost hundredth, so that one spike leaves the rest its colours."""
    known = np.concatenate([part[np.isfinite(part)] for part in (levels(part, linear) for part in parts)] or [np.empty(0)])
    if linear:
        low, high = (0.0, float(np.quantile(known, 0.99))) if len(known) else (0.0, 1.0)
        return low, max(high, 0.01)
    low, high = np.quantile(known, [0.01, 0.99]).tolist() if len(known) else (-1.0, 0.0)
    return (low, high) if high - low > 0.2 else (low - 0.1, high + 0.1)


def cells(
    canvas: Canvas, column: int, steps: Ints, names: Sequence[str], values: Floats, *, linear: bool = False, row: int = 1
) -> tuple[bool, bool]:
    """Draw [blocks, columns] in a panel; infinite is what was not finite. Whether any cell was exactly 0, and any not finite.

    On a linear scale 0 has its place, and no colour of its own.
    """
    labels = [escaped(name, 600) for name in names]
    shown = "%{z:.4g}" if linear else "%{customdata:.4g}"  # draw.js makes it of what is coloured
    canvas.add(
        "heatmap",
        row,
        column,
        x=steps.tolist(),
        y=labels,
        z=packed(levels(values, linear)),
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate=f"%{{y}}<br>step %{{x:,}}<br>{shown}<extra></extra>",
        **({} if linear else {"meta": DECADES}),
    )
    seen = []
    for where, colour, what in (
        ((values == 0) & (not linear), ZERO, "exactly 0"),
        (np.isinf(values), BAD, "NaN or infinite"),
    ):
        seen.append(bool(where.any()))
        if where.any():
            canvas.add(
                "heatmap",
                row,
                column,
                x=steps.tolist(),
                y=labels,
                z=packed(np.where(where, 1.0, np.nan)),
                colorscale=[[0, colour], [1, colour]],
                showscale=False,
                hoverongaps=False,
                hovertemplate=f"%{{y}}<br>step %{{x:,}}<br>{what}<extra></extra>",
            )
    return seen[0], seen[1]


def rows(canvas: Canvas, names: Sequence[str], longest: int = 28, most: int = NAMES) -> None:
    """The axes of a map: the blocks' names, some of them where they are many, and steps."""
    blocks = len(names)
    chosen = range(blocks) if blocks <= most else np.unique(np.linspace(0, blocks - 1, most).astype(int)).tolist()
    labels = shorter(names, longest)
    canvas.y(
        autorange="reversed",
        showgrid=False,
        tickmode="array",
        tickvals=[escaped(names[i], 600) for i in chosen],
        ticktext=[labels[i] for i in chosen],
        tickfont={"size": 11, "color": FAINT},
    )
    canvas.x(title={"text": "step"}, tickformat=",d")


def colours(canvas: Canvas, label: str, colorscale: str, scale: Scale, *, linear: bool = False) -> None:
    """The colour bar."""
    low, high = scale
    decades = list(range(math.ceil(low), math.floor(high) + 1))
    if linear:
        ticks = np.linspace(low, high, 5).tolist()
        labels = [number(tick) for tick in ticks]
    elif len(decades) > 2:
        chosen = decades[:: math.ceil(len(decades) / 6)]
        ticks, labels = [float(decade) for decade in chosen], [power(10, decade) for decade in chosen]
    else:
        between = [m * 10.0**d for d in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
        ticks = [math.log10(value) for value in between if low <= math.log10(value) <= high]
        if len(ticks) < 3:
            ticks = np.linspace(low, high, 4).tolist()
        labels = [number(10**tick) for tick in ticks]
    canvas.set(
        coloraxis={
            "colorscale": colorscale,
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "title": {"text": label, "side": "right", "font": {"color": FAINT}},
                "tickvals": ticks,
                "ticktext": labels,
                "tickfont": {"color": FAINT},
                "thickness": 12,
                "outlinewidth": 0,
            },
        }
    )
