"""What the page draws of a run. All figures over steps have the same margins and range, so that one reads straight down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resmon.page.course import Cells, Course
from resmon.page.sight import Sight
from resmon.plots import heatmap
from resmon.plots.canvas import (
    BAD,
    FAINT,
    GROUND,
    INK,
    RULE,
    SERIES,
    WARN,
    Canvas,
    Figure,
    escaped,
    packed,
    rounded,
    short,
    shorter,
    wrapped,
)
from resmon.plots.curves import Curve, line, scale
from resmon.plots.measures import BY_NAME, Measure
from resmon.quantities import count, listed, number, raised
from resmon.records import MAGNITUDE_HIGH, MAGNITUDE_LARGER, MAGNITUDE_LOW, MAGNITUDE_NONFINITE, MAGNITUDE_ZERO, Floats

LOSSES, SCORES = 3, 4  # names that are drawn
STANDS_OUT, AT_LEAST = 3.0, 0.1  # times the usual range of a column, and decades at least
EVENTS = 500  # marks that are drawn of a kind
NARROW = 11  # characters of a block's name on a phone
OPACITY = "rgba(128,128,128,0.22)"


@dataclass(frozen=True, slots=True)
class Seen:
    """One run as it is drawn: its name, its course over the range, whether it is the one that another is compared with."""

    name: str
    sight: Sight
    course: Course

    @property
    def blocks(self) -> list[str]:
        return [site.place for site in self.course.sites]


@dataclass(frozen=True, slots=True)
class Look:
    """What of a run is looked at."""

    measure: Measure
    first: int
    last: int
    at: int  # the step that details are of
    block: int | None
    narrow: bool
    name: int  # characters of the longest block's name

    @property
    def margin(self) -> dict[str, int]:
        return {"l": self.left(NARROW), "r": 8, "t": 8, "b": 28} if self.narrow else {"l": self.left(24), "r": 110, "t": 8, "b": 28}

    def half(self, of: int) -> dict[str, int]:
        """Where figures of two runs stand side by side."""
        return self.margin if of == 1 or self.narrow else self.margin | {"l": self.left(14), "r": 96}

    def left(self, longest: int) -> int:
        """Pixels that names of so many characters need."""
        return max(80, 22 + round(6.3 * min(self.name, longest)))


def figures(seen: Sequence[Seen], look: Look) -> list[Figure]:
    """All of a run, or of two side by side."""
    made: list[Figure | None] = [*(_events(each, look, i, len(seen)) for i, each in enumerate(seen)), _loss(seen, look)]
    maps = [shown(each.course.cells(look.measure)) for each in seen]
    scale_ = heatmap.scale_of([values for values, _ in maps], look.measure.scale == "linear")
    most = max(len(each.blocks) for each in seen)
    made += [
        _heat(each, look, values, cells, scale_, i, len(seen), most)
        for i, (each, (values, cells)) in enumerate(zip(seen, maps, strict=True))
    ]
    made += [_depth(seen, look)]
    if look.block is not None:
        made += [_block(seen, look, look.block)]
        made += [_magnitudes(each, look, look.block, i, len(seen)) for i, each in enumerate(seen)]
    made += [_training(seen, look), _scores(seen, look)]
    return [figure for figure in made if figure is not None]


def _steps(canvas: Canvas, look: Look, row: int | None = None) -> None:
    """The axis of steps, as all figures have it."""
    margin = max(0.5, (look.last - look.first) * 0.002)
    canvas.x(
        row,
        range=[look.first - margin, look.last + margin],
        tickformat=",d",
        tickprefix="step ",
        showtickprefix="first",
        automargin=False,
        nticks=4 if look.narrow else 8,
        fixedrange=False,
    )
    canvas.y(fixedrange=True, automargin=False)
    canvas.set(dragmode=False if look.narrow else "zoom", hovermode="closest")


def _marks(canvas: Canvas, sights: Sequence[Sight], look: Look, rows: int = 1, at: bool = True) -> None:
    """Where incidents were, of two runs in the colour of each, and the step that is looked at."""
    for row in range(1, rows + 1):
        for i, sight in enumerate(sights):
            for step in sorted({each.step for each in sight.incidents if each.step is not None})[:20]:
                canvas.vertical(step, row, colour=BAD if len(sights) == 1 else SERIES[i])
        if at:
            canvas.vertical(look.at, row, colour=FAINT, width=1, dash="solid")


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of a panel: whose it is, what it is called, how it is drawn."""

    whose: Seen
    what: str
    curve: Curve
    colour: str
    dash: str = "solid"


# -- what happened --------------------------------------------------------------------------------------------------------


def _events(seen: Seen, look: Look, i: int, of: int) -> Figure | None:
    sight = seen.sight
    lanes: list[str] = []
    if sight.checkpoints:
        lanes.append("checkpoints")
    if sight.findings:
        lanes.append("findings")
    if any(incident.step is not None for incident in sight.incidents):
        lanes.append("incidents")
    if not lanes:
        return None
    canvas = Canvas(40 + 28 * len(lanes), margin=look.margin)
    if "checkpoints" in lanes:
        marks = sight.checkpoints[-EVENTS:]
        _lane(canvas, "checkpoints", [each.step or 0 for each in marks], [each.path for each in marks], SERIES[2], "diamond", 8)
    if "findings" in lanes:
        shown = sorted(sight.findings, key=lambda each: (not each.lasts, each.severity != "page", -each.opened_step))[:EVENTS]
        for finding in shown:
            end = finding.step if finding.state == "closed" else seen.course.newest
            colour = BAD if finding.severity == "page" else WARN
            canvas.add(
                "scatter",
                x=[finding.opened_step, max(end, finding.opened_step)],
                y=["findings"] * 2,
                mode="lines",
                line={"color": colour, "width": 7},
                opacity=0.6 if finding.lasts else 0.35,
                hoverinfo="skip",
            )
        for severity, colour in (("ticket", WARN), ("page", BAD)):
            some = [each for each in shown if each.severity == severity]
            _lane(canvas, "findings", [each.opened_step for each in some], [each.summary for each in some], colour, "square", 9)
    if "incidents" in lanes:
        broke = [each for each in sight.incidents if each.step is not None][-EVENTS:]
        _lane(canvas, "incidents", [each.step or 0 for each in broke], [each.summary for each in broke], BAD, "x", 11)
    canvas.y(categoryorder="array", categoryarray=lanes, gridcolor=RULE, ticks="", range=[-0.6, len(lanes) - 0.4])
    _steps(canvas, look)
    _marks(canvas, [sight], look, at=False)
    caption = "A finding is drawn from where it opened to where it closed."
    title = "What happened when" if of == 1 else f"What happened when: {seen.name}"
    return Figure("events" if i == 0 else "events-2", title, caption, canvas.plot(), canvas.height)


def _lane(canvas: Canvas, lane: str, steps: list[int], texts: list[str], colour: str, symbol: str, size: int) -> None:
    canvas.add(
        "scatter",
        x=steps,
        y=[lane] * len(steps),
        mode="markers",
        marker={"color": colour, "size": size, "symbol": symbol, "line": {"color": GROUND, "width": 1}},
        customdata=[wrapped(escaped(text, 400)) for text in texts],
        hovertemplate="step %{x:,}<br>%{customdata}<extra></extra>",
    )


# -- lines ----------------------------------------------------------------------------------------------------------------


def _panels(
    key: str,
    title: str,
    caption: str,
    seen: Sequence[Seen],
    look: Look,
    panels: Sequence[tuple[str, list[Line]]],
) -> Figure | None:
    """Lines in panels one above the other: (what the axis is called, [(whose, what, curve, colour)])."""
    panels = [(heading, lines) for heading, lines in panels if lines]
    if not panels:
        return None
    height = 48 + (150 if len(panels) < 3 else 120) * len(panels) + (16 if any(len(lines) > 1 for _, lines in panels) else 0)
    canvas = Canvas(height, len(panels), vertical_spacing=min(0.12, 36 / height), shared_x=True, margin=look.margin)
    legend: set[str] = set()
    for row, (heading, lines) in enumerate(panels, 1):
        for each in lines:
            name = f"{short(each.whose.name)} {each.what}".strip() if len(seen) > 1 else each.what
            new = len(lines) > 1 and name not in legend
            rises = heading == "learning rate"
            line(canvas, each.curve, name, each.colour, row, rises=rises, dash=each.dash, showlegend=new)
            legend |= {name} if new else set()
        canvas.y(row, title={"text": heading, "standoff": 8}, **scale([each.curve for each in lines]))
    _steps(canvas, look)
    _marks(canvas, [each.sight for each in seen], look, len(panels))
    if len(seen) > 1 and any(incident.step is not None for each in seen for incident in each.sight.incidents):
        caption += " Vertical lines are incidents, in the colour of their run."
    if legend:
        canvas.set(showlegend=True, margin={"t": 28}, legend={"traceorder": "normal"})
    return Figure(key, title, caption, canvas.plot(), height)


def _loss(seen: Sequence[Seen], look: Look) -> Figure | None:
    lines: list[Line] = []
    for each in seen:
        names = [name for name in each.course.scores() if name == "loss" or "loss" in name.lower()]
        for name in sorted(names, key=lambda name: name != "loss")[: LOSSES if len(seen) == 1 else 1]:
            curve = each.course.score(name)
            if curve is not None:
                what = escaped(name, 24) if len(seen) == 1 else ""
                lines.append(Line(each, what, curve, SERIES[len(lines) % len(SERIES)]))
    several = len(lines) > 1
    heading = "loss" if several or not lines else lines[0].what
    caption = "The line is the mean of each column's steps, the grey band what they ranged over."
    return _panels("loss", "Loss", caption, seen, look, [(heading, lines)])


def _training(seen: Sequence[Seen], look: Look) -> Figure | None:
    panels = []
    for name, heading, unit in (
        ("gradient_norm", "gradient norm", 1.0),
        ("learning_rate", "learning rate", 1.0),
        ("duration", "step, ms", 1e-3),
    ):
        lines = [
            Line(each, heading if len(seen) == 1 else "", curve.over(unit), SERIES[i if len(seen) > 1 else 0])
            for i, each in enumerate(seen)
            if (curve := each.course.run(name)) is not None
        ]
        panels.append((heading, lines))
    caption = "The gradient norm of all parameters, the learning rate that met it, and how long a step took."
    return _panels("training", "Gradient, learning rate, step time", caption, seen, look, panels)


def _scores(seen: Sequence[Seen], look: Look) -> Figure | None:
    names = list(dict.fromkeys(name for each in seen for name in each.course.scores() if "loss" not in name.lower()))
    panels = []
    for name in names[:SCORES]:
        lines = [
            Line(each, "" if len(seen) > 1 else escaped(name, 24), curve, SERIES[i if len(seen) > 1 else 2])
            for i, each in enumerate(seen)
            if (curve := each.course.score(name)) is not None
        ]
        panels.append((escaped(name, 16), lines))
    left = len(names) - SCORES
    caption = "What else was logged." if left <= 0 else f"{SCORES} of {len(names)} other values that were logged."
    return _panels("scores", "Scores", caption, seen, look, panels)


# -- blocks ---------------------------------------------------------------------------------------------------------------


def shown(cells: Cells) -> tuple[Floats, Cells]:
    """The number that a cell shows: its mean, or the step that stands out of it; infinite where anything was not finite.

    A step stands out where what its column ranges over is far more than the block's columns usually do. It is the end that is
    further from the columns beside, as the step itself has moved the mean of its own.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        low, mean, high = (np.log10(each) for each in (cells.low, cells.mean, cells.high))
        spread = np.where(cells.low == 0, np.where(cells.high == 0, 0.0, np.inf), high - low)
        usual = np.array([np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else 0.0 for row in spread])
        out = spread > np.maximum(STANDS_OUT * usual[:, None], AT_LEAST)
        sides = np.stack([np.roll(mean, 1, axis=1), np.roll(mean, -1, axis=1)])
        sides[0, :, :1] = sides[1, :, -1:] = np.nan
        sides[~np.isfinite(sides)] = np.nan
        beside = np.where(np.isnan(sides[0]), sides[1], np.where(np.isnan(sides[1]), sides[0], sides.mean(axis=0)))
        upwards = ~(beside - low > high - beside)
        values = np.where(out, np.where(upwards, cells.high, cells.low), cells.mean)
    return np.where(cells.nonfinite, np.inf, values), cells


def _heat(seen: Seen, look: Look, values: Floats, cells: Cells, scale_: heatmap.Scale, i: int, of: int, most: int) -> Figure | None:
    blocks = seen.blocks
    if not blocks or not values.shape[1]:
        return None
    measure, linear = look.measure, look.measure.scale == "linear"
    height = min(max(heatmap.height(most), 110 + 4 * most), 420 if look.narrow else 620)
    canvas = Canvas(height, margin=look.half(of))
    each = (height - 36) / len(blocks)  # pixels of a row
    middle = (cells.first + np.minimum(cells.last, max(seen.course.newest, int(cells.first[-1])))) // 2
    # A column of the screen begins where its steps do: plotly takes the places of the edges, one more than the columns.
    zero, broken = heatmap.cells(canvas, 1, middle, blocks, values, linear=linear)
    heatmap.rows(canvas, blocks, NARROW if look.narrow else 24 if of == 1 else 14, min(heatmap.NAMES, (height - 48) // 15))
    canvas.x(title={"text": ""})
    heatmap.colours(canvas, measure.label, measure.colours, scale_, linear=linear)
    if look.narrow:
        canvas.set(coloraxis={"showscale": False})
    _steps(canvas, look)
    _marks(canvas, [seen.sight], look)
    if look.block is not None and look.block < len(blocks):
        row: dict[str, Any] = {"xref": "x domain", "yref": "y"}
        if each > 8:
            row |= {"type": "rect", "x0": 0, "x1": 1, "y0": look.block - 0.5, "y1": look.block + 0.5}
            canvas.layout["shapes"].append(row | {"line": {"color": INK, "width": 1.5}})
        else:  # a frame would hide so thin a row: marks at both of its ends
            row |= {"type": "line", "y0": look.block, "y1": look.block, "line": {"color": INK, "width": 5}}
            canvas.layout["shapes"] += [row | {"x0": -0.014, "x1": 0}, row | {"x0": 1, "x1": 1.014}]
    caption = f"The {measure.label} tells {measure.meaning}. {measure.healthy}"
    if seen.course.width > 1:
        caption += (
            f" A column stands for {seen.course.width:,} steps and shows their mean, or the one step that stands out from it, so "
            "that no spike is lost."
        )
    if i > 0:  # what the first one's says is not said again
        caption = ""
    caption += " Light blue is exactly 0." if zero else ""
    caption += " Vermilion is NaN or infinite." if broken else ""
    if look.narrow and i == 0:
        caption += f" Colours from {_end(scale_[0], linear)} (dark) to {_end(scale_[1], linear)} (light)."
    title = measure.title if of == 1 else f"{measure.title}: {seen.name}"
    return Figure("heat" if i == 0 else "heat-2", title, caption.strip(), canvas.plot(), canvas.height)


def _end(value: float, linear: bool) -> str:
    return number(value if linear else 10**value)


def _at(course: Course, measure: Measure, step: int) -> Floats:
    """A quantity of all blocks in the column of a step."""
    cells = course.cells(measure)
    place = min(max(0, (step - course.begin) // course.width), max(0, cells.mean.shape[1] - 1))
    return cells.mean[:, place] if cells.mean.shape[1] else np.full(len(course.sites), np.nan)


def _depth(seen: Sequence[Seen], look: Look) -> Figure | None:
    """The stream through the depth at one step: what comes to each block and what the block adds."""
    most = max(len(each.blocks) for each in seen)
    if not most:
        return None
    names = shorter(max((each.blocks for each in seen), key=len), 12)
    below = 27 + 4 * min(12, max(len(name) for name in names))  # which stand aslant, and are markup
    margin = look.margin | {"t": 28, "b": below}
    canvas = Canvas(296 + below, 2, heights=[0.62, 0.38], vertical_spacing=0.08, shared_x=True, margin=margin)
    curves: list[Curve] = []
    ratios: list[Curve] = []
    for i, each in enumerate(seen):
        blocks = each.blocks
        skip, branch, ratio = (_at(each.course, BY_NAME[name], look.at) for name in ("skip_rms", "branch_rms", "branch_skip_ratio"))
        places = list(range(len(blocks)))
        told = [escaped(name, 300) for name in blocks]
        whose = f"{short(each.name)}: " if len(seen) > 1 else ""
        stream, adds = (SERIES[0], SERIES[1]) if i == 0 else (SERIES[2], SERIES[3])
        ratios.append(Curve(np.arange(len(blocks)).astype(float), ratio, ratio, ratio))
        curves.append(Curve(np.arange(len(blocks)).astype(float), np.fmin(skip, branch), skip, np.fmax(skip, branch)))
        hover = "%{customdata}<br>%{y:.4g}<extra>%{fullData.name}</extra>"
        canvas.add(
            "bar",
            x=places,
            y=rounded(branch),
            name=f"{whose}what the block adds",
            marker={"color": adds},
            customdata=told,
            hovertemplate=hover,
        )
        models = [site.model for site in each.course.sites]
        gaps = [k for k in range(1, len(models)) if models[k] != models[k - 1]]  # no stream leads from one model to the next
        canvas.add(
            "scatter",
            x=np.insert(np.array(places, float), gaps, [k - 0.5 for k in gaps]).tolist(),
            y=rounded(np.insert(skip, gaps, np.nan)),
            name=f"{whose}the stream that comes to it",
            mode="lines+markers",
            line={"color": stream, "width": 2},
            marker={"size": 5, "color": stream},
            customdata=np.insert(np.array(told, object), gaps, "").tolist(),
            hovertemplate=hover,
        )
        canvas.add(
            "bar",
            2,
            x=places,
            y=rounded(ratio),
            name=f"{whose}branch against skip",
            marker={"color": adds},
            customdata=told,
            hovertemplate=hover,
            showlegend=False,
        )
    canvas.y(1, title={"text": "rms", "standoff": 8}, **_from_zero(scale(curves)))
    canvas.y(2, title={"text": "branch/skip", "standoff": 8}, nticks=4, **_from_zero(scale(ratios)))
    canvas.y(fixedrange=True, automargin=False)
    chosen = np.unique(np.linspace(0, most - 1, min(most, 8 if look.narrow else 24)).astype(int)).tolist()
    canvas.x(
        range=[-0.6, most - 0.4],
        fixedrange=True,
        tickmode="array",
        tickvals=chosen,
        ticktext=[names[i] for i in chosen],
        automargin=False,
    )
    canvas.x(2, tickangle=-40)
    canvas.set(showlegend=True, bargap=0.35, barmode="group", dragmode=False, hovermode="closest")
    if look.block is not None and look.block < most:
        for row in (1, 2):
            suffix = "" if row == 1 else "2"
            shape: dict[str, Any] = {"type": "rect", "xref": f"x{suffix}", "x0": look.block - 0.5, "x1": look.block + 0.5}
            shape |= {"yref": f"y{suffix} domain", "y0": 0, "y1": 1, "fillcolor": OPACITY, "line": {"width": 0}, "layer": "below"}
            canvas.layout["shapes"].append(shape)
    caption = (
        f"The residual stream on its way through the blocks, left to right, at step {look.at:,}: how large it is when it comes to "
        "a block, what the block adds to it, and below that, as a share, where the network does its work."
    )
    return Figure("depth", "The stream through the depth", caption, canvas.plot(), canvas.height)


def _from_zero(axis: dict[str, Any]) -> dict[str, Any]:
    return axis if axis["type"] == "log" else {"type": "linear", "rangemode": "tozero"}


def _block(seen: Sequence[Seen], look: Look, block: int) -> Figure | None:
    panels = []
    together = (
        ("rms", (("skip_rms", "skip"), ("branch_rms", "branch"))),
        ("branch/skip", (("branch_skip_ratio", "branch/skip"),)),
        ("gradient norm", (("gradient_norm", "gradient of its parameters"), ("output_gradient_norm", "gradient at its output"))),
    )
    for panel, (heading, names) in enumerate(together):
        lines: list[Line] = []
        for run, each in enumerate(seen):
            if block >= len(each.blocks):
                continue
            for second, (name, what) in enumerate(names):
                curve = _of_block(each.course, BY_NAME[name], block)
                if curve is None:
                    continue
                if len(seen) > 1:  # colours tell the runs, dots what is second
                    lines.append(Line(each, "", curve, SERIES[run], "dot" if second else "solid"))
                else:
                    # One legend tells both pairs, so each has colours of its own.
                    lines.append(Line(each, what if len(names) > 1 else "", curve, SERIES[panel + second]))
        panels.append((heading, lines))
    name = next((each.blocks[block] for each in seen if block < len(each.blocks)), "")
    nonfinite = [each for each in seen if block < len(each.blocks) and _broken(each.course, block)]
    caption = "What comes to the block and what it adds; their ratio; its gradients."
    caption += " Dotted are what it adds, and the gradient at its output." if len(seen) > 1 else ""
    if nonfinite:
        caption += " It was NaN or infinite in some steps, which the lines leave out."
    return _panels("block", f"Block {name}", caption, seen, look, panels)


def _of_block(course: Course, measure: Measure, block: int) -> Curve | None:
    cells = course.cells(measure)
    there = np.isfinite(cells.mean[block])
    if not there.any():
        return None
    middle = (cells.first + np.minimum(cells.last, course.newest)) / 2
    return Curve(middle[there], cells.low[block][there], cells.mean[block][there], cells.high[block][there])


def _broken(course: Course, block: int) -> bool:
    return any(bool(course.cells(BY_NAME[name]).nonfinite[block].any()) for name in ("skip_rms", "gradient_norm"))


def _magnitudes(seen: Seen, look: Look, block: int, i: int, of: int) -> Figure | None:
    """The histogram of a block's activations over time."""
    if block >= len(seen.blocks):
        return None
    first, last, shares = seen.course.magnitudes(block)
    if not np.isfinite(shares).any():
        return None
    middle = (first + np.minimum(last, seen.course.newest)) // 2
    finite = shares[: MAGNITUDE_LARGER + 1]
    exponents = np.arange(MAGNITUDE_LOW, MAGNITUDE_HIGH + 2)
    inside = np.flatnonzero((np.nan_to_num(finite) > 1e-4).any(axis=1))
    low, high = (max(0, int(inside[0]) - 1), min(len(exponents), int(inside[-1]) + 2)) if len(inside) else (0, len(exponents))
    canvas = Canvas(260, margin=look.half(of))
    percent = np.where(finite > 0, 100 * finite, np.nan)[low:high]
    canvas.add(
        "heatmap",
        x=middle.tolist(),
        y=exponents[low:high].tolist(),
        z=packed(np.log10(percent)),
        customdata=packed(percent),
        colorscale="Viridis",
        zmin=-1.0,
        zmax=2.0,
        showscale=not look.narrow,
        colorbar={
            "title": {"text": "% of elements", "side": "right", "font": {"color": FAINT}},
            "tickvals": [-1, 0, 1, 2],
            "ticktext": ["0.1", "1", "10", "100"],
            "tickfont": {"color": FAINT},
            "thickness": 12,
            "outlinewidth": 0,
        },
        hoverongaps=False,
        hovertemplate="step %{x:,}<br>|y| up to 2^%{y}<br>%{customdata:.3g} %<extra></extra>",
    )
    spacing = max(1, round((high - low) / 5))
    ticks = exponents[low:high:spacing].tolist()
    canvas.y(title={"text": "|y|", "standoff": 8}, tickvals=ticks, ticktext=[f"2{raised(tick)}" for tick in ticks], showgrid=False)
    _steps(canvas, look)
    _marks(canvas, [seen.sight], look)
    caption = "How large the absolute values of the block's outputs are, sampled; a band that widens or wanders is what to look at."
    newest = shares[:, np.isfinite(shares[0])]
    for place, what in ((MAGNITUDE_ZERO, "exactly 0"), (MAGNITUDE_NONFINITE, "NaN or infinite")):
        if newest.shape[1] and newest[place, -1] > 0.001:
            caption += f" Of the newest, {100 * newest[place, -1]:.3g} % are {what}, which is not drawn."
    title = "Its activations" if of == 1 else f"Its activations: {seen.name}"
    return Figure("magnitudes" if i == 0 else "magnitudes-2", title, caption if i == 0 else "", canvas.plot(), canvas.height)


def differing(seen: Sequence[Seen]) -> str:
    """How the blocks of two runs differ, as a sentence; empty where they do not."""
    if len(seen) < 2 or seen[0].blocks == seen[1].blocks:
        return ""
    mine, theirs = (set(each.blocks) for each in seen)
    only = [
        f"{each.name} alone has {listed(sorted(own))}"
        for each, own in zip(seen, (mine - theirs, theirs - mine), strict=True)
        if own
    ]
    return f"{'; '.join(only)}." if only else f"The {count(len(mine), 'block')} of both stand in another order."
