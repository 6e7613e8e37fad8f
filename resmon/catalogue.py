"""Every metric that resmon exports, in one table.

A metric that is not here is not exported, alerted on, drawn or documented. Names follow Prometheus'
conventions: base units, `_total` on counters, ratios from 0 to 1; the block is a label, never part of a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricKind = Literal["gauge", "counter", "histogram"]

# The classic buckets in which `resmon_block_activation_magnitude` is exported: every second edge of the flight's histogram
# (records.MAGNITUDE_EDGES) in the range where activations live, so that a block costs 17 bucket series and not 42.
EXPORTED_MAGNITUDE_EXPONENTS = tuple(range(-14, 17, 2))

# How far back the `_max` gauges look, in seconds. A fixed window instead of "since the last scrape", so that two Prometheus
# servers that scrape the same agent do not rob each other of a spike; longer than any usual scrape interval.
MAXIMUM_WINDOW = 60.0

RUN = ("run", "model")
BLOCK = ("run", "model", "block")
OF_BLOCK = "resmon_block_"  # what the names of blocks' metrics begin with


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family; `labels` are all the labels that its samples carry (besides `le`)."""

    name: str
    kind: MetricKind
    unit: str  # "" where it is a count or has none
    labels: tuple[str, ...]
    help: str


CATALOGUE: tuple[Metric, ...] = (
    # Per block, merged over the ranks of this machine.
    Metric(
        "resmon_block_depth",
        "gauge",
        "",
        BLOCK,
        "The block's place in the order in which its model's blocks run, from 0; a stage's is that of its first block.",
    ),
    Metric("resmon_block_skip_rms", "gauge", "", BLOCK, "Root mean square of the skip operand of the residual add, last step."),
    Metric("resmon_block_branch_rms", "gauge", "", BLOCK, "Root mean square of the branch operand of the residual add, last step."),
    Metric("resmon_block_output_rms", "gauge", "", BLOCK, "Root mean square of the residual add's result, last step."),
    Metric("resmon_block_branch_skip_ratio", "gauge", "", BLOCK, "branch_rms / skip_rms, last step; absent where skip_rms is 0."),
    Metric(
        "resmon_block_branch_skip_ratio_max", "gauge", "", BLOCK, "Largest branch_skip_ratio of the steps of the last 60 seconds."
    ),
    Metric(
        "resmon_block_gradient_norm",
        "gauge",
        "",
        BLOCK,
        "L2 norm of the gradients of the parameters between skip and add, unscaled, before clipping, last step; absent if frozen.",
    ),
    Metric("resmon_block_gradient_norm_max", "gauge", "", BLOCK, "Largest gradient_norm of the steps of the last 60 seconds."),
    Metric("resmon_block_output_gradient_norm", "gauge", "", BLOCK, "L2 norm of the loss gradient at the add's result, last step."),
    Metric(
        "resmon_block_output_gradient_norm_max",
        "gauge",
        "",
        BLOCK,
        "Largest output_gradient_norm of the steps of the last 60 seconds.",
    ),
    Metric(
        "resmon_block_branch_skip_ratio_median",
        "gauge",
        "",
        BLOCK,
        "Median over sampled positions of branch over skip, last step; a few positions with huge activations do not move it.",
    ),
    Metric(
        "resmon_block_alignment",
        "gauge",
        "",
        BLOCK,
        "Cosine of skip and branch, last step; below 0 the branch takes back what the stream holds.",
    ),
    Metric(
        "resmon_block_growth", "gauge", "", BLOCK, "output_rms / skip_rms, last step: what the block multiplies the stream with."
    ),
    Metric(
        "resmon_block_keep_ratio",
        "gauge",
        "",
        BLOCK,
        "Share of samples whose branch was kept, last step; absent where no random operation drops whole samples.",
    ),
    Metric(
        "resmon_block_dead_unit_ratio",
        "gauge",
        "",
        BLOCK,
        "Share of units before the branch's last layer that were zero at each of the last 300 and more sampled positions.",
    ),
    Metric("resmon_block_output_peak", "gauge", "", BLOCK, "Largest absolute value at the add's result, last step."),
    Metric(
        "resmon_block_headroom",
        "gauge",
        "",
        BLOCK,
        "Doublings until the largest 16-bit number of operands and result overflows, last step; absent without such a dtype.",
    ),
    Metric(
        "resmon_block_activation_bytes",
        "gauge",
        "bytes",
        BLOCK,
        "Bytes that autograd keeps of the block for the backward pass, when last looked at; absent where the model is compiled.",
    ),
    Metric(
        "resmon_block_activation_magnitude", "histogram", "", BLOCK, "Absolute values at the add's result, sampled at every step."
    ),
    Metric(
        "resmon_block_nonfinite_steps_total",
        "counter",
        "",
        BLOCK,
        "Steps in which the add's result or its gradient had a NaN or infinite element.",
    ),
    # Per run.
    Metric(
        "resmon_run_info", "gauge", "", ("run", "attempt", "model", "host", "world_size", "git_commit", "torch", "resmon"), "1."
    ),
    Metric("resmon_run_start_timestamp_seconds", "gauge", "seconds", ("run",), "Unix time at which the attempt began here."),
    Metric(
        "resmon_run_end_timestamp_seconds",
        "gauge",
        "seconds",
        ("run", "outcome"),
        "Unix time at which it ended; absent while it is under way.",
    ),
    Metric(
        "resmon_run_outcome",
        "gauge",
        "",
        (*RUN, "outcome"),
        "1 from the end of the attempt for as long as its series last; absent while it is under way.",
    ),
    Metric("resmon_run_blocks", "gauge", "", RUN, "Residual blocks watched."),
    Metric(
        "resmon_run_folded_blocks", "gauge", "", RUN, "Blocks without series of their own: what is exported of them is their stage."
    ),
    Metric("resmon_run_series", "gauge", "", ("run",), "Series that the run exports, this one too; a native histogram is one."),
    Metric(
        "resmon_run_series_limit",
        "gauge",
        "",
        ("run",),
        "Series that the run may export (max_series); its own go beyond if they must.",
    ),
    Metric("resmon_loss", "gauge", "", ("run",), "The loss as logged, newest step that has one."),
    Metric("resmon_loss_max", "gauge", "", ("run",), "Largest logged loss of the steps of the last 60 seconds."),
    Metric("resmon_score", "gauge", "", ("run", "score"), "Any other scalar as logged, newest step that has one."),
    Metric(
        "resmon_score_gap",
        "gauge",
        "",
        ("run", "score"),
        "Newest validation score minus the mean of the training scores logged since the validation before.",
    ),
    Metric("resmon_epoch", "gauge", "", ("run",), "The epoch as logged, newest step that has one."),
    Metric("resmon_target_reached", "gauge", "", ("run", "target"), "1 once the score has met the target, 0 before."),
    Metric(
        "resmon_target_seconds",
        "gauge",
        "seconds",
        ("run", "target"),
        "Time from the start of the run until the score first met the target; absent before.",
    ),
    Metric("resmon_checkpoint_step", "gauge", "", ("run",), "Step whose weights the newest named checkpoint holds."),
    Metric("resmon_checkpoint_timestamp_seconds", "gauge", "seconds", ("run",), "Unix time of the newest named checkpoint."),
    Metric("resmon_learning_rate", "gauge", "", ("run",), "Learning rate of the first parameter group, last step."),
    Metric("resmon_group_learning_rate", "gauge", "", ("run", "group"), "Learning rate of each parameter group, last step."),
    Metric(
        "resmon_group_gradient_norm",
        "gauge",
        "",
        ("run", "group"),
        "L2 norm of the gradients of each parameter group, unscaled and before clipping, last step.",
    ),
    Metric("resmon_gradient_norm", "gauge", "", ("run",), "L2 norm of all gradients, unscaled and before clipping, last step."),
    Metric(
        "resmon_gradient_clip_factor",
        "gauge",
        "",
        ("run",),
        "What clipping multiplied the gradient norm with, last step; 1 is untouched, absent where no clipping is seen.",
    ),
    Metric("resmon_loss_scale", "gauge", "", ("run",), "What the gradient scaler multiplies the loss with; absent without one."),
    Metric("resmon_steps_total", "counter", "", ("run", "rank"), "Optimizer steps attempted and recorded in this attempt."),
    Metric("resmon_skipped_steps_total", "counter", "", ("run", "rank"), "Steps that a gradient scaler skipped."),
    Metric("resmon_clipped_steps_total", "counter", "", ("run", "rank"), "Steps whose gradients clipping made smaller."),
    Metric(
        "resmon_nonfinite_steps_total",
        "counter",
        "",
        ("run", "rank"),
        "Steps with NaN or infinite values in a block, its gradients or their norm; gradients of skipped steps do not count.",
    ),
    Metric("resmon_step_duration_seconds", "histogram", "seconds", ("run", "rank"), "Time from one step boundary to the next."),
    Metric(
        "resmon_step_phase_seconds_total",
        "counter",
        "seconds",
        ("run", "rank", "phase"),
        "Time spent waiting for data, in forward, backward and optimizer, and in everything else of the loop.",
    ),
    Metric(
        "resmon_samples_total",
        "counter",
        "",
        ("run", "rank"),
        "Samples that the models were trained on; its rate is the throughput.",
    ),
    Metric("resmon_memory_bytes", "gauge", "bytes", ("run", "rank"), "Main memory that the training process has in use."),
    Metric("resmon_memory_peak_bytes", "gauge", "bytes", ("run", "rank"), "Most main memory that the process has had in use."),
    Metric("resmon_memory_free_bytes", "gauge", "bytes", ("run", "rank"), "Main memory that the process could still have."),
    Metric("resmon_device_memory_bytes", "gauge", "bytes", ("run", "rank"), "Memory of the models' devices that tensors take."),
    Metric("resmon_device_memory_peak_bytes", "gauge", "bytes", ("run", "rank"), "Most memory that tensors have taken there."),
    Metric("resmon_device_memory_free_bytes", "gauge", "bytes", ("run", "rank"), "Memory that tensors could still take there."),
    Metric(
        "resmon_process_cpu_seconds_total",
        "counter",
        "seconds",
        ("run", "rank"),
        "CPU time of the training process, all threads, user and system; absent once it is gone.",
    ),
    Metric("resmon_process_threads", "gauge", "", ("run", "rank"), "Threads of the training process."),
    Metric("resmon_process_open_fds", "gauge", "", ("run", "rank"), "Open file descriptors of the training process."),
    Metric("resmon_process_read_bytes_total", "counter", "bytes", ("run", "rank"), "Bytes that the process has read from storage."),
    Metric(
        "resmon_process_written_bytes_total", "counter", "bytes", ("run", "rank"), "Bytes that the process has written to storage."
    ),
    Metric("resmon_monitor_step_seconds", "gauge", "seconds", ("run", "rank"), "Time that resmon itself took of the last step."),
    Metric(
        "resmon_monitor_errors_total",
        "counter",
        "",
        ("run", "rank"),
        "Faults inside the monitor that were kept from the training loop.",
    ),
    Metric("resmon_last_step_timestamp_seconds", "gauge", "seconds", ("run", "rank"), "Unix time of the last recorded step."),
    Metric(
        "resmon_finding_active",
        "gauge",
        "",
        ("run", "model", "block", "finding", "severity"),
        "1 while the finding is open and until two scrapes have had it, then 0.",
    ),
    Metric("resmon_incidents_total", "counter", "", ("run", "kind"), "What broke in the attempt's ranks, by kind of failure."),
    Metric("resmon_run_stalled", "gauge", "", ("run",), "1 while a rank's process lives and makes no step, else 0."),
    # The machine's GPUs, whoever uses them.
    Metric("resmon_gpu_utilization_ratio", "gauge", "", ("gpu",), "Share of the last sampling period in which the GPU was busy."),
    Metric("resmon_gpu_memory_used_bytes", "gauge", "bytes", ("gpu",), "Memory of the GPU that is in use, by anybody."),
    Metric("resmon_gpu_memory_total_bytes", "gauge", "bytes", ("gpu",), "Memory that the GPU has."),
    Metric("resmon_gpu_temperature_celsius", "gauge", "celsius", ("gpu",), "Temperature of the GPU."),
    Metric("resmon_gpu_power_watts", "gauge", "watts", ("gpu",), "Power that the GPU draws."),
    # The agent itself.
    Metric("resmon_runs_total", "counter", "", ("outcome",), "Attempts that ended, by outcome."),
    Metric("resmon_runs_active", "gauge", "", (), "Attempts under way."),
    Metric("resmon_agent_info", "gauge", "", ("version",), "1."),
    Metric("resmon_agent_skipped_rows_total", "counter", "", (), "Damaged rows of flights that were skipped."),
    Metric(
        "resmon_agent_errors_total",
        "counter",
        "",
        (),
        "Flights that could not be followed, faults of detectors, web configurations that cannot be used.",
    ),
    Metric(
        "resmon_agent_last_error_timestamp_seconds",
        "gauge",
        "seconds",
        (),
        "Unix time of the newest error of this agent; absent while it has met none.",
    ),
    Metric(
        "resmon_agent_otlp_dropped_total",
        "counter",
        "",
        ("signal",),
        "Data points (metrics) and events (logs) that the OTLP receiver did not take; absent where none is set.",
    ),
    Metric(
        "resmon_agent_held_seconds_total",
        "counter",
        "seconds",
        (),
        "Time that answers were held back so that reading does not slow trainings, of all answers together.",
    ),
    Metric(
        "resmon_agent_collect_duration_seconds", "gauge", "seconds", (), "Time that the last scrape took to collect and render."
    ),
)

BY_NAME = {metric.name: metric for metric in CATALOGUE}
