"""What the metrics of the catalogue are called in OpenTelemetry, and in which units: its semantic conventions, in one table.

Names have a dot where what is measured belongs to something (`resmon.block.skip_rms`), an underscore within a word of several, no
unit and no `_total`; units are UCUM's, with what is counted in braces (https://opentelemetry.io/docs/specs/semconv/general/metrics/).
Attributes are the catalogue's labels. So what OpenTelemetry's rules make of such a metric for Prometheus
(https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/) is the catalogue's name again: dashboards and
alerts hold for what came through a collector. That is why a number without a unit that is no ratio has none here, and not `1`,
of which those rules make the suffix `_ratio`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resmon.catalogue import CATALOGUE, Metric

SCOPE = "resmon"  # the instrumentation scope of metrics and events

# Of the catalogue's units; `_` before one of these at the end of a name says the same and goes.
UNITS = {"seconds": "s", "bytes": "By", "celsius": "Cel", "watts": "W"}

# What is measured belongs to one of these.
SUBJECTS = ("agent", "block", "checkpoint", "finding", "gpu", "group", "monitor", "process", "run", "step")

# What is counted, of metrics whose unit the catalogue does not have.
COUNTED = {
    "resmon_block_nonfinite_steps_total": "step",
    "resmon_run_blocks": "block",
    "resmon_run_folded_blocks": "block",
    "resmon_run_series": "series",
    "resmon_run_series_limit": "series",
    "resmon_epoch": "epoch",
    "resmon_checkpoint_step": "step",
    "resmon_steps_total": "step",
    "resmon_skipped_steps_total": "step",
    "resmon_clipped_steps_total": "step",
    "resmon_nonfinite_steps_total": "step",
    "resmon_samples_total": "sample",
    "resmon_process_threads": "thread",
    "resmon_process_open_fds": "file_descriptor",
    "resmon_monitor_errors_total": "error",
    "resmon_finding_active": "finding",
    "resmon_incidents_total": "incident",
    "resmon_runs_total": "run",
    "resmon_runs_active": "run",
    "resmon_agent_skipped_rows_total": "row",
    "resmon_agent_errors_total": "error",
    "resmon_agent_otlp_dropped_total": "item",
}

# The conventions have a name for the share of a whole that is in use.
UTILIZATION = {"resmon_gpu_utilization_ratio": "resmon.gpu.utilization"}


@dataclass(frozen=True, slots=True)
class Convention:
    """A metric of the catalogue, as OpenTelemetry has it."""

    metric: Metric
    name: str
    unit: str  # "" where there is none


def _name(metric: Metric) -> str:
    if metric.name in UTILIZATION:
        return UTILIZATION[metric.name]
    name = metric.name.removesuffix("_total").removesuffix(f"_{metric.unit}").removeprefix("resmon_")
    subject, _, rest = name.partition("_")
    return f"resmon.{subject}.{rest}" if subject in SUBJECTS and rest else f"resmon.{name}"


def _unit(metric: Metric) -> str:
    if metric.unit:
        return UNITS[metric.unit]
    if metric.name in COUNTED:
        return f"{{{COUNTED[metric.name]}}}"
    return "1" if metric.name.endswith("_ratio") else ""


CONVENTIONS: Mapping[str, Convention] = {each.name: Convention(each, _name(each), _unit(each)) for each in CATALOGUE}
