"""Moments at which training makes the host wait for the device: counted by the profiler, and named by torch itself.

While the host waits it gives the device nothing new to do, and that idle time is lost also where no clock shows it. The two
witnesses see different things: the profiler every call of the CUDA runtime, whoever makes it; torch only its own, but with the line
of Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

# The calls of the CUDA runtime and of its driver that return when the device is done. A copy to pageable memory is an asynchronous
# call and a cudaStreamSynchronize. cudaEventQuery, cudaStreamWaitEvent and copies to pinned memory wait for nothing.
CALLS = frozenset(
    (
        *("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaFree", "cudaFreeHost"),
        *("cuCtxSynchronize", "cuStreamSynchronize", "cuEventSynchronize", "cuMemcpyDtoH_v2", "cuMemcpyHtoD_v2"),
    )
)
ITEM = "aten::_local_scalar_dense"  # a tensor's value as a Python number: no wait on a CPU, and one on every GPU
RANGE = "benchmarks.waits.stretch"
SYNCHRONIZING = "called a synchronizing CUDA operation"  # torch's warning says so
ROOT = Path(__file__).parent.parent


def count(stretch: Callable[[], object], on: torch.device) -> int:
    """How often the host waited within `stretch`; on a CPU, how often it would have, had a GPU been asked for a value."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on.type == "cuda" else [])
    with profile(activities=activities) as profiler, record_function(RANGE):
        stretch()
    return counted(profiler.events() or (), CALLS if on.type == "cuda" else {ITEM})


def counted(events: Iterable[FunctionEvent], names: Iterable[str]) -> int:
    """The events of these names that began within the stretch: the profiler itself waits for the device before and after it."""
    events, wanted = list(events), frozenset(names)
    # On a GPU a range is told twice, by the host's clock and by when its kernels ran.
    stretches = [event.time_range for event in events if event.name == RANGE and event.device_type.name == "CPU"]
    if len(stretches) != 1:
        raise RuntimeError(f"the profiler told of {len(stretches)} stretches where one was run: its events cannot be counted")
    (stretch,) = stretches
    return sum(event.name in wanted and stretch.start <= event.time_range.start <= stretch.end for event in events)


def places(stretch: Callable[[], object]) -> list[str]:
    """The lines of Python at which torch saw the host wait for a GPU within `stretch`.

    It warns and does not raise: resmon keeps errors from the loop, also this one.
    """
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            stretch()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return named(caught)


def named(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    found = {(w.filename, w.lineno) for w in caught if SYNCHRONIZING in str(w.message)}
    return [f"{_short(Path(filename))}:{line}" for filename, line in sorted(found)]


def _short(path: Path) -> str:
    """From the repository on, or the last folders of what is installed: the results are published."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "/".join(path.parts[-3:])
