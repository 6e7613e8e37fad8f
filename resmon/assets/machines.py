"""A run's numbers over all its machines, as recording rules: each agent merges the ranks of its own machine and knows no other.

Exact: gradient norms (each machine's square is its part of the whole square), whatever is counted, the histogram
of step durations, what is a largest or a least. A norm is absent where a machine lacks its share, and a block's where the run is on
several machines and folded. Whether all machines of a run are scraped no rule can tell.

Root mean squares have no element counts beside them; they are exact where each machine works on equally many elements a step, as
data parallel training with equal batches does, and ratios come from them.

The histogram of activation magnitudes has no rule, as its buckets are most of a run's series: sum by (run, model, block, le) of it
is exact where it is asked for. A run on several machines is counted in `resmon_runs_total` by each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resmon.rules import Recording

BLOCK = "run_model_block"
STEP_SECONDS = "run:resmon_step_duration_seconds:mean5m"

Exactness = Literal["exact", "equal elements", "of equal batches"]


@dataclass(frozen=True, slots=True)
class Merged:
    """One series over the machines of a run: how it is computed, and what has to hold for it to be the truth."""

    record: str
    expr: str
    holds: Exactness = "exact"

    def rule(self) -> Recording:
        return Recording(self.record, self.expr)


# Of two machines and more, on which the blocks that have series of their own need not be the same.
_FOLDED = (
    "unless on (run, model) (\n"
    "  max by (run, model) (resmon_run_folded_blocks) > 0 and count by (run, model) (resmon_run_folded_blocks) > 1\n"
    ")"
)


def _norm(level: str, metric: str, machines: str, more: str = "") -> Merged:
    """A norm from the machines' shares, absent where one of them lacks; `machines` is there for each that has its part."""
    by = level.replace("_", ", ")
    expr = f"sqrt(sum by ({by}) ({metric} ^ 2))\nand count by ({by}) ({metric}) == count by ({by}) ({machines})"
    return Merged(f"{level}:{metric}:sqrt_sum_squares", f"{expr}\n{more}".strip())


def _rms(of: str) -> Merged:
    metric = f"resmon_block_{of}_rms"
    return Merged(f"{BLOCK}:{metric}:sqrt_mean_squares", f"sqrt(avg by (run, model, block) ({metric} ^ 2))", "equal elements")


MERGED: tuple[Merged, ...] = (
    _norm(BLOCK, "resmon_block_gradient_norm", "resmon_block_nonfinite_steps_total", _FOLDED),
    _norm(BLOCK, "resmon_block_output_gradient_norm", "resmon_block_nonfinite_steps_total", _FOLDED),
    _norm("run", "resmon_gradient_norm", "resmon_run_info"),
    _norm("run_group", "resmon_group_gradient_norm", "resmon_group_learning_rate"),
    _rms("skip"),
    _rms("branch"),
    _rms("output"),
    Merged(
        f"{BLOCK}:resmon_block_branch_skip_ratio:ratio_of_sqrt_mean_squares",
        f"{BLOCK}:resmon_block_branch_rms:sqrt_mean_squares\n/ ({BLOCK}:resmon_block_skip_rms:sqrt_mean_squares > 0)",
        "equal elements",
    ),
    Merged(f"{BLOCK}:resmon_block_output_peak:max", "max by (run, model, block) (resmon_block_output_peak)"),
    Merged(f"{BLOCK}:resmon_block_headroom:min", "min by (run, model, block) (resmon_block_headroom)"),
    Merged(f"{BLOCK}:resmon_block_activation_bytes:sum", "sum by (run, model, block) (resmon_block_activation_bytes)"),
    Merged(
        f"{BLOCK}_finding_severity:resmon_finding_active:max",
        "max by (run, model, block, finding, severity) (resmon_finding_active)",
    ),
    Merged("run:resmon_loss:avg", "avg by (run) (resmon_loss)", "of equal batches"),
    Merged("run:resmon_steps:rate5m", "max by (run) (rate(resmon_steps_total[5m]))"),  # ranks step together
    Merged("run:resmon_samples:rate5m", "sum by (run) (rate(resmon_samples_total[5m]))"),
    Merged("run:resmon_memory_free_bytes:min", "min by (run) (resmon_memory_free_bytes)"),
    Merged("run:resmon_device_memory_free_bytes:min", "min by (run) (resmon_device_memory_free_bytes)"),
    Merged("run_le:resmon_step_duration_seconds_bucket:rate5m", "sum by (run, le) (rate(resmon_step_duration_seconds_bucket[5m]))"),
    Merged(
        STEP_SECONDS,
        "sum by (run) (rate(resmon_step_duration_seconds_sum[5m]))\n"
        "/ (sum by (run) (rate(resmon_step_duration_seconds_count[5m])) > 0)",
    ),
    Merged(
        "run:resmon_step_duration_seconds:p50_5m",
        "histogram_quantile(0.5, run_le:resmon_step_duration_seconds_bucket:rate5m)",
    ),
    Merged(
        "run:resmon_step_duration_seconds:p99_5m",
        "histogram_quantile(0.99, run_le:resmon_step_duration_seconds_bucket:rate5m)",
    ),
    Merged("job:resmon_runs_active:sum", "sum by (job) (resmon_runs_active)"),
    Merged("outcome:resmon_runs_total:sum", "sum by (outcome) (resmon_runs_total)"),
)
