"""What the operating system says of training processes, and the driver of GPUs: live, at this moment, kept nowhere.

A process is known by the lock that it holds on its flight, whose holder the kernel names, and not by the number that it wrote
down: that may have been reused, or be a number inside a container, and no start times need to be compared, which a clock that was
set would spoil. What may not be looked at is absent. GPUs are asked by a thread of their own, once a second, as a driver may take
its time or hang: no scrape waits for it. Without nvidia-ml-py, a driver or a GPU there are no figures, and nothing is said.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import psutil

from resmon.exporters.view import GpuView, ProcessView
from resmon.flight import layout

PERIOD = 1.0  # seconds between two looks at the GPUs
STALE = 10.0  # seconds after which what the driver said last is no longer shown

Answer = TypeVar("Answer")


def process(rank_folder: Path) -> ProcessView | None:
    """Of the process that records a rank's flight; None where it is gone or cannot be seen from here."""
    lock = rank_folder / layout.LOCK
    pid = layout.holder(lock)
    if pid is None:
        return None
    try:
        looked_at = psutil.Process(pid)
        with looked_at.oneshot():
            cpu = _allowed(looked_at.cpu_times)
            threads = _allowed(looked_at.num_threads)
            descriptors = _allowed(looked_at.num_fds)
            storage = _allowed(looked_at.io_counters)
    except (psutil.Error, OSError):
        return None
    if layout.holder(lock) != pid:  # it ended meanwhile, and all this may be of another
        return None
    return ProcessView(
        cpu_seconds=cpu and cpu.user + cpu.system,
        threads=threads,
        open_fds=descriptors,
        read_bytes=storage and storage.read_bytes,
        written_bytes=storage and storage.write_bytes,
    )


def _allowed(ask: Callable[[], Answer]) -> Answer | None:
    try:
        return ask()
    except (psutil.Error, OSError, NotImplementedError):
        return None


class Gpus:
    """The machine's GPUs, as last seen by a thread that looks until `close`."""

    def __init__(self, period: float = PERIOD, stale: float = STALE) -> None:
        self._period = period
        self._stale = stale
        self._stop = threading.Event()
        self._seen: tuple[float, tuple[GpuView, ...]] = (0.0, ())
        threading.Thread(target=self._look, name="gpus", daemon=True).start()

    def newest(self) -> tuple[GpuView, ...]:
        """What the driver said last, if it did so lately."""
        when, gpus = self._seen
        return gpus if time.monotonic() - when < self._stale else ()

    def close(self) -> None:
        """Look no more. A call that hangs in the driver is left to itself."""
        self._stop.set()

    def _look(self) -> None:
        try:
            library: Any = import_module("pynvml")
            library.nvmlInit()
        except Exception:  # noqa: BLE001 - not installed, without a driver, or broken: there are no figures then
            return
        while not self._stop.is_set():
            self._seen = (time.monotonic(), _gpus(library))
            self._stop.wait(self._period)


def _gpus(library: Any) -> tuple[GpuView, ...]:
    count = _told(library.nvmlDeviceGetCount) or 0
    handles = [_told(partial(library.nvmlDeviceGetHandleByIndex, i)) for i in range(count)]
    return tuple(_gpu(library, i, handle) for i, handle in enumerate(handles) if handle is not None)


def _gpu(library: Any, index: int, handle: Any) -> GpuView:
    percent = _told(lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu)
    memory = _told(lambda: library.nvmlDeviceGetMemoryInfo(handle))
    milliwatts = _told(lambda: library.nvmlDeviceGetPowerUsage(handle))
    return GpuView(
        gpu=str(index),
        utilization_ratio=None if percent is None else percent / 100,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        temperature_celsius=_told(lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
        power_watts=None if milliwatts is None else milliwatts / 1000,
    )


def _told(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception:  # noqa: BLE001 - an error of the library's, or a function that it does not have: the driver does not tell
        return None
