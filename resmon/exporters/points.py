"""A view as OpenTelemetry reads it: of each metric its points, which are attributes and a number.

The attributes are the catalogue's labels. Those of blocks are made once for a run's rows; all metrics of a block share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from resmon.catalogue import BLOCK, OF_BLOCK, Metric
from resmon.exporters.exponential import Exponential, magnitudes
from resmon.exporters.names import row_labels
from resmon.exporters.samples import samples
from resmon.exporters.view import AgentView, Row, RunView

Attributes = Mapping[str, str]
Point = tuple[Attributes, float]


def pushed(view: AgentView) -> AgentView:
    """The view without what is only for those who scrape.

    A scraper sees no increase in a series that begins with it: so a new count is held back until the one before was seen, and a
    finding kept until it has come twice. Whoever is told when a counter began, and has findings as events, needs none of that.
    """
    runs = tuple(replace(run, unseen=frozenset()) for run in view.runs)
    return replace(view, runs=runs, runs_exported=view.runs_total)


class Rows:
    """The attributes of the blocks of the runs that were seen last."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[Row, ...], dict[str, str], list[Attributes]]] = {}  # by the label run

    def of(self, run: RunView) -> list[Attributes]:
        """Of each row of a run's table."""
        if run.blocks is None:
            return []
        rows, models = run.blocks.rows, dict(run.info.models)
        known = self._known.get(run.run)
        if known is None or known[0] is not rows or known[1] != models:
            known = self._known[run.run] = rows, models, [*row_labels(run, rows)]
        return known[2]

    def keep(self, runs: tuple[RunView, ...]) -> None:
        """Forget all others."""
        self._known = {run.run: self._known[run.run] for run in runs if run.run in self._known}


def of_blocks(metric: Metric, run: RunView, rows: list[Attributes]) -> Iterator[Point]:
    """Of a gauge or a counter of blocks. Absent values are no points; NaN and infinite ones are, as they are."""
    if run.blocks is None:
        return
    if metric.kind == "counter":
        yield from zip(rows, run.blocks.nonfinite_steps.tolist(), strict=True)
        return
    column = run.blocks.gauges.get(metric.name.removeprefix(OF_BLOCK))
    if column is not None:
        for attributes, value, is_there in zip(rows, column.values.tolist(), column.present.tolist(), strict=True):
            if is_there:
                yield attributes, value


def of_magnitudes(run: RunView, rows: list[Attributes]) -> Iterator[tuple[Attributes, Exponential]]:
    """Of the one histogram of blocks."""
    if run.blocks is not None:
        yield from zip(rows, magnitudes(run.blocks.magnitude_buckets, run.blocks.magnitude_sum), strict=True)


def of_others(metric: Metric, view: AgentView) -> Iterator[Point]:
    """Of a gauge or a counter of runs, of GPUs or of the agent."""
    return ((dict(zip(metric.labels, labels, strict=True)), value) for labels, value in samples(metric, view))


def is_of_blocks(metric: Metric) -> bool:
    return metric.labels == BLOCK and metric.name.startswith(OF_BLOCK)
