"""Figures as pictures that need no script."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import plotly
import plotly.graph_objects as go
import pytest

from resmon.plots import heatmap
from resmon.plots.canvas import Canvas, packed
from resmon.plots.curves import Curve, line
from resmon.plots.svg import SCALES, svg
from resmon.plots.theme import alone, coloured, light, unpacked

NAMESPACE = "{http://www.w3.org/2000/svg}"


def figure(values: np.ndarray, losses: list[float], names: tuple[str, ...] = ("h.0", "h.1")) -> Canvas:
    """A loss above a heat map."""
    canvas = Canvas(300, rows=2, heights=[1, 2], shared_x=True, margin={"r": 100})
    step = np.arange(len(losses), dtype=float)
    number = np.array(losses)
    line(canvas, Curve(step, number * 0.9, number, number * 1.1), "loss", "var(--series-1)")
    heatmap.cells(canvas, 1, np.arange(values.shape[1]), names, values, row=2)
    canvas.y(2, tickvals=list(names), ticktext=list(names))
    heatmap.colours(canvas, "ratio", "Viridis", heatmap.scale_of([values]))
    canvas.x(range=[-0.5, len(losses) - 0.5])
    canvas.vertical(2, 2)
    return canvas


def pixels(image: str) -> tuple[list[list[str | None]], int]:
    """The colours of a PNG with a palette, None where it is transparent, and how many bytes it has."""
    data = base64.b64decode(image)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(data[at + 4 : at + 8 + size])
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    palette = chunks[b"PLTE"].hex()
    rows = zlib.decompress(chunks[b"IDAT"])
    made = []
    for y in range(height):
        row = rows[y * (width + 1) + 1 : (y + 1) * (width + 1)]
        made.append([None if index == 0 else f"#{palette[6 * index : 6 * index + 6]}" for index in row])
    return made, len(data)


def test_every_cell_has_its_colour() -> None:
    values = np.array([[0.01, 0.1, 1.0, np.nan], [0.01, 0.0, np.inf, 1.0]])
    root = ElementTree.fromstring(svg(figure(values, [1.0, 0.5, 0.3, 0.2]).plot(), 700, "a run"))  # noqa: S314 - made here
    images = [each.get("href", "").partition("base64,")[2] for each in root.iter(f"{NAMESPACE}image")]
    cells, zeros, broken, bar = (pixels(image)[0] for image in images)
    assert [cells[0][0], cells[0][2], cells[1][3]] == ["#440154", "#fde725", "#fde725"]
    assert [cells[0][3], cells[1][1], cells[1][2]] == [None] * 3
    assert zeros == [[None] * 4, [None, light()["--zero"], None, None]]
    assert broken == [[None] * 4, [None, None, light()["--bad"], None]]
    assert (bar[0][0], bar[-1][0]) == ("#fde725", "#440154")


def test_lines_end_where_there_is_no_number_and_lie_in_their_panel() -> None:
    made = svg(figure(np.ones((2, 5)), [3.0, 2.0, np.nan, 1.5, 1.0]).plot(), 700, "a run")
    root = ElementTree.fromstring(made)  # noqa: S314
    (path,) = (each.get("d", "") for each in root.iter(f"{NAMESPACE}path") if each.get("stroke") == light()["--series-1"])
    assert path.count("M") == 2 and path.count("L") == 2
    height = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    assert height == sorted(height), "what falls goes down"
    assert all(24 <= y <= 24 + 300 / 3 for y in height)


def test_texts_are_texts() -> None:
    made = svg(figure(np.ones((2, 3)), [1.0, 2.0, 3.0]).plot(), 700, "<script>&'\"")
    root = ElementTree.fromstring(made)  # noqa: S314
    assert root.findtext(f"{NAMESPACE}title") == "<script>&'\""
    assert {each.tag.removeprefix(NAMESPACE) for each in root.iter()} <= {"svg", "title", "rect", "path", "text", "image", "circle"}


def test_many_cells_make_a_small_picture() -> None:
    random = np.random.default_rng(0)
    values = np.exp(random.standard_normal((100, 1)) + 0.05 * random.standard_normal((100, 200)))
    assert len(svg(figure(values, [1.0, 2.0], tuple(map(str, range(100)))).plot(), 700, "")) < 40_000


@pytest.mark.parametrize("name", SCALES)
def test_scales_are_those_of_plotly(name: str) -> None:
    script = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    begin = script.index(f"{name}:[[0,")
    theirs = re.findall(r'"(#[0-9a-f]{6}|rgb\(\d+,\d+,\d+\))"', script[begin : script.index("]]", begin)])
    plain = [f"#{bytes(map(int, each[4:-1].split(','))).hex()}" if each.startswith("rgb") else each for each in theirs]
    assert plain == list(SCALES[name])


def test_a_figure_that_stands_alone_has_colours_and_numbers_of_its_own() -> None:
    values = np.array([[0.01, 0.1, 1.0], [0.5, 0.0, np.inf]])
    made = alone(figure(values, [1.0, 0.5, 0.3]).plot())
    assert "var(" not in str(made)
    (told,) = (trace["customdata"] for trace in made["data"] if "customdata" in trace)
    assert unpacked(told)[0] == pytest.approx(values[0], rel=1e-6)
    go.Figure(made)  # raises where plotly knows no such key or value


def test_colours_are_those_of_the_style_sheet() -> None:
    assert light()["--ground"] == "#ffffff" and len(light()) > 15
    assert coloured({"a": ["var(--ink)", 1], "b": "var(--ink) no"}) == {"a": [light()["--ink"], 1], "b": "var(--ink) no"}
    assert unpacked(packed(np.arange(6.0).reshape(2, 3))).tolist() == [[0, 1, 2], [3, 4, 5]]
