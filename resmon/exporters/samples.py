"""Where the values of the run's and the agent's own gauges and counters come from, for every exporter alike.

A metric of the catalogue that is neither a histogram nor one of blocks (those stand in tables, view.BlockTable) has its samples
from here: label values in the catalogue's order, and the number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from resmon.catalogue import Metric
from resmon.exporters.names import writable
from resmon.exporters.view import AgentView, RankView, RunView
from resmon.records import GROUP_VALUES, INCIDENT_KINDS, OUTCOMES, PHASES

# Scores that have a metric of their own.
OWN_METRICS = ("loss", "epoch")

GPU_VALUES = ("utilization_ratio", "memory_used_bytes", "memory_total_bytes", "temperature_celsius", "power_watts")

_RATE = GROUP_VALUES.index("learning_rate")

Sample = tuple[tuple[str, ...], float]


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


def _per_rank(value: Callable[[RankView], float | None]) -> Callable[[AgentView], Iterator[Sample]]:
    def samples(view: AgentView) -> Iterator[Sample]:
        ranks = ((run, rank) for run in view.runs for rank in run.ranks)
        return (((run.run, str(rank.rank)), number) for run, rank in ranks if (number := value(rank)) is not None)

    return samples


def _counter(name: str) -> Callable[[RankView], float]:
    """A counter is there, at 0, before the first record: the increase to its first value must be seen."""
    return lambda rank: 0.0 if rank.record is None else float(getattr(rank.record, name))


def _of_run(name: str) -> Callable[[RankView], float | None]:
    return lambda rank: None if rank.record is None else rank.record.run_value(name)


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


def _of_process(name: str) -> Callable[[RankView], float | None]:
    return lambda rank: None if rank.process is None else getattr(rank.process, name)


def _of_gpu(name: str) -> Callable[[AgentView], Iterator[Sample]]:
    return lambda view: (((gpu.gpu,), value) for gpu in view.gpus if (value := getattr(gpu, name)) is not None)


def _agent(value: Callable[[AgentView], float]) -> Callable[[AgentView], Iterator[Sample]]:
    return lambda view: iter([((), value(view))])


SAMPLES: Mapping[str, Callable[[AgentView], Iterable[Sample]]] = {
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
    "resmon_nonfinite_steps_total": _per_rank(lambda rank: rank.nonfinite_steps),
    "resmon_step_phase_seconds_total": _phases,
    "resmon_samples_total": _per_rank(_counter("samples_total")),
    **{
        f"resmon_{where}memory{what}_bytes": _per_rank(_of_run(f"{where}memory{what}"))
        for where in ("", "device_")
        for what in ("", "_peak", "_free")
    },
    "resmon_monitor_step_seconds": _per_rank(_of_run("monitor_seconds")),
    "resmon_monitor_errors_total": _per_rank(_counter("errors_total")),
    "resmon_last_step_timestamp_seconds": _per_rank(lambda rank: None if rank.record is None else rank.record.time),
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
    "resmon_agent_otlp_dropped_total": lambda view: (((signal,), count) for signal, count in view.otlp_dropped.items()),
    "resmon_agent_held_seconds_total": _agent(lambda view: view.held_seconds),
    "resmon_agent_collect_duration_seconds": _agent(lambda view: view.collect_seconds),
}


def samples(metric: Metric, view: AgentView) -> Iterator[Sample]:
    """Of one in SAMPLES, under label values that an exposition can carry; two that become the same are one, the first."""
    seen: set[tuple[str, ...]] = set()
    for labels, value in SAMPLES[metric.name](view):
        labels = tuple(map(writable, labels))
        if labels not in seen:
            seen.add(labels)
            yield labels, value
