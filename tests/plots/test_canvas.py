"""Figures as data: what plotly.js is given."""

from __future__ import annotations

import base64
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from resmon.plots import heatmap
from resmon.plots.canvas import Canvas, escaped, packed, short, shorter
from resmon.plots.curves import Curve, line, scale


def test_an_array_travels_as_its_bytes() -> None:
    values = np.array([[1.0, np.nan], [2.5, -1e30]])
    made = packed(values)
    assert (made["dtype"], made["shape"]) == ("f4", "2, 2")
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(made["bdata"]), "<f4").reshape(2, 2), values.astype("f4"))


def test_panels_lie_beside_each_other_without_overlap() -> None:
    layout = Canvas(300, rows=2, columns=3, vertical_spacing=0.2, horizontal_spacing=0.1).plot()["layout"]
    across = [layout[f"xaxis{i}"]["domain"] for i in ("", "2", "3")]
    assert [a[1] < b[0] for a, b in pairwise(across)] == [True, True]
    assert across[0][0] == 0 and across[2][1] == pytest.approx(1)
    assert layout["yaxis"]["domain"][0] > layout["yaxis4"]["domain"][1]


def test_texts_are_no_markup_and_not_too_long() -> None:
    assert escaped("<b>x</b>\u202e&") == "&lt;b&gt;x&lt;/b&gt;\ufffd&amp;"
    assert len(escaped("x" * 500)) == 120 and escaped("x" * 500).endswith("…")
    assert short("transformer.encoder.layers.11.attention").endswith("layers.11.attention")


def test_names_at_an_axis_lose_what_all_of_them_share_before_they_are_cut() -> None:
    names = [f"resnet.encoder.stages.{stage}.layers.{layer}" for stage in range(2) for layer in range(2)]
    assert shorter(names, 12) == ["…0.layers.0", "…0.layers.1", "…1.layers.0", "…1.layers.1"]
    assert shorter(names, 40) == names, "where they fit nothing is left out"
    assert shorter(["encoder.0", "encoder.10000"], 12) == ["…0", "…10000"]
    assert shorter(["a.b.c.mlp", "a.b.c"], 8) == ["…c.mlp", "…c"], "each keeps a name"
    assert shorter(["one.name.that.is.alone"], 9) == ["…is.alone"]


def test_what_ranges_over_decades_has_a_logarithmic_axis() -> None:
    def curve(*values: float) -> Curve:
        numbers = np.array(values)
        return Curve(np.arange(len(values)).astype(float), numbers, numbers, numbers)

    assert scale([curve(1, 5), curve(200)])["type"] == "log"
    assert scale([curve(1, 99)])["type"] == "linear"
    assert scale([curve(0, 1e6)])["type"] == "linear", "0 has no logarithm"
    assert scale([curve(3, 3)])["range"] == [0, 4.5]
    assert scale([curve(np.nan)]) == scale([]) == {"type": "linear"}


def test_a_map_keeps_zero_and_nan_apart_and_is_what_plotly_takes() -> None:
    canvas = Canvas(300)
    values = np.array([[1.0, 10.0, np.nan], [0.0, np.inf, 0.1]])
    zero, broken = heatmap.cells(canvas, 1, np.arange(3), ["a", "<b>"], values)
    heatmap.rows(canvas, ["a", "<b>"])
    heatmap.colours(canvas, "ratio", "Viridis", heatmap.scale_of([values]))
    line(canvas, Curve(np.arange(3.0), np.zeros(3), np.ones(3), np.full(3, 2.0)), "x", "var(--ink)")
    assert zero and broken
    figure = go.Figure(canvas.plot())  # raises ValueError for what it does not know
    assert [trace.type for trace in figure.data] == ["heatmap"] * 3 + ["scatter"] * 3
    assert heatmap.scale_of([np.full((2, 2), 7.0)])[0] < np.log10(7) < heatmap.scale_of([np.full((2, 2), 7.0)])[1]
