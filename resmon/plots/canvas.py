"""A plotly figure as it is put together: panels with their axes, traces, lines; then plain data."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from resmon.quantities import shortened
from resmon.records import Floats

SERIES = tuple(f"var(--series-{i})" for i in range(1, 8))
INK, FAINT, RULE, GROUND = "var(--ink)", "var(--faint)", "var(--rule)", "var(--ground)"
BAD, WARN, ZERO, CLOSE = "var(--bad)", "var(--warn)", "var(--zero)", "var(--close)"
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
LONGEST_NAME = 28  # characters of a block's name at an axis
DIGITS = 4

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """What a page needs to draw it; `width` is the least in pixels at which it can be read."""

    key: str
    title: str
    caption: str
    plot: Data
    height: int
    width: int = 0


class Canvas:
    """Panels in rows and columns, counted from 1, as wide and as high as they are told to be."""

    def __init__(
        self,
        height: int,
        rows: int = 1,
        columns: int = 1,
        *,
        heights: Sequence[float] = (),
        widths: Sequence[float] = (),
        vertical_spacing: float = 0.1,
        horizontal_spacing: float = 0.1,
        shared_x: bool = False,
        shared_y: bool = False,
        titles: Sequence[str] = (),
        margin: Mapping[str, int] | None = None,
    ) -> None:
        self._rows, self._columns = rows, columns
        self.data: list[Data] = []
        axis: Data = {
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
        self.layout: Data = {
            "height": height,
            "margin": {"l": 64, "r": 16, "t": 24, "b": 44} | dict(margin or {}),
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12, "color": INK},
            "hoverlabel": {"bgcolor": GROUND, "bordercolor": RULE, "font": {"color": INK}},
            "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"color": INK}},
            "showlegend": False,
            "annotations": [],
            "shapes": [],
        }
        across = _domains(widths or [1.0] * columns, horizontal_spacing)
        down = _domains(heights or [1.0] * rows, vertical_spacing)
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                x, y = self._names(row, column)
                low, high = down[row - 1]
                self.layout[f"xaxis{x}"] = _copied(axis) | {
                    "domain": list(across[column - 1]),
                    "anchor": f"y{y}",
                    "showgrid": False,
                    "showline": True,
                }
                self.layout[f"yaxis{y}"] = _copied(axis) | {
                    "domain": [1.0 - high, 1.0 - low],
                    "anchor": f"x{x}",
                    "showgrid": True,
                    "exponentformat": "power",
                }
                if shared_x and row < rows:
                    self.layout[f"xaxis{x}"] |= {"matches": f"x{self._names(rows, column)[0]}", "showticklabels": False}
                if shared_y and column > 1:
                    self.layout[f"yaxis{y}"] |= {"matches": f"y{self._names(row, 1)[1]}", "showticklabels": False}
        for column, title in enumerate(titles):
            self.layout["annotations"].append(
                {
                    "text": title,
                    "x": sum(across[column]) / 2,
                    "xref": "paper",
                    "xanchor": "center",
                    "y": 1.0,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "font": {"size": 12, "color": FAINT},
                }
            )

    def _names(self, row: int, column: int) -> tuple[str, str]:
        number = (row - 1) * self._columns + column
        return ("", "") if number == 1 else (str(number), str(number))

    @property
    def height(self) -> int:
        return int(self.layout["height"])

    def add(self, kind: str, row: int = 1, column: int = 1, **trace: Any) -> None:
        """A trace of that plotly type in a panel."""
        x, y = self._names(row, column)
        self.data.append({"type": kind, "xaxis": f"x{x}", "yaxis": f"y{y}"} | trace)

    def x(self, row: int | None = None, column: int | None = None, **changes: Any) -> None:
        """Change the x axis of a panel, of all in a row or a column, or of all."""
        self._change("x", row, column, changes)

    def y(self, row: int | None = None, column: int | None = None, **changes: Any) -> None:
        self._change("y", row, column, changes)

    def _change(self, axis: str, row: int | None, column: int | None, changes: Mapping[str, Any]) -> None:
        for r in range(1, self._rows + 1) if row is None else (row,):
            for c in range(1, self._columns + 1) if column is None else (column,):
                name = self._names(r, c)[0]
                self.layout[f"{axis}axis{name}"] = _merged(self.layout[f"{axis}axis{name}"], changes)

    def set(self, **changes: Any) -> None:
        """Change the layout."""
        self.layout = _merged(self.layout, changes)

    def vertical(self, at: float, row: int = 1, column: int = 1, colour: str = BAD, width: float = 1.5, dash: str = "dot") -> None:
        """A line across a panel, from below to above, at a place of its x axis."""
        x, y = self._names(row, column)
        line = {"color": colour, "width": width, "dash": dash}
        self.layout["shapes"].append(
            {"type": "line", "x0": at, "x1": at, "xref": f"x{x}", "y0": 0, "y1": 1, "yref": f"y{y} domain", "line": line}
        )

    def plot(self) -> Data:
        """As plotly.js takes it."""
        return {"data": self.data, "layout": self.layout}


def _domains(shares: Sequence[float], spacing: float) -> list[tuple[float, float]]:
    """From 0 to 1 in parts of these shares with equal spaces between."""
    room = (1.0 - spacing * (len(shares) - 1)) / sum(shares)
    begins = np.concatenate([[0.0], np.cumsum([share * room + spacing for share in shares])])
    return [(float(begin), float(begin + share * room)) for begin, share in zip(begins, shares, strict=False)]


def _copied(value: Any) -> Any:
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, dict) else value


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> Data:
    """`old` with what `new` says, key by key also further in."""
    made = dict(old)
    for key, value in new.items():
        before = made.get(key)
        made[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return made


def escaped(text: str, longest: int = 120) -> str:
    """Text that plotly shows as it is, cut where it is longer."""
    cut = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return html.escape("".join(c if c.isprintable() else "�" for c in cut), quote=False)


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """A block's name at an axis."""
    return shorter([name], longest)[0]


def shorter(names: Sequence[str], longest: int = LONGEST_NAME) -> list[str]:
    """Blocks' names at one axis."""
    return [escaped(name) for name in shortened(names, longest)]


def wrapped(text: str, width: int = 64) -> str:
    """With line breaks, for a label that hovers; the text is escaped already."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "<br>".join([*lines, line][:8])


def rounded(values: Floats) -> list[float | None]:
    """As JSON that is short: numbers with few digits, null where there is none."""
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]


def packed(values: npt.NDArray[Any]) -> Data:
    """An array as plotly.js reads it fastest: its bytes, as 32-bit floats."""
    array = np.ascontiguousarray(values, "<f4")
    made: Data = {"dtype": "f4", "bdata": base64.b64encode(array.tobytes()).decode("ascii")}
    if array.ndim > 1:
        made["shape"] = ", ".join(map(str, array.shape))
    return made
