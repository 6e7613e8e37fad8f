"""Heat maps' numbers: a block statistic over stretches of steps, of the whole run and of the steps up to the trouble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from resmon.diff.runs import Run, Series, blocks_of
from resmon.flight.frames import Flight
from resmon.plots.heatmap import LARGE
from resmon.postmortem.thinned import Bins, Thinned, within
from resmon.records import Floats, Ints

CELLS = 600_000  # rows of steps and blocks of which a run's past is sampled
COLUMNS, CLOSE = 180, 96  # of a heat map: of the whole run, and of the steps up to the trouble


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A block statistic over stretches of steps, [blocks, columns]: NaN where not known, infinite where it was not finite."""

    first: Ints
    last: Ints
    values: Floats

    @property
    def width(self) -> int:
        return len(self.first)


def grids(
    flight: Flight, run: Run, thinned: Thinned, names: tuple[str, ...], steps: Ints, close_blocks: Mapping[str, Floats]
) -> tuple[dict[str, Grid], dict[str, Grid]]:
    """Of the whole run, and close up: `steps` are those up to the trouble, `close_blocks` what the blocks say at them."""
    statistics = ("branch_skip_ratio", "gradient_norm")
    shrink = 2 if len(names) > LARGE else 1
    close_steps = steps[-CLOSE // shrink :]
    nothing = np.full((len(steps), len(names)), np.nan)
    rows = {name: close_blocks.get(name, nothing)[-len(close_steps) :].T if len(close_steps) else nothing.T for name in statistics}
    close = {name: Grid(close_steps, close_steps, rows[name]) for name in statistics}
    # The whole run: a sample of what is there in full, and bins for what is not.
    bins, used = thinned.blocks(names), thinned.spans
    sampled = run.steps[~within(run.steps, used)]
    most = max(COLUMNS, CELLS // max(1, len(names)))
    if len(sampled) > most:
        sampled = sampled[np.unique(np.linspace(0, len(sampled) - 1, most).astype(np.int64))]
    series = blocks_of(flight, sampled) if len(sampled) and names else {}
    begin = min([*sampled[:1].tolist(), *used[:1, 0].tolist()], default=0)
    end = max([*sampled[-1:].tolist(), *used[-1:, 1].tolist()], default=-1)
    count = max(0, min(COLUMNS // shrink, end - begin + 1))
    edges = np.linspace(begin, end + 1, count + 1).astype(np.int64)
    whole = {}
    for statistic in statistics:
        values = np.full((len(names), count), np.nan)
        for i, name in enumerate(names):
            if count:
                values[i] = _column_means(edges, series.get(name, {}).get(statistic), bins.get((name, statistic)), statistic)
        whole[statistic] = Grid(edges[:-1], edges[1:] - 1, values)
    return whole, close


def _column_means(edges: Ints, series: Series | None, bins: Bins | None, statistic: str) -> Floats:
    """Per column the mean, of gradients the root of the mean square; infinite where anything in it was not finite."""
    squared = statistic == "gradient_norm"
    count = len(edges) - 1
    sums, counts, broken = np.zeros(count), np.zeros(count), np.zeros(count, bool)
    if series is not None and len(series.step):
        column = np.clip(np.searchsorted(edges, series.step, "right") - 1, 0, count - 1)
        finite = np.isfinite(series.values)
        values = series.values**2 if squared else series.values
        sums += np.bincount(column[finite], values[finite], count)
        counts += np.bincount(column[finite], minlength=count)
        broken |= np.bincount(column[~finite], minlength=count) > 0
    if bins is not None:
        # A bin may be wider than a column; then it stands in all of those that it reaches into.
        begin, end = (np.clip(np.searchsorted(edges, at, "right") - 1, 0, count - 1) for at in (bins.first, bins.last))
        bin_ = np.repeat(np.arange(len(begin)), end - begin + 1)
        column = begin[bin_] + np.arange(len(bin_)) - np.repeat(np.r_[0, np.cumsum(end - begin + 1)[:-1]], end - begin + 1)
        sums += np.bincount(column, bins.sums[bin_], count)
        counts += np.bincount(column, bins.counts[bin_], count)
        broken |= np.bincount(column[bins.nonfinite[bin_]], minlength=count) > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / np.where(counts > 0, counts, np.nan)
        return np.where(broken, np.inf, np.sqrt(mean) if squared else mean)
