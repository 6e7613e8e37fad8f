"""Figures where there is no style sheet: their colours by name, and the numbers that a page's script would make.

A page resolves `var(--ink)` itself, for light, dark and print. A notebook's front end draws what it is given, so it is given light
colours on a light ground, which reads on a dark page too.
"""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from resmon.plots.canvas import Data, packed
from resmon.plots.heatmap import DECADES
from resmon.records import Floats

STYLE = Path(__file__).with_name("colours.css")

_NAME = re.compile(r"var\((--[\w-]+)\)")


@cache
def light() -> dict[str, str]:
    """The colours of the light theme by their names in colours.css, where they stand first."""
    block = STYLE.read_text(encoding="utf-8").partition(":root {")[2].partition("}")[0]
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]+);", block))


def coloured(value: Any) -> Any:
    """Any part of a figure with the colours themselves in the place of their names."""
    if isinstance(value, str):
        name = _NAME.fullmatch(value)
        return light()[name[1]] if name else value
    if isinstance(value, list):
        return [coloured(each) for each in value]
    return {key: coloured(each) for key, each in value.items()} if isinstance(value, dict) else value


def unpacked(array: Data) -> Floats:
    """The numbers that canvas.packed has packed."""
    values = np.frombuffer(base64.b64decode(array["bdata"]), "<f4").astype(np.float64)
    return values.reshape([int(length) for length in array["shape"].split(",")]) if "shape" in array else values


def alone(plot: Data) -> Data:
    """A figure that any plotly.js draws by itself, as a page with draw.js would."""
    made = coloured(plot)
    for trace in made["data"]:
        if trace.get("meta") == DECADES:
            trace["customdata"] = packed(10.0 ** unpacked(trace["z"]))
    made["layout"] |= {"paper_bgcolor": light()["--ground"], "plot_bgcolor": light()["--ground"]}
    return dict(made)
