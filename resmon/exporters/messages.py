"""A view in protobuf: the tables of blocks from arrays, and what prometheus_client has collected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from prometheus_client.metrics_core import Metric as Family

from resmon.catalogue import BLOCK, CATALOGUE, EXPORTED_MAGNITUDE_EXPONENTS, OF_BLOCK, Metric
from resmon.exporters import exponential, protobuf
from resmon.exporters.names import row_labels, writable
from resmon.exporters.view import AgentView, BlockTable, Row, RunView
from resmon.records import DURATION_EDGES, MAGNITUDE_EDGES, MAGNITUDE_LOW
from resmon.statistics import Column

_MAGNITUDE: protobuf.Edges = [(power, float(MAGNITUDE_EDGES[power - MAGNITUDE_LOW])) for power in EXPORTED_MAGNITUDE_EXPONENTS]
_DURATION: protobuf.Edges = [(exponential.DURATION_LOW + i, float(edge)) for i, edge in enumerate(DURATION_EDGES)]


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    """The labels of one run's rows."""

    rows: tuple[Row, ...]
    models: dict[str, str]
    labels: list[bytes]
    gauges: list[bytes]  # all of a metric but its value
    counters: list[bytes]

    @classmethod
    def of(cls, run: RunView, rows: tuple[Row, ...]) -> _Encoded:
        encoded = [protobuf.labels(each) for each in row_labels(run, rows)]
        heads = ([protobuf.head(kind, each) for each in encoded] for kind in ("gauge", "counter"))
        return cls(rows, dict(run.info.models), encoded, *heads)


class Messages:
    """Remembers the labels of the runs that it wrote last."""

    def __init__(self) -> None:
        self._encoded: dict[str, _Encoded] = {}

    def of(self, view: AgentView, families: Iterable[Family]) -> bytes:
        """The exposition. `families` are all that is not of blocks."""
        self._encoded = {run.run: self._encoded_of(run, run.blocks.rows) for run in view.runs if run.blocks}
        tables = [(self._encoded[run.run], run.blocks) for run in view.runs if run.blocks and run.blocks.rows]
        return b"".join(
            (
                *(self._table(metric, tables) for metric in CATALOGUE if metric.labels == BLOCK),
                *(_durations(family, view) if family.type == "histogram" else _plain(family) for family in families),
            )
        )

    def _encoded_of(self, run: RunView, rows: tuple[Row, ...]) -> _Encoded:
        known = self._encoded.get(run.run)
        if known is not None and known.rows is rows and known.models == run.info.models:
            return known
        return _Encoded.of(run, rows)

    def _table(self, metric: Metric, tables: Iterable[tuple[_Encoded, BlockTable]]) -> bytes:
        def of_run(encoded: _Encoded, blocks: BlockTable) -> bytes:
            if metric.kind == "histogram":
                found = exponential.magnitudes(blocks.magnitude_buckets, blocks.magnitude_sum)
                return b"".join(protobuf.histogram(*each, _MAGNITUDE) for each in zip(encoded.labels, found, strict=True))
            if metric.kind == "counter":
                return protobuf.values(encoded.counters, blocks.nonfinite_steps.astype("<f8").tobytes())
            return _gauges(encoded.gauges, blocks.gauges[metric.name.removeprefix(OF_BLOCK)])

        return protobuf.family(metric.name, metric.help, metric.kind, (of_run(*each) for each in tables))


def _gauges(heads: list[bytes], column: Column) -> bytes:
    values, present = column
    if not present.all():
        heads = [heads[i] for i in np.flatnonzero(present)]
        values = values[present]
    return protobuf.values(heads, values.astype("<f8").tobytes())


def _plain(family: Family) -> bytes:
    """A family of gauges or counters."""
    samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    heads = [protobuf.head(family.type, protobuf.labels(sample.labels)) for sample in samples]
    name = f"{family.name}_total" if family.type == "counter" else family.name
    numbers = np.array([sample.value for sample in samples], "<f8").tobytes()
    return protobuf.family(name, family.documentation, family.type, [protobuf.values(heads, numbers)])


def _durations(family: Family, view: AgentView) -> bytes:
    """The one family of histograms besides the blocks': classic ones, of which there are few, and which rules read."""

    def metrics() -> Iterator[bytes]:
        for run in view.runs:
            for rank in run.ranks:
                if rank.record is not None:
                    labels = protobuf.labels({"run": writable(run.run), "rank": str(rank.rank)})
                    found = exponential.durations(rank.record.duration_buckets, rank.record.duration_total)
                    yield protobuf.histogram(labels, found, _DURATION, native=False)

    return protobuf.family(family.name, family.documentation, family.type, metrics())
