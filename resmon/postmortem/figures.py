"""The report's figures: what of the case is drawn, and in which words. A caption is a sentence that says what to see."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from resmon.plots import heatmap
from resmon.plots.canvas import BAD, FAINT, GROUND, RULE, SERIES, Canvas, Figure, escaped, rounded, short, wrapped
from resmon.plots.curves import Curve, line, scale
from resmon.plots.measures import BY_NAME, Measure
from resmon.postmortem.case import Case
from resmon.postmortem.grids import Grid
from resmon.postmortem.report import Report
from resmon.quantities import count, duration, listed, raised, size
from resmon.records import MAGNITUDE_EDGES, MAGNITUDE_HIGH, MAGNITUDE_LARGER, MAGNITUDE_NONFINITE, MAGNITUDE_ZERO, PHASES, Floats
from resmon.scores.directions import direction

SCORES = 6  # that are drawn besides the loss
RUNS = 6  # that are drawn beside the broken one
SEEN = 0.001  # share of a bucket from which on the axis reaches to it


def figures(report: Report) -> dict[str, Figure]:
    """All that there is something to draw of, by key."""
    case = report.case
    made: Iterable[Figure | None] = (
        _timeline(report),
        _heat_map(case, "ratio", BY_NAME["branch_skip_ratio"], case.ratio),
        _heat_map(case, "gradient", BY_NAME["gradient_norm"], case.gradient),
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


def _mark(canvas: Canvas, case: Case, row: int = 1, column: int = 1) -> None:
    """Where it broke."""
    if case.trouble is not None:
        canvas.vertical(case.trouble, row, column)


# -- timeline -------------------------------------------------------------------------------------------------------------

_LANES = {"run": "run", "checkpoint": "checkpoints", "sign": "first signs", "finding": "findings", "incident": "incidents"}
_MARKS = {"run": "circle", "checkpoint": "diamond", "sign": "triangle-up", "finding": "square", "incident": "x"}


def _timeline(report: Report) -> Figure | None:
    case = report.case
    if not len(case.run.steps):
        return None
    lanes = [kind for kind in _LANES if any(event.kind == kind for event in report.timeline) or kind == "run"]
    canvas = Canvas(56 + 34 * len(lanes) + 40)
    first, last = int(case.run.steps[0]), int(case.run.steps[-1])
    canvas.add("scatter", x=[first, last], y=[_LANES["run"]] * 2, mode="lines", line={"color": FAINT, "width": 6}, hoverinfo="skip")
    for kind, colour in zip(_LANES, (FAINT, SERIES[2], SERIES[0], SERIES[1], BAD), strict=True):
        events = [event for event in report.timeline if event.kind == kind and event.step is not None]
        steps = [event.step for event in events]
        texts = [escaped(event.text) for event in events]
        if kind == "checkpoint":  # all of them, though the list names two
            named = [each for each in case.checkpoints if each.step is not None][-1000:]
            steps, texts = [each.step for each in named], [escaped(each.path) for each in named]
        canvas.add(
            "scatter",
            x=steps,
            y=[_LANES[kind]] * len(steps),
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": _MARKS[kind], "line": {"color": GROUND, "width": 1}},
            customdata=[wrapped(text) for text in texts],
            hovertemplate="step %{x:,}<br>%{customdata}<extra></extra>",
        )
    _mark(canvas, case)
    canvas.y(categoryorder="array", categoryarray=[_LANES[kind] for kind in reversed(lanes)], gridcolor=RULE, ticks="")
    canvas.x(title={"text": "step"}, tickformat=",d")
    ticks = np.unique(np.linspace(first, last, 6).astype(np.int64)).tolist()
    times = [time for step in ticks if (time := case.time_of(step)) is not None]
    if len(times) == len(ticks) and last > first:
        began = case.info.get("started") or times[0]
        # The same line in time, on top: an axis of its own needs a trace of its own.
        canvas.add(
            "scatter", x=[first, last], y=["run", "run"], mode="markers", marker={"opacity": 0}, hoverinfo="skip", xaxis="x2"
        )
        canvas.set(
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
    return Figure("timeline", "What happened when", caption, canvas.plot(), canvas.height, 520)


# -- heat maps ------------------------------------------------------------------------------------------------------------


def _heat_map(case: Case, key: str, measure: Measure, grids: tuple[Grid, Grid]) -> Figure | None:
    whole, close = grids
    if not case.blocks or not np.isfinite(np.r_[whole.values.ravel(), close.values.ravel()]).any():
        return None
    close_up = close.width > 0 and whole.width > 0
    titles = ("the whole run", f"the {close.width:,} steps up to {'the trouble' if case.trouble is not None else 'the end'}")
    columns = 2 if close_up else 1
    options: dict[str, Any] = {"widths": [0.6, 0.4], "horizontal_spacing": 0.02} if close_up else {}
    canvas = Canvas(heatmap.height(len(case.blocks)), columns=columns, shared_y=True, titles=titles[:columns], **options)
    zero = broken = False
    for i, grid in enumerate(grids[:columns], 1):
        zeros, bad = heatmap.cells(canvas, i, (grid.first + grid.last) // 2, case.blocks, grid.values)
        zero, broken = zero or zeros, broken or bad
    heatmap.rows(canvas, case.blocks)
    heatmap.colours(canvas, measure.label, measure.colours, heatmap.scale_of([grid.values for grid in grids]))
    if whole.width:
        _mark(canvas, case)
    caption = (
        f"The {measure.label} tells {measure.meaning}; blocks in order of depth, the first on top, colours on a logarithmic scale. "
        f"{measure.healthy}"
    )
    thinned = whole.width and int((whole.last - whole.first).max()) > 0
    caption += " Left, a column stands for several steps and shows their mean." if thinned else ""
    caption += " Light blue is exactly 0." if zero else ""
    caption += " Vermilion is NaN or infinite." if broken else ""
    return Figure(key, measure.title, caption, canvas.plot(), canvas.height, 680)


# -- activations ----------------------------------------------------------------------------------------------------------


def _activations(case: Case) -> Figure | None:
    if not case.magnitudes:
        return None
    canvas = Canvas(
        250,
        columns=len(case.magnitudes),
        shared_y=True,
        titles=[short(each.block) for each in case.magnitudes],
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
            canvas.add(
                "scatter",
                1,
                i,
                x=edges.tolist(),
                y=rounded(100 * shares[: len(edges)]),
                name=name,
                legendgroup=name,
                showlegend=i == 1,
                mode="lines",
                line={"color": colour, "width": 2, "shape": "vh"},
                hovertemplate="|y| up to 2^%{x}<br>%{y:.3g} %<extra>%{fullData.name}</extra>",
            )
        share = each.after[MAGNITUDE_NONFINITE]
        if share > 0:
            lost.append(f"{100 * share:.3g} % of {each.block}'s")
    canvas.x(range=[low, high], tickvals=ticks, ticktext=[f"2{raised(tick)}" for tick in ticks], tickangle=0)
    canvas.y(1, 1, title={"text": "% of elements"})
    canvas.set(showlegend=True, margin={"t": 56}, legend={"y": 1.12})
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
    return Figure("activations", "Activations before and after", caption, canvas.plot(), 250, 210 * len(case.magnitudes))


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
    canvas = Canvas(height, rows=len(there), shared_x=True, vertical_spacing=min(0.12, 40 / height))
    colours = iter(SERIES * 4)
    for row, (heading, names) in enumerate(there, 1):
        curves = [case.curves[name].over(unit) for name, _ in names]
        for curve, (name, called) in zip(curves, names, strict=True):
            line(canvas, curve, called, next(colours), row, rises=name == "learning_rate")
        canvas.y(row, title={"text": heading}, rangemode=rangemode, **scale(curves))
        _mark(canvas, case, row)
    canvas.x(len(there), title={"text": "step"}, tickformat=",d")
    if any(len(names) > 1 for _, names in there):
        canvas.set(showlegend=True)
    return Figure(key, title, caption, canvas.plot(), height)


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
    return _curves(case, "scores", "Scores", [(escaped(name, 24), [(name, name)]) for name in names], caption)


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
    canvas = Canvas(80 + 24 * len(found))
    bars = (
        ("activations", SERIES[0], [row[1] for row in found]),
        ("checkpointing would save", SERIES[2], [row[2] for row in found]),
    )
    for name, colour, sizes in bars:
        canvas.add(
            "bar",
            y=[short(row[0]) for row in found],
            x=[each / 2**30 for each in sizes],
            orientation="h",
            name=name,
            marker={"color": colour},
            hovertemplate="%{y}<br>%{x:.3g} GiB<extra>%{fullData.name}</extra>",
        )
    canvas.set(barmode="group", bargap=0.25, showlegend=True)
    canvas.x(title={"text": "GiB"}, showgrid=True)
    canvas.y(showgrid=False)
    top = found[-1]
    caption = f"Memory that activations take, the largest {count(len(found), 'block')}: {top[0]} holds {size(top[1])}."
    return Figure("blocks_memory", "Which blocks hold the memory", caption, canvas.plot(), canvas.height, 420)


def _step_time(case: Case) -> Figure | None:
    whole = case.curves.get("duration")
    if whole is None:
        return None
    canvas = Canvas(240)
    rest = whole.mean * 1000
    for phase, colour in zip(PHASES, (SERIES[1], SERIES[0], SERIES[4], SERIES[2]), strict=True):
        curve = case.curves.get(f"{phase}_seconds")
        if curve is None:
            continue
        values = 1000 * np.interp(whole.step, curve.step, np.nan_to_num(curve.mean))
        rest = rest - values
        _area(canvas, whole, values, phase, colour)
    _area(canvas, whole, np.maximum(rest, 0.0), "everything else", SERIES[6])
    _mark(canvas, case)
    canvas.x(title={"text": "step"}, tickformat=",d")
    top = float(np.nanquantile(whole.mean, 0.995)) * 1300
    canvas.y(title={"text": "ms"}, range=[0, top])
    canvas.set(showlegend=True)
    middle = float(np.nanmedian(whole.mean))
    caption = (
        f"What a step's time goes into; half of the steps took less than {duration(middle)}. The first step, in which blocks are "
        "found, may lie above."
    )
    return Figure("step_time", "Step time", caption, canvas.plot(), 240)


def _area(canvas: Canvas, whole: Curve, values: Floats, name: str, colour: str) -> None:
    canvas.add(
        "scatter",
        x=np.round(whole.step).astype(np.int64).tolist(),
        y=rounded(values),
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
    canvas = Canvas(400, rows=2, shared_x=True, vertical_spacing=0.1)
    for row, name in enumerate(("loss", "gradient_norm"), 1):
        curves = []
        for i, case in enumerate((*others, report.case)):
            if name not in case.curves:
                continue
            curves.append(case.curves[name])
            broken = case is report.case
            colour = BAD if broken and not case.healthy else SERIES[i % len(SERIES)]
            grouped: dict[str, Any] = {"legendgroup": str(i), "showlegend": row == 1}
            line(canvas, case.curves[name], case.name, colour, row, band=False, width=2.4 if broken else 1.2, **grouped)
        canvas.y(row, title={"text": name.replace("_", " ")}, **scale(curves))
        _mark(canvas, report.case, row)
    canvas.x(2, title={"text": "step"}, tickformat=",d")
    canvas.set(showlegend=True)
    left = len(report.others) - len(others)
    rest = f"; {left:,} more are not drawn" if left else ""
    caption = f"The run {report.case.name} beside {listed(case.name for case in others)}{rest}."
    return Figure("beside", "Beside the other runs", caption, canvas.plot(), 400)
