"""A view as Prometheus reads it: text format 0.0.4, OpenMetrics 1.0 or protobuf, as the scraper's Accept header asks.

Per-block families are written straight from arrays: a run has tens of series per block, and one Python object per series would
take a quarter of a second for 6,000. Label sets are escaped, or encoded, once per set of sites; in text the histograms of a hundred
blocks are one format string that all their counts fill at once. Everything else goes through prometheus_client, from a registry of
our own. Only what the catalogue names is written, with the catalogue's help. Protobuf, which a server asks for that takes native
histograms, is the only one that can carry them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, repeat

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from resmon.catalogue import BLOCK, BY_NAME, CATALOGUE, EXPORTED_MAGNITUDE_EXPONENTS, OF_BLOCK, Metric
from resmon.exporters import protobuf
from resmon.exporters.messages import Messages
from resmon.exporters.names import row_labels, writable
from resmon.exporters.samples import SAMPLES, samples
from resmon.exporters.view import AgentView, BlockTable, Row, RunView
from resmon.records import (
    DURATION_EDGES,
    MAGNITUDE_EDGES,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    MAGNITUDE_ZERO,
)
from resmon.statistics import Column

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

PROTOBUF = protobuf.CONTENT_TYPE

# Rows of which histograms are written at once: of 1,400 they would take some megabytes more for a moment.
ROWS = 100

# By content type, the one that carries most first: how it is asked for, and the known values of its parameters; "" is none given.
_KINDS: Mapping[str, tuple[str, Mapping[str, Sequence[str]]]] = {
    PROTOBUF: (
        "application/vnd.google.protobuf",
        {"proto": ("io.prometheus.client.metricfamily",), "encoding": ("delimited",)},
    ),
    OPENMETRICS: ("application/openmetrics-text", {"version": ("", "0.0.1", "1.0.0")}),
    TEXT: ("text/plain", {"version": ("", "0.0.4")}),
}

_EXPORTED_EDGES = np.array(EXPORTED_MAGNITUDE_EXPONENTS) - MAGNITUDE_LOW  # columns of magnitude_buckets
_EXPORTED_LE = [repr(float(MAGNITUDE_EDGES[i])) for i in _EXPORTED_EDGES] + ["+Inf"]
# The histogram of one row: its labels before each number.
_MAGNITUDE = "".join(
    (
        *(f'{OF_BLOCK}activation_magnitude_bucket{{%s,le="{le}"}} %d\n' for le in _EXPORTED_LE),
        f"{OF_BLOCK}activation_magnitude_count{{%s}} %d\n",
        f"{OF_BLOCK}activation_magnitude_sum{{%s}} %s\n",
    )
)
_DURATION_LE = [repr(float(edge)) for edge in DURATION_EDGES] + ["+Inf"]


def negotiate(accept: str) -> str:
    """The content type to answer with: of those asked for the one liked most, of equals the one that carries most; else text."""
    liked = dict.fromkeys(_KINDS, 0.0)
    for part in accept.split(","):
        asked, *parameters = (piece.strip().lower() for piece in part.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        for kind, (name, wanted) in _KINDS.items():
            if asked == name and all(given.get(key, "") in values for key, values in wanted.items()):
                try:
                    liked[kind] = max(liked[kind], float(given.get("q", "1")))
                except ValueError:
                    continue
    best = max(liked, key=lambda kind: liked[kind])
    return best if liked[best] > 0 else TEXT


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Prometheus:
    """Renders views. One instance per agent: it remembers label sets and the registry, nothing of the values."""

    def __init__(self) -> None:
        self._labels: dict[str, _Labels] = {}
        self._messages = Messages()
        self._collector = _Collector()
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)

    def render(self, view: AgentView, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type."""
        kind = negotiate(accept)
        native = kind is PROTOBUF
        self._collector.view = view
        self._collector.block_series = Counter({writable(run.run): _series(run.blocks, native) for run in view.runs if run.blocks})
        if native:
            return self._messages.of(view, self._registry.collect()), kind
        self._labels = {run.run: self._labels_of(run, run.blocks.rows) for run in view.runs if run.blocks}
        exposition = BytesIO()  # whose bytes are given without a copy: of 100,000 series they are nine megabytes
        for table in self._tables(view, kind):
            exposition.write(table.encode())
        if kind is OPENMETRICS:
            rest: bytes = generate_openmetrics(self._registry)  # type: ignore[no-untyped-call]
        else:
            rest = generate_text(self._registry)
        exposition.write(rest)  # the client's part comes last: in OpenMetrics it brings the mark of the end
        return exposition.getvalue(), kind

    def _labels_of(self, run: RunView, rows: tuple[Row, ...]) -> _Labels:
        known = self._labels.get(run.run)
        if known is not None and known.rows is rows and known.models == run.info.models:
            return known
        return _Labels.of(run, rows)

    def _tables(self, view: AgentView, kind: str) -> Iterator[str]:
        tables = [(self._labels[run.run], run.blocks) for run in view.runs if run.blocks and run.blocks.rows]
        for metric in CATALOGUE:
            if metric.labels != BLOCK or not tables:
                continue
            family = metric.name
            if kind is OPENMETRICS and metric.kind == "counter":
                family = family.removesuffix("_total")
            yield f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n"
            if metric.unit and kind is OPENMETRICS:
                yield f"# UNIT {family} {metric.unit}\n"
            for labels, blocks in tables:
                if metric.kind == "histogram":
                    yield from _magnitudes(labels, blocks)
                elif metric.kind == "counter":
                    yield _lines(metric.name, labels.sets, map(str, blocks.nonfinite_steps.tolist()))
                else:
                    yield _gauges(metric.name, labels.sets, blocks.gauges[metric.name.removeprefix(OF_BLOCK)])


@dataclass(frozen=True, slots=True, eq=False)
class _Labels:
    """What stands between the name and the value in every line of one run."""

    rows: tuple[Row, ...]
    models: dict[str, str]
    sets: list[str]  # one per row, with braces and the blank before the value
    bare: list[str]  # one per row, without braces

    @classmethod
    def of(cls, run: RunView, rows: tuple[Row, ...]) -> _Labels:
        bare = [",".join(f'{name}="{_escaped(value)}"' for name, value in each.items()) for each in row_labels(run, rows)]
        return cls(rows, dict(run.info.models), [f"{{{each}}} " for each in bare], bare)


def _gauges(name: str, sets: list[str], column: Column) -> str:
    values, present = column
    if not present.all():
        if not present.any():
            return ""
        sets = [sets[i] for i in np.flatnonzero(present)]
        values = values[present]
    return _lines(name, sets, _numbers(values.tolist(), bool(np.isfinite(values).all())))


def _lines(name: str, sets: list[str], numbers: Iterable[str]) -> str:
    return name + f"\n{name}".join(map(str.__add__, sets, numbers)) + "\n"


def _numbers(values: list[float], finite: bool) -> Iterable[str]:
    return map(repr, values) if finite else map(_number, values)


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    return {"inf": "+Inf", "-inf": "-Inf"}.get(text := repr(value), text)


def _magnitudes(labels: _Labels, blocks: BlockTable) -> Iterator[str]:
    buckets = blocks.magnitude_buckets
    below = buckets[:, :MAGNITUDE_LARGER].cumsum(axis=1) + buckets[:, MAGNITUDE_ZERO, None]  # zero is below every edge
    count = below[:, -1] + buckets[:, MAGNITUDE_LARGER]
    counts = np.column_stack((below[:, _EXPORTED_EDGES], count, count))  # +Inf and _count are the same number
    sums = _numbers(blocks.magnitude_sum.tolist(), bool(np.isfinite(blocks.magnitude_sum).all()))
    for begin in range(0, len(labels.bare), ROWS):
        some = slice(begin, begin + ROWS)
        yield "".join(
            _MAGNITUDE % (*chain.from_iterable(zip(repeat(bare), row)), bare, sum_)
            for bare, row, sum_ in zip(labels.bare[some], counts[some].tolist(), sums, strict=False)
        )


def _series(blocks: BlockTable, native: bool) -> int:
    """How many series the tables have of one run. A native histogram is one."""
    gauges = sum(int(column.present.sum()) for name, column in blocks.gauges.items() if OF_BLOCK + name in BY_NAME)
    return gauges + len(blocks.rows) * (1 + (1 if native else len(_EXPORTED_LE) + 2))


class _Collector(Collector):
    """The run-level and the agent's own families, from the view that is being rendered."""

    view: AgentView | None = None
    block_series: Mapping[str, int] = {}  # by the label run

    def collect(self) -> Iterator[Family]:
        if self.view is None:  # prometheus_client looks at a new collector once
            return
        series = Counter(self.block_series)
        for family in self._counted(self.view):
            series.update(sample.labels["run"] for sample in family.samples if "run" in sample.labels)
            yield family
        metric = BY_NAME["resmon_run_series"]
        total = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        for run in {writable(run.run) for run in self.view.runs}:
            total.add_metric((run,), series[run] + 1)  # and this one
        yield total

    def _counted(self, view: AgentView) -> Iterator[Family]:
        for metric in CATALOGUE:
            if metric.name == "resmon_step_duration_seconds":
                yield _durations(metric, view)
            elif metric.name in SAMPLES:
                make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = make(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
                for labels, value in samples(metric, view):
                    family.add_metric(labels, value)
                yield family


def _durations(metric: Metric, view: AgentView) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
    for run in view.runs:
        for rank in run.ranks:
            if rank.record is not None:
                counts = rank.record.duration_buckets.cumsum().tolist()
                family.add_metric(
                    (writable(run.run), str(rank.rank)), list(zip(_DURATION_LE, counts, strict=True)), rank.record.duration_total
                )
    return family
