"""The report's figures, as plotly draws them.

A figure is data: colours of ink, rules and series stand in it as CSS variables, `var(--ink)`, which the page resolves for light,
dark and print (style.css has them: the series are Okabe and Ito's, safe for the colour-blind, as are the colour scales). Every text
that comes from a file is escaped, because plotly reads tags in texts. A caption is a sentence that says what to see.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resmon.directions import direction
from resmon.postmortem.case import Case
from resmon.postmortem.curves import Curve
from resmon.postmortem.grids import LARGE, Grid
from resmon.postmortem.report import Report
from resmon.quantities import count, duration, listed, number, power, raised, size
from resmon.records import MAGNITUDE_EDGES, MAGNITUDE_HIGH, MAGNITUDE_LARGER, MAGNITUDE_NONFINITE, MAGNITUDE_ZERO, PHASES, Floats

if TYPE_CHECKING:
    import plotly.graph_objects as go

SERIES = tuple(f"var(--series-{i})" for i in range(1, 8))
INK, FAINT, RULE, GROUND = "var(--ink)", "var(--faint)", "var(--rule)", "var(--ground)"
BAD, ZERO, CLOSE = "var(--bad)", "var(--zero)", "var(--close)"
RATIO_SCALE, GRADIENT_SCALE = "Viridis", "Cividis"
NAMES = 32  # blocks whose names stand at a heat map
LONGEST_NAME = 28  # characters of them
SCORES = 6  # that are drawn besides the loss
RUNS = 6  # that are drawn beside the broken one
DIGITS = 4
SEEN = 0.001  # share of a bucket from which on the axis reaches to it


@dataclass(frozen=True, slots=True)
class Figure:
    """What the page needs to draw it; `width` is the least in pixels at which it can be read."""

    key: str
    title: str
    caption: str
    plot: dict[str, Any]
    height: int
    width: int = 0


def figures(report: Report) -> dict[str, Figure]:
    """All that there is something to draw of, by key."""
    case = report.case
    made: Iterable[Figure | None] = (
        _timeline(report),
        _heat_map(
            case,
            "ratio",
            "Branch against skip, block by block",
            case.ratio,
            RATIO_SCALE,
            "branch/skip ratio",
            "how much each block changes the stream",
            "In a healthy run a row keeps its colour or drifts slowly, and only blocks that begin with zeros begin at 0; a row "
            "that turns is a block that changed.",
        ),
        _heat_map(
            case,
            "gradient",
            "Gradient norm, block by block",
            case.gradient,
            GRADIENT_SCALE,
            "gradient norm",
            "how strongly each block is pulled",
            "In a healthy run the rows stay within two decades or so of each other and pale together as the loss falls; a fade "
            "towards the first block is a gradient that vanishes, columns that light up from one row to the others an explosion.",
        ),
        _activations(case),
        _loss(case),
        _scores(case),
        _training(case),
        _memory(case),
        _blocks_memory(case),
        _step_time(case),
        _beside(report),
    )
    return {figure.key: figure for figure in made if figure is not None}


def _escaped(text: str, longest: int = 120) -> str:
    cut = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return html.escape("".join(c if c.isprintable() else "�" for c in cut), quote=False)


def _short(name: str) -> str:
    """A block's name at an axis: its end tells it from others."""
    return _escaped(name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}")


def _canvas(height: int, rows: int = 1, columns: int = 1, **subplots: Any) -> go.Figure:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=rows, cols=columns, **subplots)
    figure.update_layout(
        template=None,
        height=height,
        margin={"l": 64, "r": 16, "t": 24, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif", "size": 12, "color": INK},
        hoverlabel={"bgcolor": GROUND, "bordercolor": RULE, "font": {"color": INK}},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"color": INK}},
        showlegend=False,
    )
    figure.update_annotations(font={"size": 12, "color": FAINT})
    axis = {
        "gridcolor": RULE,
        "linecolor": RULE,
        "tickcolor": RULE,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickfont": {"color": FAINT},
        "title": {"font": {"color": FAINT}},
        "automargin": True,
    }
    figure.update_xaxes(**axis, showgrid=False, showline=True)
    figure.update_yaxes(**axis, showgrid=True, exponentformat="power")
    return figure


def _plot(figure: go.Figure) -> dict[str, Any]:
    plot: dict[str, Any] = json.loads(figure.to_json())
    return {"data": plot["data"], "layout": plot["layout"]}


def _mark(figure: go.Figure, case: Case, **where: Any) -> None:
    """Where it broke."""
    if case.trouble is not None:
        figure.add_vline(x=case.trouble, line={"color": BAD, "width": 1.5, "dash": "dot"}, **where)


def _line(curve: Curve, name: str, colour: str, *, rises: bool = False) -> Iterator[go.Scatter]:
    """A curve, with what it ranged over where a point stands for several steps."""
    import plotly.graph_objects as go

    step = np.round(curve.step).astype(np.int64)
    if bool(np.any(curve.high > curve.low)):
        nothing = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        yield go.Scatter(x=step, y=_rounded(curve.low), **nothing)
        yield go.Scatter(x=step, y=_rounded(curve.high), fill="tonexty", fillcolor="rgba(128,128,128,0.22)", **nothing)
    yield go.Scatter(
        x=step,
        y=_rounded(curve.mean),
        name=_escaped(name),
        mode="lines" if np.count_nonzero(np.isfinite(curve.mean)) > 1 else "markers",
        line={"color": colour, "width": 1.8, "shape": "hv" if rises else "linear"},
        marker={"color": colour},
        hovertemplate="step %{x:,}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
    )


def _rounded(values: Floats) -> list[float | None]:
    """As JSON that is short: numbers with few digits, null where there is none."""
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]


def _scale(curves: Iterable[Curve]) -> dict[str, Any]:
    """The axis of these curves: logarithmic where all is positive and ranges over two decades at least."""
    low = min((float(np.nanmin(c.low)) for c in curves if np.isfinite(c.low).any()), default=0.0)
    high = max((float(np.nanmax(c.high)) for c in curves if np.isfinite(c.high).any()), default=0.0)
    if low == high != 0:  # what never changed is no noise around itself
        return {"type": "linear", "range": sorted((0.0, 1.5 * low))}
    decades = math.log10(high / low) if low > 0 and high < math.inf else 0.0
    return {"type": "log", "dtick": max(1, math.ceil(decades / 5))} if decades >= 2 else {"type": "linear"}


# -- timeline -------------------------------------------------------------------------------------------------------------

_LANES = {"run": "run", "checkpoint": "checkpoints", "sign": "first signs", "finding": "findings", "incident": "incidents"}
_MARKS = {"run": "circle", "checkpoint": "diamond", "sign": "triangle-up", "finding": "square", "incident": "x"}


def _timeline(report: Report) -> Figure | None:
    import plotly.graph_objects as go

    case = report.case
    if not len(case.run.steps):
        return None
    lanes = [kind for kind in _LANES if any(event.kind == kind for event in report.timeline) or kind == "run"]
    figure = _canvas(56 + 34 * len(lanes) + 40)
    first, last = int(case.run.steps[0]), int(case.run.steps[-1])
    figure.add_trace(
        go.Scatter(x=[first, last], y=[_LANES["run"]] * 2, mode="lines", line={"color": FAINT, "width": 6}, hoverinfo="skip")
    )
    for kind, colour in zip(_LANES, (FAINT, SERIES[2], SERIES[0], SERIES[1], BAD), strict=True):
        events = [event for event in report.timeline if event.kind == kind and event.step is not None]
        steps = [event.step for event in events]
        texts = [_escaped(event.text) for event in events]
        if kind == "checkpoint":  # all of them, though the list names two
            named = [each for each in case.checkpoints if each.step is not None][-1000:]
            steps, texts = [each.step for each in named], [_escaped(each.path) for each in named]
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=[_LANES[kind]] * len(steps),
                mode="markers",
                marker={"color": colour, "size": 11, "symbol": _MARKS[kind], "line": {"color": GROUND, "width": 1}},
                customdata=[_wrapped(text) for text in texts],
                hovertemplate="step %{x:,}<br>%{customdata}<extra></extra>",
            )
        )
    _mark(figure, case)
    figure.update_yaxes(categoryorder="array", categoryarray=[_LANES[kind] for kind in reversed(lanes)], gridcolor=RULE, ticks="")
    figure.update_xaxes(title_text="step", tickformat=",d")
    ticks = np.unique(np.linspace(first, last, 6).astype(np.int64)).tolist()
    times = [time for step in ticks if (time := case.time_of(step)) is not None]
    if len(times) == len(ticks) and last > first:
        began = case.info.get("started") or times[0]
        # The same line in time, on top: an axis of its own needs a trace of its own.
        figure.add_trace(
            go.Scatter(x=[first, last], y=["run", "run"], mode="markers", marker={"opacity": 0}, hoverinfo="skip", xaxis="x2")
        )
        figure.update_layout(
            xaxis2={
                "overlaying": "x",
                "matches": "x",
                "side": "top",
                "tickvals": ticks,
                "ticktext": [duration(max(0.0, time - began)) for time in times],
                "tickfont": {"color": FAINT},
                "showgrid": False,
                "showline": False,
                "zeroline": False,
            },
            margin={"t": 40},
        )
    caption = "Steps below, time since the run began on top."
    if case.trouble is not None:
        caption += f" The dotted line is step {case.trouble:,}, at which it broke."
    return Figure("timeline", "What happened when", caption, _plot(figure), int(figure.layout.height), 520)


def _wrapped(text: str, width: int = 64) -> str:
    """With line breaks, for a label that hovers; the text is escaped already."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "<br>".join([*lines, line][:8])


# -- heat maps ------------------------------------------------------------------------------------------------------------


def _heat_map(
    case: Case, key: str, title: str, grids: tuple[Grid, Grid], scale: str, quantity: str, meaning: str, healthy: str
) -> Figure | None:
    import plotly.graph_objects as go

    whole, close = grids
    blocks = len(case.blocks)
    if not blocks or not np.isfinite(np.r_[whole.values.ravel(), close.values.ravel()]).any():
        return None
    height = max(260, min(900, 90 + (18 if blocks <= NAMES else 2 if blocks <= LARGE else 1) * blocks))
    close_up = close.width > 0 and whole.width > 0
    titles = ("the whole run", f"the {close.width:,} steps up to {'the trouble' if case.trouble is not None else 'the end'}")
    columns = 2 if close_up else 1
    options: dict[str, Any] = {"column_widths": [0.6, 0.4], "horizontal_spacing": 0.02} if close_up else {}
    figure = _canvas(height, columns=columns, shared_yaxes=True, subplot_titles=titles[:columns], **options)
    positive = np.concatenate([grid.values[np.isfinite(grid.values) & (grid.values > 0)] for grid in grids])
    low, high = np.log10(np.quantile(positive, [0.01, 0.99])) if len(positive) else (-1.0, 0.0)
    low, high = (float(low), float(high)) if high - low > 0.2 else (float(low) - 0.1, float(high) + 0.1)
    names = [_escaped(name) for name in case.blocks]
    zero = broken = False
    for i, grid in enumerate(grids[:columns], 1):
        steps = ((grid.first + grid.last) // 2).tolist()
        with np.errstate(divide="ignore", invalid="ignore"):
            levels = np.log10(np.where(np.isfinite(grid.values) & (grid.values > 0), grid.values, np.nan)).astype(np.float32)
        figure.add_trace(
            go.Heatmap(
                x=steps,
                y=names,
                z=levels,
                customdata=None if blocks > LARGE else np.where(np.isfinite(grid.values), grid.values, np.nan).astype(np.float32),
                coloraxis="coloraxis",
                hoverongaps=False,
                hovertemplate="%{y}<br>step %{x:,}<br>"
                + (f"10^%{{z:.2f}}" if blocks > LARGE else "%{customdata:.4g}")  # noqa: F541
                + "<extra></extra>",
            ),
            row=1,
            col=i,
        )
        for where, colour, what in ((grid.values == 0, ZERO, "exactly 0"), (np.isinf(grid.values), BAD, "NaN or infinite")):
            if where.any():
                zero, broken = zero or colour == ZERO, broken or colour == BAD
                figure.add_trace(
                    go.Heatmap(
                        x=steps,
                        y=names,
                        z=np.where(where, 1.0, np.nan).astype(np.float32),
                        colorscale=[[0, colour], [1, colour]],
                        showscale=False,
                        hoverongaps=False,
                        hovertemplate=f"%{{y}}<br>step %{{x:,}}<br>{what}<extra></extra>",
                    ),
                    row=1,
                    col=i,
                )
    chosen = range(blocks) if blocks <= NAMES else np.unique(np.linspace(0, blocks - 1, NAMES).astype(int)).tolist()
    figure.update_yaxes(
        autorange="reversed",
        showgrid=False,
        tickmode="array",
        tickvals=[names[i] for i in chosen],
        ticktext=[_short(case.blocks[i]) for i in chosen],
        tickfont={"size": 11, "color": FAINT},
    )
    figure.update_xaxes(title_text="step", tickformat=",d")
    decades = list(range(math.ceil(low), math.floor(high) + 1))
    if len(decades) > 2:
        shown = decades[:: math.ceil(len(decades) / 6)]
        ticks, labels = [float(decade) for decade in shown], [power(10, decade) for decade in shown]
    else:
        steps_between = [m * 10.0**d for d in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
        ticks = [math.log10(value) for value in steps_between if low <= math.log10(value) <= high]
        if len(ticks) < 3:
            ticks = np.linspace(low, high, 4).tolist()
        labels = [number(10**tick) for tick in ticks]
    figure.update_layout(
        coloraxis={
            "colorscale": scale,
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "title": {"text": quantity, "side": "right", "font": {"color": FAINT}},
                "tickvals": ticks,
                "ticktext": labels,
                "tickfont": {"color": FAINT},
                "thickness": 12,
                "outlinewidth": 0,
            },
        },
    )
    if case.trouble is not None and whole.width:
        _mark(figure, case, row=1, col=1)
    caption = (
        f"The {quantity} tells {meaning}; blocks in order of depth, the first on top, colours on a logarithmic scale. {healthy}"
    )
    thinned = whole.width and int((whole.last - whole.first).max()) > 0
    caption += " Left, a column stands for several steps and shows their mean." if thinned else ""
    caption += " Light blue is exactly 0." if zero else ""
    caption += " Vermilion is NaN or infinite." if broken else ""
    return Figure(key, title, caption, _plot(figure), height, 680)


# -- activations ----------------------------------------------------------------------------------------------------------


def _activations(case: Case) -> Figure | None:
    import plotly.graph_objects as go

    if not case.magnitudes:
        return None
    figure = _canvas(
        250,
        columns=len(case.magnitudes),
        shared_yaxes=True,
        subplot_titles=[_short(each.block) for each in case.magnitudes],
        horizontal_spacing=0.03,
    )
    # The last bucket is everything above the largest edge.
    edges = np.r_[np.log2(MAGNITUDE_EDGES), MAGNITUDE_HIGH + 1]
    parts = [part[: len(edges)] for each in case.magnitudes for part in (each.before, each.after)]
    seen = np.flatnonzero((np.nan_to_num(np.stack(parts)) > SEEN).any(axis=0))
    low, high = (float(edges[seen[0]]) - 1.5, float(edges[seen[-1]]) + 0.5) if len(seen) else (-3.0, 3.0)
    spacing = max(1, round((high - low) / 4))
    ticks = list(range(math.ceil(low), math.floor(high) + 1, spacing))
    lost = []
    for i, each in enumerate(case.magnitudes, 1):
        after = "at the trouble" if case.trouble is not None else "in the end"
        for shares, name, colour in ((each.before, "before", SERIES[0]), (each.after, after, SERIES[1])):
            figure.add_trace(
                go.Scatter(
                    x=edges.tolist(),
                    y=_rounded(100 * shares[: len(edges)]),
                    name=name,
                    legendgroup=name,
                    showlegend=i == 1,
                    mode="lines",
                    line={"color": colour, "width": 2, "shape": "vh"},
                    hovertemplate="|y| up to 2^%{x}<br>%{y:.3g} %<extra>%{fullData.name}</extra>",
                ),
                row=1,
                col=i,
            )
        share = each.after[MAGNITUDE_NONFINITE]
        if share > 0:
            lost.append(f"{100 * share:.3g} % of {each.block}'s")
    figure.update_xaxes(range=[low, high], tickvals=ticks, ticktext=[f"2{raised(tick)}" for tick in ticks], tickangle=0)
    figure.update_yaxes(title_text="% of elements", row=1, col=1)
    figure.update_layout(showlegend=True, margin={"t": 56}, legend={"y": 1.12})
    one = case.magnitudes[0]
    caption = (
        f"How large the absolute values of the blocks' outputs are, sampled: before, in steps {one.before_steps[0]:,} to "
        f"{one.before_steps[1]:,}; after, in steps {one.after_steps[0]:,} to {one.after_steps[1]:,}. Each bucket is twice as wide "
        "as the one before. In a healthy run both lines are nearly the same, moved by a bucket or two at most."
    )
    zeros = [each.block for each in case.magnitudes if each.after[MAGNITUDE_ZERO] > 0.5]
    caption += f" More than half are exactly 0 in {listed(zeros)}." if zeros else ""
    large = [each.block for each in case.magnitudes if each.after[MAGNITUDE_LARGER] > SEEN]
    caption += f" Of {listed(large)} there are values above 2²⁰, a million, which are drawn as one bucket." if large else ""
    caption += f" Of the values after, {listed(lost)} are NaN or infinite and not drawn." if lost else ""
    return Figure("activations", "Activations before and after", caption, _plot(figure), 250, 210 * len(case.magnitudes))


# -- curves ---------------------------------------------------------------------------------------------------------------


def _curves(
    case: Case,
    key: str,
    title: str,
    panels: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    caption: str,
    unit: float = 1.0,
    rangemode: str = "normal",
) -> Figure | None:
    """Panels one above the other on the same steps: each has a title and (name of the curve, what to call it)."""
    there = [(heading, [(name, called) for name, called in names if name in case.curves]) for heading, names in panels]
    there = [(heading, names) for heading, names in there if names]
    if not there:
        return None
    height = 60 + 170 * len(there)
    figure = _canvas(height, rows=len(there), shared_xaxes=True, vertical_spacing=min(0.12, 40 / height))
    colours = iter(SERIES * 4)
    for row, (heading, names) in enumerate(there, 1):
        curves = [_scaled(case.curves[name], unit) for name, _ in names]
        for curve, (name, called) in zip(curves, names, strict=True):
            for trace in _line(curve, called, next(colours), rises=name == "learning_rate"):
                figure.add_trace(trace, row=row, col=1)
        figure.update_yaxes(title_text=heading, rangemode=rangemode, **_scale(curves), row=row, col=1)
        _mark(figure, case, row=row, col=1)
    figure.update_xaxes(title_text="step", tickformat=",d", row=len(there), col=1)
    if any(len(names) > 1 for _, names in there):
        figure.update_layout(showlegend=True)
    return Figure(key, title, caption, _plot(figure), height)


def _scaled(curve: Curve, unit: float) -> Curve:
    return curve if unit == 1 else Curve(curve.step, curve.low / unit, curve.mean / unit, curve.high / unit)


def _loss(case: Case) -> Figure | None:
    names = ["loss", *(name for name in case.run.scores if name != "loss" and "loss" in name.lower())][:3]
    called = [(name, name) for name in names]
    nonfinite = [name for name in names if name in case.run.scores and not np.isfinite(case.run.scores[name].values[-1:]).all()]
    caption = "The loss, as it was logged." if len(names) == 1 else "The losses, as they were logged."
    caption += f" {listed(nonfinite)} ended in NaN or infinity, where the line ends." if nonfinite else ""
    return _curves(case, "loss", "Loss", [("loss", called)], caption)


def _scores(case: Case) -> Figure | None:
    others = [name for name in case.run.scores if "loss" not in name.lower()]
    better = [name for name in others if direction(name) != "neither"]
    names = [*better, *(name for name in others if name not in better)][:SCORES]
    caption = "What else was logged."
    if len(others) > SCORES:
        caption = f"{SCORES} of {len(others):,} other values that were logged."
    return _curves(case, "scores", "Scores", [(_escaped(name, 24), [(name, name)]) for name in names], caption)


def _training(case: Case) -> Figure | None:
    panels = [("gradient norm", [("gradient_norm", "gradient norm")]), ("learning rate", [("learning_rate", "learning rate")])]
    if "loss_scale" in case.curves and float(np.nanmax(case.curves["loss_scale"].high)) != 1:
        panels.append(("loss scale", [("loss_scale", "loss scale")]))
    caption = (
        "The gradient norm of all parameters and the learning rate that met it. In a healthy run the norm falls or settles after "
        "the warm-up; spikes that come back down are usual, a level that stays higher is not."
    )
    return _curves(case, "training", "Gradient and learning rate", panels, caption)


def _memory(case: Case) -> Figure | None:
    panels = []
    for prefix, where in (("", "process"), ("device_", "device")):
        panels.append((f"{where}, GiB", [(f"{prefix}memory", f"{where}, in use"), (f"{prefix}memory_peak", f"{where}, peak")]))
        panels.append(("left, GiB", [(f"{prefix}memory_free", f"what the {where} could still have had")]))
    last = {name: case.curves[name].mean[-1] for name in ("memory", "memory_free") if name in case.curves}
    caption = "Memory of the training process."
    if len(last) == 2:
        caption += f" At the end {size(last['memory'])} were in use and {size(last['memory_free'])} could still be had."
    return _curves(case, "memory", "Memory", panels, caption, unit=2**30, rangemode="tozero")


def _blocks_memory(case: Case) -> Figure | None:
    """What an incident of memory says of the blocks."""
    import plotly.graph_objects as go

    rows = next((each.evidence.get("blocks") for each in case.incidents if each.kind == "out_of_memory"), None)
    found: list[tuple[str, float, float]] = []
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("activation_bytes"), (int, float)):
            saves = row.get("checkpoint_saves_bytes")
            saved = float(saves) if isinstance(saves, (int, float)) else 0.0
            found.append((str(row.get("block", "")), float(row["activation_bytes"]), saved))
    if not found:
        return None
    found = sorted(found, key=lambda row: -row[1])[:20][::-1]
    figure = _canvas(80 + 24 * len(found))
    bars = (
        ("activations", SERIES[0], [row[1] for row in found]),
        ("checkpointing would save", SERIES[2], [row[2] for row in found]),
    )
    for name, colour, sizes in bars:
        figure.add_trace(
            go.Bar(
                y=[_short(row[0]) for row in found],
                x=[each / 2**30 for each in sizes],
                orientation="h",
                name=name,
                marker={"color": colour},
                hovertemplate="%{y}<br>%{x:.3g} GiB<extra>%{fullData.name}</extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.25, showlegend=True)
    figure.update_xaxes(title_text="GiB", showgrid=True)
    figure.update_yaxes(showgrid=False)
    top = found[-1]
    caption = f"Memory that activations take, the largest {count(len(found), 'block')}: {top[0]} holds {size(top[1])}."
    return Figure("blocks_memory", "Which blocks hold the memory", caption, _plot(figure), int(figure.layout.height), 420)


def _step_time(case: Case) -> Figure | None:
    import plotly.graph_objects as go

    whole = case.curves.get("duration")
    if whole is None:
        return None
    figure = _canvas(240)
    rest = whole.mean * 1000
    for phase, colour in zip(PHASES, (SERIES[1], SERIES[0], SERIES[4], SERIES[2]), strict=True):
        curve = case.curves.get(f"{phase}_seconds")
        if curve is None:
            continue
        values = 1000 * np.interp(whole.step, curve.step, np.nan_to_num(curve.mean))
        rest = rest - values
        figure.add_trace(_area(whole, values, phase, colour, go))
    figure.add_trace(_area(whole, np.maximum(rest, 0.0), "everything else", SERIES[6], go))
    _mark(figure, case)
    figure.update_xaxes(title_text="step", tickformat=",d")
    top = float(np.nanquantile(whole.mean, 0.995)) * 1300
    figure.update_yaxes(title_text="ms", range=[0, top])
    figure.update_layout(showlegend=True)
    middle = float(np.nanmedian(whole.mean))
    caption = (
        f"What a step's time goes into; half of the steps took less than {duration(middle)}. The first step, in which blocks are "
        "found, may lie above."
    )
    return Figure("step_time", "Step time", caption, _plot(figure), 240)


def _area(whole: Curve, values: Floats, name: str, colour: str, go: Any) -> Any:
    return go.Scatter(
        x=np.round(whole.step).astype(np.int64),
        y=_rounded(values),
        name=name,
        mode="lines",
        stackgroup="one",
        line={"width": 0, "color": colour},
        fillcolor=colour,
        hovertemplate="step %{x:,}<br>%{y:.3g} ms<extra>%{fullData.name}</extra>",
    )


def _beside(report: Report) -> Figure | None:
    """The broken run's loss and gradients on those of the others."""
    others = report.others[:RUNS]
    if not others:
        return None
    figure = _canvas(400, rows=2, shared_xaxes=True, vertical_spacing=0.1)
    for row, name in enumerate(("loss", "gradient_norm"), 1):
        curves = []
        for i, case in enumerate((*others, report.case)):
            if name not in case.curves:
                continue
            curves.append(case.curves[name])
            broken = case is report.case
            *_, trace = _line(case.curves[name], case.name, BAD if broken and not case.healthy else SERIES[i % len(SERIES)])
            trace.update(legendgroup=str(i), showlegend=row == 1, line_width=2.4 if broken else 1.2)
            figure.add_trace(trace, row=row, col=1)
        figure.update_yaxes(title_text=name.replace("_", " "), **_scale(curves), row=row, col=1)
        _mark(figure, report.case, row=row, col=1)
    figure.update_xaxes(title_text="step", tickformat=",d", row=2, col=1)
    figure.update_layout(showlegend=True)
    left = len(report.others) - len(others)
    rest = f"; {left:,} more are not drawn" if left else ""
    caption = f"The run {report.case.name} beside {listed([case.name for case in others])}{rest}."
    return Figure("beside", "Beside the other runs", caption, _plot(figure), 400)
