"""What the pages draw of blocks: the statistics (resmon.statistics defines them), what to call them and what healthy looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resmon.records import BLOCK_VALUES

Scale = Literal["log", "linear", "signed"]
# How a statistic comes from a record's value: root of a sum over its elements, root of a sum, or the value itself.
Root = Literal["root mean square", "root", "value"]

# Colour scales that the colour-blind read as well: one for each family of quantities, so that one map is told from another.
RATIO, GRADIENT, SIZE = "Viridis", "Cividis", "Viridis"


@dataclass(frozen=True, slots=True)
class Measure:
    """One quantity of blocks. `value` is the record's value that it is made of, `direction` the pass that spoils it."""

    name: str
    title: str  # what a heat map of it is called
    label: str  # at the colour bar
    value: str
    root: Root
    direction: Literal["forward", "backward"]
    colours: str
    meaning: str
    healthy: str
    scale: Scale = "log"


MEASURES: tuple[Measure, ...] = (
    Measure(
        "branch_skip_ratio",
        "Branch against skip, block by block",
        "branch/skip ratio",
        "branch_skip_ratio",
        "value",
        "forward",
        RATIO,
        "how much each block changes the stream",
        "In a healthy run a row keeps its colour or drifts slowly, and only blocks that begin with zeros begin at 0; a row "
        "that turns is a block that changed.",
    ),
    Measure(
        "gradient_norm",
        "Gradient norm, block by block",
        "gradient norm",
        "gradient_square",
        "root",
        "backward",
        GRADIENT,
        "how strongly each block is pulled",
        "In a healthy run the rows stay within two decades or so of each other and pale together as the loss falls; a fade "
        "towards the first block is a gradient that vanishes, columns that light up from one row to the others an explosion.",
    ),
    Measure(
        "output_gradient_norm",
        "Gradient of the loss at each block's output",
        "output gradient norm",
        "output_gradient_square",
        "root",
        "backward",
        GRADIENT,
        "how much of the loss's pull arrives at each depth",
        "In a healthy run it changes little from block to block; a fade from the last row up to the first is a gradient that "
        "vanishes on its way.",
    ),
    Measure(
        "skip_rms",
        "The stream that comes to each block",
        "skip, root mean square",
        "skip_square",
        "root mean square",
        "forward",
        SIZE,
        "how large the residual stream is at each depth",
        "In a healthy run it grows gently with depth and settles as the run goes on; a row that flares up passes its size on to "
        "all rows below.",
    ),
    Measure(
        "branch_rms",
        "What each block adds",
        "branch, root mean square",
        "branch_square",
        "root mean square",
        "forward",
        SIZE,
        "how large each block's own contribution is",
        "In a healthy run every row has a colour; a row that goes dark is a block that no longer does anything.",
    ),
    Measure(
        "output_peak",
        "Largest activation of each block",
        "largest |y|",
        "peak",
        "value",
        "forward",
        SIZE,
        "the largest value that leaves each block",
        "Single activations may be thousands of times the usual size and healthy; what grows without end meets the end of its "
        "type's range (65,504 in float16).",
    ),
    Measure(
        "dead_unit_ratio",
        "Units that are dead",
        "share of dead units",
        "dead",
        "value",
        "forward",
        SIZE,
        "which share of the units that feed each branch's last layer is never different from zero",
        "In a healthy run it is near 0; a row that fills up is a block that loses its capacity.",
        "linear",
    ),
    Measure(
        "norm_gap",
        "Batch norms: running statistics against the batches",
        "gap in standard deviations",
        "norm_gap",
        "value",
        "forward",
        SIZE,
        "how far what evaluation normalises with is from what training does",
        "In a healthy run it is well below 1; at 1 a channel is evaluated as another than it was trained.",
    ),
)
BY_NAME = {measure.name: measure for measure in MEASURES}

# The ratio stands beside the record's own values where bins keep it.
VALUES = (*BLOCK_VALUES, "branch_skip_ratio")
PLACES = {name: i for i, name in enumerate(VALUES)}
