"""A view as Prometheus reads it: text format 0.0.4, OpenMetrics 1.0 or protobuf, as the scraper's Accept header asks.

Per-block families are written straight from arrays: a run has tens of series per block, and one Python object per series would
take a quarter of a second for 6,000. Label sets are escaped, or encoded, once per set of sites; in text a histogram is one format
string per run that all its counts fill at once. Everything else goes through prometheus_client, from a registry of our own. Only
what the catalogue names is written, with the catalogue's help. Protobuf, which a server asks for that takes native histograms, is
the only one that can carry them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from resmon.catalogue import BLOCK, BY_NAME, CATALOGUE, EXPORTED_MAGNITUDE_EXPONENTS, Metric
from resmon.exporters import protobuf
from resmon.exporters.messages import PREFIX, Messages
from resmon.exporters.names import distinct, writable
from resmon.exporters.view import AgentView, BlockTable, Row, RunView
from resmon.records import (
    DURATION_EDGES,
    GROUP_VALUES,
    INCIDENT_KINDS,
    MAGNITUDE_EDGES,
    MAGNITUDE_LARGER,
    MAGNITUDE_LOW,
    MAGNITUDE_ZERO,
    OUTCOMES,
    PHASES,
)
from resmon.statistics import Column

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

PROTOBUF = protobuf.CONTENT_TYPE

# By content type, the one that carries most first: how it is asked for, and the known values of its parameters; "" is none given.
_KINDS: Mapping[str, tuple[str, Mapping[str, Sequence[str]]]] = {
    PROTOBUF: (
        "application/vnd.google.protobuf",
        {"proto": ("io.prometheus.client.metricfamily",), "encoding": ("delimited",)},
    ),
    OPENMETRICS: ("application/openmetrics-text", {"version": ("", "0.0.1", "1.0.0")}),
    TEXT: ("text/plain", {"version": ("", "0.0.4")}),
}

# Scores that have a metric of their own.
OWN_METRICS = ("loss", "epoch")

GPU_VALUES = ("utilization_ratio", "memory_used_bytes", "memory_total_bytes", "temperature_celsius", "power_watts")

_EXPORTED_EDGES = np.array(EXPORTED_MAGNITUDE_EXPONENTS) - MAGNITUDE_LOW  # columns of magnitude_buckets
_EXPORTED_LE = [repr(float(MAGNITUDE_EDGES[i])) for i in _EXPORTED_EDGES] + ["+Inf"]
_RATE = GROUP_VALUES.index("learning_rate")
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
    return writable(value).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


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
        tables = "".join(self._tables(view, kind)).encode()
        if kind is OPENMETRICS:
            rest: bytes = generate_openmetrics(self._registry)  # type: ignore[no-untyped-call]
        else:
            rest = generate_text(self._registry)
        return tables + rest, kind  # the client's part comes last: in OpenMetrics it brings the mark of the end

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
                    yield _magnitudes(labels, blocks)
                elif metric.kind == "counter":
                    yield _lines(metric.name, labels.sets, map(str, blocks.nonfinite_steps.tolist()))
                else:
                    yield _gauges(metric.name, labels.sets, blocks.gauges[metric.name.removeprefix(PREFIX)])


@dataclass(frozen=True, slots=True, eq=False)
class _Labels:
    """What stands between the name and the value in every line of one run."""

    rows: tuple[Row, ...]
    models: dict[str, str]
    sets: list[str]  # one per row, with braces and the blank before the value
    magnitudes: str  # the lines of the histogram, with %d for counts and %s for sums

    @classmethod
    def of(cls, run: RunView, rows: tuple[Row, ...]) -> _Labels:
        models = run.info.models
        bare = [
            f'run="{_escaped(run.run)}",model="{_escaped(models.get(row.model, row.model))}",block="{_escaped(row.name)}"'
            for row in distinct(rows, models)
        ]
        name = PREFIX + "activation_magnitude"
        magnitudes = "".join(
            "".join(f'{name}_bucket{{{labels},le="{le}"}} %d\n' for le in _EXPORTED_LE)
            + f"{name}_count{{{labels}}} %d\n{name}_sum{{{labels}}} %s\n"
            for labels in (labels.replace("%", "%%") for labels in bare)
        )
        return cls(rows, dict(run.info.models), [f"{{{labels}}} " for labels in bare], magnitudes)


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


def _magnitudes(labels: _Labels, blocks: BlockTable) -> str:
    buckets = blocks.magnitude_buckets
    below = buckets[:, :MAGNITUDE_LARGER].cumsum(axis=1) + buckets[:, MAGNITUDE_ZERO, None]  # zero is below every edge
    count = below[:, -1] + buckets[:, MAGNITUDE_LARGER]
    counts = np.column_stack((below[:, _EXPORTED_EDGES], count, count)).tolist()  # +Inf and _count are the same number
    sums = _numbers(blocks.magnitude_sum.tolist(), bool(np.isfinite(blocks.magnitude_sum).all()))
    return labels.magnitudes % tuple(chain.from_iterable((*row, total) for row, total in zip(counts, sums, strict=True)))


def _series(blocks: BlockTable, native: bool) -> int:
    """How many series the tables have of one run. A native histogram is one."""
    gauges = sum(int(column.present.sum()) for name, column in blocks.gauges.items() if PREFIX + name in BY_NAME)
    return gauges + len(blocks.rows) * (1 + (1 if native else len(_EXPORTED_LE) + 2))


Sample = tuple[tuple[str, ...], float]


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
            elif metric.name in _SAMPLES:
                make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = make(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
                seen: set[tuple[str, ...]] = set()
                for labels, value in _SAMPLES[metric.name](view):
                    labels = tuple(map(writable, labels))
                    if labels not in seen:
                        seen.add(labels)
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


def _run_info(view: AgentView) -> Iterator[Sample]:
    for run in view.runs:
        info = run.info
        versions = (info.git_commit or "", info.torch, info.resmon)
        yield (run.run, str(info.attempt), _models(run), info.host, str(info.world_size), *versions), 1.0


def _outcomes(view: AgentView) -> Iterator[Sample]:
    return (((run.run, _models(run), run.outcome), 1.0) for run in view.runs if run.outcome is not None)


def _ends(view: AgentView) -> Iterator[Sample]:
    return (((run.run, run.outcome), run.ended) for run in view.runs if run.outcome is not None and run.ended is not None)


def _models(run: RunView) -> str:
    """What stands for all models of a run in its own series."""
    return ",".join(run.info.models.values())


def _per_model(blocks: Callable[[RunView], Mapping[str, int]]) -> Callable[[AgentView], Iterator[Sample]]:
    def samples(view: AgentView) -> Iterator[Sample]:
        return (((run.run, model), blocks(run).get(key, 0)) for run in view.runs for key, model in run.info.models.items())

    return samples


def _scores(view: AgentView) -> Iterator[Sample]:
    return (((run.run, name), value) for run in view.runs for name, value in run.scores.items() if name not in OWN_METRICS)


def _same_everywhere(name: str) -> Callable[[RunView], float | None]:
    """A value that all ranks have alike: the first one's that has it."""

    def value(run: RunView) -> float | None:
        values = (rank.record.run_value(name) for rank in run.ranks if rank.record is not None)
        return next((value for value in values if value is not None), None)

    return value


def _findings(view: AgentView) -> Iterator[Sample]:
    for run in view.runs:
        active: dict[tuple[str, ...], float] = {}
        for finding, is_open in run.findings:
            model = run.info.models.get(finding.model, finding.model)
            labels = (run.run, model, finding.block, finding.kind, finding.severity)
            active[labels] = max(active.get(labels, 0.0), float(is_open or finding.id in run.unseen))
        yield from active.items()


def _incidents(view: AgentView) -> Iterator[Sample]:
    """Every kind is there, at 0, before the first: its increase must be seen."""
    for run in view.runs:
        counts = Counter(incident.kind for incident in run.incidents)
        yield from (((run.run, kind), counts[kind]) for kind in INCIDENT_KINDS)


def _per_run(value: Callable[[RunView], float | None]) -> Callable[[AgentView], Iterator[Sample]]:
    def samples(view: AgentView) -> Iterator[Sample]:
        return (((run.run,), number) for run in view.runs if (number := value(run)) is not None)

    return samples


def _per_rank(value: Callable[[RunView, int], float | None]) -> Callable[[AgentView], Iterator[Sample]]:
    def samples(view: AgentView) -> Iterator[Sample]:
        for run in view.runs:
            for i, rank in enumerate(run.ranks):
                number = value(run, i)
                if number is not None:
                    yield (run.run, str(rank.rank)), number

    return samples


def _of_record(name: str) -> Callable[[RunView, int], float | None]:
    def value(run: RunView, i: int) -> float | None:
        record = run.ranks[i].record
        return None if record is None else float(getattr(record, name))

    return value


def _counter(name: str) -> Callable[[RunView, int], float | None]:
    """A counter is there, at 0, before the first record: the increase to its first value must be seen."""

    def value(run: RunView, i: int) -> float | None:
        record = run.ranks[i].record
        return 0.0 if record is None else float(getattr(record, name))

    return value


def _of_run(name: str) -> Callable[[RunView, int], float | None]:
    def value(run: RunView, i: int) -> float | None:
        record = run.ranks[i].record
        return None if record is None else record.run_value(name)

    return value


def _phases(view: AgentView) -> Iterator[Sample]:
    for run in view.runs:
        for rank in run.ranks:
            seconds = [0.0] * len(PHASES) if rank.record is None else rank.record.phase_totals.tolist()
            whole = 0.0 if rank.record is None else rank.record.duration_total
            for phase, total in zip((*PHASES, "other"), (*seconds, max(0.0, whole - sum(seconds))), strict=True):
                yield (run.run, str(rank.rank), phase), total


def _group_rates(view: AgentView) -> Iterator[Sample]:
    for run in view.runs:
        for rank in run.ranks:
            if rank.record is not None:
                rates, there = rank.record.groups[_RATE], rank.record.groups_present[_RATE]
                yield from (
                    ((run.run, name), rate) for name, rate, is_there in zip(rank.groups, rates, there, strict=True) if is_there
                )


def _group_norms(view: AgentView) -> Iterator[Sample]:
    return (((run.run, name), norm) for run in view.runs for name, norm in run.group_gradient_norms.items())


def _gaps(view: AgentView) -> Iterator[Sample]:
    return (((run.run, score), gap) for run in view.runs for score, gap in run.gaps.items())


def _targets_reached(view: AgentView) -> Iterator[Sample]:
    return (((run.run, target), float(target in run.reached)) for run in view.runs for target in run.info.targets)


def _target_seconds(view: AgentView) -> Iterator[Sample]:
    return (
        ((run.run, target), run.reached[target].seconds)
        for run in view.runs
        for target in run.info.targets
        if target in run.reached
    )


def _of_process(name: str) -> Callable[[RunView, int], float | None]:
    def value(run: RunView, i: int) -> float | None:
        process = run.ranks[i].process
        return None if process is None else getattr(process, name)

    return value


def _of_gpu(name: str) -> Callable[[AgentView], Iterator[Sample]]:
    return lambda view: (((gpu.gpu,), value) for gpu in view.gpus if (value := getattr(gpu, name)) is not None)


def _agent(value: Callable[[AgentView], float]) -> Callable[[AgentView], Iterator[Sample]]:
    return lambda view: iter([((), value(view))])


# Where the samples of gauges and counters come from; the catalogue holds the rest.
_SAMPLES: dict[str, Callable[[AgentView], Iterable[Sample]]] = {
    "resmon_run_info": _run_info,
    "resmon_run_start_timestamp_seconds": _per_run(lambda run: run.started),
    "resmon_run_end_timestamp_seconds": _ends,
    "resmon_run_outcome": _outcomes,
    "resmon_run_blocks": _per_model(lambda run: run.watched),
    "resmon_run_folded_blocks": _per_model(lambda run: run.folded),
    "resmon_run_series_limit": _per_run(lambda run: run.max_series),
    "resmon_loss": _per_run(lambda run: run.scores.get("loss")),
    "resmon_loss_max": _per_run(lambda run: run.loss_max),
    "resmon_score": _scores,
    "resmon_score_gap": _gaps,
    "resmon_epoch": _per_run(lambda run: run.scores.get("epoch")),
    "resmon_target_reached": _targets_reached,
    "resmon_target_seconds": _target_seconds,
    "resmon_checkpoint_step": _per_run(lambda run: None if run.checkpoint is None else run.checkpoint.step),
    "resmon_checkpoint_timestamp_seconds": _per_run(lambda run: None if run.checkpoint is None else run.checkpoint.time),
    "resmon_learning_rate": _per_run(_same_everywhere("learning_rate")),
    "resmon_group_learning_rate": _group_rates,
    "resmon_group_gradient_norm": _group_norms,
    "resmon_gradient_norm": _per_run(lambda run: run.gradient_norm),
    "resmon_gradient_clip_factor": _per_run(lambda run: run.clip_factor),
    "resmon_loss_scale": _per_run(_same_everywhere("loss_scale")),
    "resmon_steps_total": _per_rank(_counter("steps_total")),
    "resmon_skipped_steps_total": _per_rank(_counter("skipped_total")),
    "resmon_clipped_steps_total": _per_rank(_counter("clipped_total")),
    "resmon_nonfinite_steps_total": _per_rank(lambda run, i: run.ranks[i].nonfinite_steps),
    "resmon_step_phase_seconds_total": _phases,
    "resmon_samples_total": _per_rank(_counter("samples_total")),
    **{
        f"resmon_{where}memory{what}_bytes": _per_rank(_of_run(f"{where}memory{what}"))
        for where in ("", "device_")
        for what in ("", "_peak", "_free")
    },
    "resmon_monitor_step_seconds": _per_rank(_of_run("monitor_seconds")),
    "resmon_monitor_errors_total": _per_rank(_counter("errors_total")),
    "resmon_last_step_timestamp_seconds": _per_rank(_of_record("time")),
    "resmon_process_cpu_seconds_total": _per_rank(_of_process("cpu_seconds")),
    "resmon_process_threads": _per_rank(_of_process("threads")),
    "resmon_process_open_fds": _per_rank(_of_process("open_fds")),
    "resmon_process_read_bytes_total": _per_rank(_of_process("read_bytes")),
    "resmon_process_written_bytes_total": _per_rank(_of_process("written_bytes")),
    **{f"resmon_gpu_{name}": _of_gpu(name) for name in GPU_VALUES},
    "resmon_finding_active": _findings,
    "resmon_incidents_total": _incidents,
    "resmon_run_stalled": _per_run(lambda run: float(run.is_stalled)),
    "resmon_runs_total": lambda view: (((outcome,), view.runs_exported.get(outcome, 0)) for outcome in OUTCOMES),
    "resmon_runs_active": _agent(lambda view: view.runs_active),
    "resmon_agent_info": lambda view: [((view.version,), 1.0)],
    "resmon_agent_skipped_rows_total": _agent(lambda view: view.skipped_rows),
    "resmon_agent_errors_total": _agent(lambda view: view.errors),
    "resmon_agent_last_error_timestamp_seconds": lambda view: [] if view.last_error is None else [((), view.last_error)],
    "resmon_agent_collect_duration_seconds": _agent(lambda view: view.collect_seconds),
}
