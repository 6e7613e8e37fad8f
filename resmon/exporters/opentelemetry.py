"""A view as OTLP's metrics, in requests of a bounded size: what the agent pushes.

Each run is a resource of its own, and so is the agent. Everything is cumulative, since the run began, so that a request which is
lost costs resolution and no count. Numbers go out as the float64 that a scrape shows; NaN and infinite ones too, which OTLP's
doubles carry. Activation magnitudes are exponential histograms of scale 0 from the buckets that the flight has; step times are
histograms with the bounds that they have on /metrics, as rules read those. Zero buckets have no threshold here, as OpenTelemetry's
SDK has none: what is not zero, and at most 2^-20, stands in the bucket that ends there.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from resmon.catalogue import CATALOGUE
from resmon.exporters.conventions import CONVENTIONS, SCOPE, Convention
from resmon.exporters.names import writable
from resmon.exporters.points import Point, Rows, is_of_blocks, of_blocks, of_magnitudes, of_others
from resmon.exporters.view import AgentView, RunView
from resmon.records import DURATION_EDGES, RunInfo

MOST_POINTS = 5_000  # of a request: half a megabyte or so, where receivers take 4 (gRPC behind them) to 20 by default

_CUMULATIVE = AggregationTemporality.CUMULATIVE
_NOTHING = Buckets(0, [])

Points = Sequence[NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint]


def resource(**attributes: str | int) -> Resource:
    """With these attributes, unless OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say otherwise."""
    defaults = {"service.name": "resmon", **{name.replace("__", "."): value for name, value in attributes.items()}}
    return Resource(defaults).merge(OTELResourceDetector().detect())


def of_agent(version: str) -> Resource:
    """The agent itself."""
    host = socket.gethostname()
    identity = f"agent {host} {os.getpid()}"
    return resource(
        service__version=version, service__instance__id=_uuid(identity), host__name=writable(host), process__pid=os.getpid()
    )


def of_run(run: str, info: RunInfo) -> Resource:
    """An attempt of a run on this machine; its process too, where it is one."""
    one: dict[str, str | int] = {}
    if info.world_size == 1:
        one = {"process__pid": info.pid, "process__runtime__name": "cpython", "process__runtime__version": info.python}
    if info.git_commit:
        one["vcs__ref__head__revision"] = info.git_commit
    return resource(
        service__version=info.resmon,
        service__instance__id=_uuid(f"{info.host} {info.boot_id} {info.launch} {info.run} {info.attempt} {run}"),
        host__name=writable(info.host),
        resmon__run__name=writable(run),
        resmon__run__attempt=info.attempt,
        resmon__run__world_size=info.world_size,
        resmon__torch__version=info.torch,
        **one,
    )


def scope(version: str) -> InstrumentationScope:
    return InstrumentationScope(SCOPE, version)


def _uuid(of: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, writable(of)))


def nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


class OpenTelemetry:
    """Makes requests from views. It remembers the attributes of the runs that it was shown last, and nothing of the values."""

    def __init__(self, version: str) -> None:
        self._scope = scope(version)
        self._agent = of_agent(version)
        self._rows = Rows()

    def requests(self, view: AgentView) -> Iterator[tuple[MetricsData, int]]:
        """All that the view holds, and how many points each request has."""
        now = nanoseconds(time.time())
        self._rows.keep(view.runs)
        yield from self._cut(self._agent, self._of_agent(view, now))
        for run in view.runs:
            yield from self._cut(of_run(run.run, run.info), self._of_run(view, run, now))

    def _of_agent(self, view: AgentView, now: int) -> Iterator[tuple[Convention, Points]]:
        alone = replace(view, runs=())
        for metric in CATALOGUE:
            if "run" not in metric.labels and metric.kind != "histogram":
                # When they began nobody knows any more: agents before this one have counted, too.
                yield CONVENTIONS[metric.name], _numbers(of_others(metric, alone), 0, now)

    def _of_run(self, view: AgentView, run: RunView, now: int) -> Iterator[tuple[Convention, Points]]:
        alone, rows, start = replace(view, runs=(run,)), self._rows.of(run), nanoseconds(run.started)
        series = 0
        for metric in CATALOGUE:
            found: Points
            if "run" not in metric.labels or metric.name == "resmon_run_series":
                continue
            if metric.name == "resmon_step_duration_seconds":
                found = list(_durations(run, start, now))
            elif metric.kind == "histogram":
                found = [
                    ExponentialHistogramDataPoint(
                        attributes=attributes,
                        start_time_unix_nano=start,
                        time_unix_nano=now,
                        count=each.count,
                        sum=each.sum,
                        scale=0,
                        zero_count=each.zero_count,
                        positive=Buckets(each.first - 1, each.counts),
                        negative=_NOTHING,
                        flags=0,
                        min=None,  # type: ignore[arg-type]  # is not known; the encoder leaves it out
                        max=None,  # type: ignore[arg-type]
                    )
                    for attributes, with_threshold in of_magnitudes(run, rows)
                    if (each := with_threshold.without_threshold())
                ]
            elif is_of_blocks(metric):
                found = _numbers(of_blocks(metric, run, rows), start, now)
            else:
                found = _numbers(of_others(metric, alone), start, now)
            series += len(found)
            yield CONVENTIONS[metric.name], found
        yield CONVENTIONS["resmon_run_series"], _numbers([({"run": writable(run.run)}, series + 1)], start, now)  # and this one

    def _cut(self, of: Resource, metrics: Iterable[tuple[Convention, Points]]) -> Iterator[tuple[MetricsData, int]]:
        """Requests of at most MOST_POINTS; a metric may lie in two."""
        waiting: list[Metric] = []
        count = 0
        for convention, points in metrics:
            rest = iter(points)
            while part := list(islice(rest, MOST_POINTS - count)):
                waiting.append(_metric(convention, part))
                count += len(part)
                if count == MOST_POINTS:
                    yield self._request(of, waiting), count
                    waiting, count = [], 0
        if waiting:
            yield self._request(of, waiting), count

    def _request(self, of: Resource, metrics: list[Metric]) -> MetricsData:
        return MetricsData([ResourceMetrics(of, [ScopeMetrics(self._scope, metrics, "")], "")])


def _numbers(points: Iterable[Point], start: int, now: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(attributes, start, now, value) for attributes, value in points]


def _durations(run: RunView, start: int, now: int) -> Iterator[HistogramDataPoint]:
    bounds = DURATION_EDGES.tolist()
    for rank in run.ranks:
        if rank.record is not None:
            counts = rank.record.duration_buckets.tolist()
            yield HistogramDataPoint(
                attributes={"run": writable(run.run), "rank": str(rank.rank)},
                start_time_unix_nano=start,
                time_unix_nano=now,
                count=sum(counts),
                sum=rank.record.duration_total,
                bucket_counts=counts,
                explicit_bounds=bounds,
                min=None,  # type: ignore[arg-type]  # is not known; the encoder leaves it out
                max=None,  # type: ignore[arg-type]
            )


def _metric(convention: Convention, points: Points) -> Metric:
    metric = convention.metric
    data: Gauge | Sum | Histogram | ExponentialHistogram
    numbers = [each for each in points if isinstance(each, NumberDataPoint)]
    if metric.kind == "gauge":
        data = Gauge(numbers)
    elif metric.kind == "counter":
        data = Sum(numbers, _CUMULATIVE, is_monotonic=True)
    elif metric.name == "resmon_step_duration_seconds":
        data = Histogram([each for each in points if isinstance(each, HistogramDataPoint)], _CUMULATIVE)
    else:
        data = ExponentialHistogram([each for each in points if isinstance(each, ExponentialHistogramDataPoint)], _CUMULATIVE)
    return Metric(convention.name, metric.help, convention.unit, data)
