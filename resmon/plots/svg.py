"""A figure as an SVG picture, drawn here: for where no script runs, as in a notebook that was saved, sent or printed.

It draws what the canvas has of lines, marks, heat maps, their colour bar and vertical lines, from the same data that plotly.js is
given; what else a figure may hold is left out. A heat map is one small image with a pixel a cell, so that the picture stays small
however many cells there are. Nothing in it is a script, and every text is escaped.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from resmon.plots.canvas import FONT, Data
from resmon.plots.theme import coloured, light, unpacked
from resmon.quantities import number, power

# plotly.js' own scales, from 0 to 1 in equal steps.
SCALES: Mapping[str, tuple[str, ...]] = {
    "Viridis": tuple(
        "#440154 #48186a #472d7b #424086 #3b528b #33638d #2c728e #26828e #21918c "
        "#1fa088 #28ae80 #3fbc73 #5ec962 #84d44b #addc30 #d8e219 #fde725".split()
    ),
    "Cividis": tuple(
        "#00204c #002a66 #00346e #273f6c #3c4a6b #4c556b #5b5f6d #686a70 #757575 #838178 #928c78 #a19876 #b0a572 #c0b16d #d1bf66 "
        "#e1cc5c #f3db4f #ffe945".split()
    ),
}
SHADES = 96  # colours of a heat map's image, which compresses the better the fewer they are
TICKS = 5
CHARACTER = 6.2  # pixels of one at the size of axes' labels

Pixels = npt.NDArray[np.uint8]


def svg(plot: Data, width: int, label: str) -> str:
    """The picture of a figure, so many pixels wide; `label` says to those who cannot see it what it shows."""
    layout = coloured(plot["layout"])
    height = int(layout["height"])
    ink, ground = light()["--ink"], light()["--ground"]
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'font-family="{FONT}" font-size="12" fill="{ink}"><title>{html.escape(label)}</title>'
            f'<rect width="{width}" height="{height}" fill="{ground}"/>'
        )
    ]
    panels = _panels(layout, coloured(plot["data"]), width, height)
    for panel in panels:
        parts += panel.draw()
    if layout["showlegend"]:
        parts += _legend(coloured(plot["data"]), panels[0])
    if layout.get("coloraxis"):
        last = panels[-1]
        parts += _bar(layout["coloraxis"], last.right + 14, last.top, last.bottom)
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True)
class _Panel:
    """One pair of axes, in pixels, with its traces."""

    layout: Data
    x: Data
    y: Data
    traces: Sequence[Data]
    left: float
    right: float
    top: float
    bottom: float
    shapes: Sequence[Data]

    def draw(self) -> list[str]:
        names = next((trace["y"] for trace in self.traces if trace["type"] == "heatmap"), None)
        across = _linear(self._x_range(), (self.left, self.right))
        if names is not None:
            down = _linear((-0.5, len(names) - 0.5), (self.top, self.bottom))
            inside = [self._cells(trace, across) for trace in self.traces if trace["type"] == "heatmap"]
            marks = [(down(names.index(name)), text) for name, text in zip(self.y["tickvals"], self.y["ticktext"], strict=True)]
            rules: list[str] = []
        else:
            low, high = self._y_range()
            down = _linear((low, high), (self.bottom, self.top))
            lines = [trace for trace in self.traces if trace["type"] == "scatter"]
            inside = _scatters(lines, across, lambda value: down(_place(value, self._is_log)))
            marks = [(down(place), text) for place, text in _ticks(low, high, self._is_log)]
            rule = light()["--rule"]
            rules = [f'<path d="M{self.left:.1f} {at:.1f}H{self.right:.1f}" stroke="{rule}"/>' for at, _ in marks]
        return [*rules, *inside, *self._verticals(across), *self._axes(across, marks)]

    @property
    def _is_log(self) -> bool:
        return bool(self.y.get("type") == "log")

    def _x_range(self) -> tuple[float, float]:
        if "range" in self.x:
            return self.x["range"][0], self.x["range"][1]
        every = [value for trace in self.traces for value in trace["x"]] or [0, 1]
        return min(every) - 0.5, max(every) + 0.5

    def _y_range(self) -> tuple[float, float]:
        if "range" in self.y:
            return self.y["range"][0], self.y["range"][1]
        every = [value for trace in self.traces for value in trace["y"] if value is not None]
        places = [_place(value, self._is_log) for value in every if not (self._is_log and value <= 0)] or [0.0, 1.0]
        low, high = min(places), max(places)
        margin = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
        return low - margin, high + margin

    def _cells(self, trace: Data, across: Callable[[float], float]) -> str:
        """A heat map's image, first row on top; what has no number is not painted."""
        values = unpacked(trace["z"])
        steps = trace["x"]
        half = (steps[-1] - steps[0]) / (len(steps) - 1) / 2 if len(steps) > 1 else 0.5
        left, right = across(steps[0] - half), across(steps[-1] + half)
        left, right = max(left, self.left), min(right, self.right)
        if "coloraxis" in trace:
            axis = self.layout["coloraxis"]
            low, high = axis["cmin"], axis["cmax"]
            with np.errstate(invalid="ignore"):
                shade = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (SHADES - 1)
            colours = _shades(axis["colorscale"])
        else:
            shade, colours = np.where(np.isfinite(values), 0.0, np.nan), [trace["colorscale"][0][1]]
        known = np.isfinite(shade)
        indices = np.where(known, np.where(known, shade, 0).round() + 1, 0).astype(np.uint8)
        return (
            f'<image x="{left:.1f}" y="{self.top:.1f}" width="{right - left:.1f}" height="{self.bottom - self.top:.1f}" '
            f'preserveAspectRatio="none" style="image-rendering:pixelated" href="data:image/png;base64,{_png(indices, colours)}"/>'
        )

    def _verticals(self, across: Callable[[float], float]) -> list[str]:
        made = []
        for shape in self.shapes:
            at, line = across(shape["x0"]), shape["line"]
            if self.left <= at <= self.right:
                dash = ' stroke-dasharray="2 3"' if line["dash"] == "dot" else ""
                stroke = f'stroke="{line["color"]}" stroke-width="{line["width"]}"{dash}'
                made.append(f'<path d="M{at:.1f} {self.top:.1f}V{self.bottom:.1f}" {stroke}/>')
        return made

    def _axes(self, across: Callable[[float], float], marks: Sequence[tuple[float, str]]) -> list[str]:
        faint, rule = light()["--faint"], light()["--rule"]
        made = [f'<path d="M{self.left:.1f} {self.top:.1f}V{self.bottom:.1f}H{self.right:.1f}" fill="none" stroke="{rule}"/>']
        for at, text in marks:
            where = f'x="{self.left - 6:.1f}" y="{at + 4:.1f}" text-anchor="end"'
            made.append(f'<text {where} font-size="11" fill="{faint}">{text}</text>')
        heading = self.y.get("title", {}).get("text")
        if heading:
            middle = (self.top + self.bottom) / 2
            made.append(
                f'<text x="14" y="{middle:.1f}" text-anchor="middle" fill="{faint}" transform="rotate(-90 14 {middle:.1f})">'
                f"{heading}</text>"
            )
        if self.x.get("showticklabels", True):
            low, high = self._x_range()
            for place, _ in _ticks(low, high, False):
                if place == round(place):
                    made.append(
                        f'<text x="{across(place):.1f}" y="{self.bottom + 16:.1f}" text-anchor="middle" font-size="11" '
                        f'fill="{faint}">{round(place):,}</text>'
                    )
            if self.x.get("title", {}).get("text"):
                middle = (self.left + self.right) / 2
                made.append(
                    f'<text x="{middle:.1f}" y="{self.bottom + 32:.1f}" text-anchor="middle" fill="{faint}">'
                    f"{self.x['title']['text']}</text>"
                )
        return made


def _panels(layout: Data, data: Sequence[Data], width: int, height: int) -> list[_Panel]:
    margin = layout["margin"]
    inner_width, inner_height = width - margin["l"] - margin["r"], height - margin["t"] - margin["b"]
    made = []
    for key in [key for key in layout if key.startswith("yaxis")]:
        suffix = key.removeprefix("yaxis")
        x, y = layout[f"xaxis{suffix}"], layout[key]
        source = x if "range" in x else layout[f"xaxis{x.get('matches', 'x').removeprefix('x')}"]
        made.append(
            _Panel(
                layout,
                x | {"range": source["range"]} if "range" in source else x,
                y,
                [trace for trace in data if trace["yaxis"] == f"y{suffix}"],
                margin["l"] + x["domain"][0] * inner_width,
                margin["l"] + x["domain"][1] * inner_width,
                margin["t"] + (1 - y["domain"][1]) * inner_height,
                margin["t"] + (1 - y["domain"][0]) * inner_height,
                [shape for shape in layout["shapes"] if shape.get("xref") == f"x{suffix}"],
            )
        )
    return made


def _scatters(traces: Sequence[Data], across: Callable[[float], float], down: Callable[[float], float]) -> list[str]:
    """Lines, and the bands between two that follow on each other."""
    made: list[str] = []
    before: list[tuple[float, float]] = []
    for trace in traces:
        points = [
            (across(x), down(y)) if y is not None and math.isfinite(down(y)) else None
            for x, y in zip(trace["x"], trace["y"], strict=True)
        ]
        known = [point for point in points if point is not None]
        if trace.get("fill") == "tonexty" and before and known:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (*before, *reversed(known)))
            made.append(f'<path d="M{path}Z" fill="#808080" fill-opacity="0.22"/>')
        before = known
        line = trace.get("line", {})
        if line.get("width") == 0:
            continue
        if trace.get("mode") == "markers":
            colour = trace["marker"]["color"]
            made += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in known]
            continue
        path, last = "", None
        for point in points:
            if point is not None:
                path += f"{'M' if last is None else 'L'}{point[0]:.1f} {point[1]:.1f}"
            last = point
        made.append(f'<path d="{path}" fill="none" stroke="{line["color"]}" stroke-width="{line["width"]}"/>')
    return made


def _legend(data: Sequence[Data], panel: _Panel) -> list[str]:
    """Above the first panel, what its lines are."""
    made, left = [], panel.left
    for trace in data:
        if trace["type"] == "scatter" and trace.get("name") and trace.get("showlegend", True):
            made.append(f'<path d="M{left:.1f} {panel.top - 10:.1f}h18" stroke="{trace["line"]["color"]}" stroke-width="2"/>')
            made.append(f'<text x="{left + 23:.1f}" y="{panel.top - 6:.1f}">{trace["name"]}</text>')
            left += 44 + CHARACTER * 1.1 * len(trace["name"])
    return made


def _bar(axis: Data, left: float, top: float, bottom: float) -> list[str]:
    """The colours of a heat map and what they stand for."""
    faint, bar = light()["--faint"], axis["colorbar"]
    image = _png(np.arange(SHADES, 0, -1, dtype=np.uint8)[:, None], _shades(axis["colorscale"]))
    place = f'x="{left:.1f}" y="{top:.1f}" width="12" height="{bottom - top:.1f}"'
    made = [f'<image {place} preserveAspectRatio="none" href="data:image/png;base64,{image}"/>']
    down = _linear((axis["cmin"], axis["cmax"]), (bottom, top))
    for value, text in zip(bar["tickvals"], bar["ticktext"], strict=True):
        made.append(f'<text x="{left + 17:.1f}" y="{down(value) + 4:.1f}" font-size="11" fill="{faint}">{html.escape(text)}</text>')
    middle, at = (top + bottom) / 2, left + 76
    made.append(
        f'<text x="{at:.1f}" y="{middle:.1f}" text-anchor="middle" fill="{faint}" transform="rotate(90 {at:.1f} {middle:.1f})">'
        f"{bar['title']['text']}</text>"
    )
    return made


def _linear(between: tuple[float, float], pixels: tuple[float, float]) -> Callable[[float], float]:
    (low, high), (begin, end) = between, pixels
    unit = (end - begin) / ((high - low) or 1.0)
    return lambda value: begin + (value - low) * unit


def _place(value: float, is_log: bool) -> float:
    if not is_log:
        return value
    return math.log10(value) if value > 0 else math.nan


def _ticks(low: float, high: float, is_log: bool) -> list[tuple[float, str]]:
    """Round numbers of an axis, as places on it and as texts."""
    if is_log:
        decades = list(range(math.ceil(low), math.floor(high) + 1))
        return [(float(decade), power(10, decade)) for decade in decades[:: max(1, math.ceil(len(decades) / TICKS))]]
    rough = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    unit *= next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first = math.ceil(low / unit)
    return [(place * unit, number(place * unit)) for place in range(first, math.floor(high / unit) + 1)]


def _shades(scale: str) -> list[str]:
    """A scale's colours in SHADES steps."""
    known = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in SCALES[scale]], float)
    places = np.linspace(0, len(known) - 1, SHADES)
    mixed = np.stack([np.interp(places, np.arange(len(known)), known[:, i]) for i in range(3)], axis=1).round().astype(int)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in mixed.tolist()]


def _png(indices: Pixels, colours: Sequence[str]) -> str:
    """A PNG of these colours, counted from 1; 0 is transparent. As base64."""
    height, width = indices.shape
    palette = bytes(3) + b"".join(bytes.fromhex(colour[1:]) for colour in colours)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), indices], axis=1).tobytes()
    chunks: list[tuple[bytes, Any]] = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return base64.b64encode(data).decode("ascii")
