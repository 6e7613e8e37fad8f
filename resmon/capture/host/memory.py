"""How much memory the training process has in use and could still have: main memory, and that of the devices its models are on.

Looked up four times a second and, since only there a peak says what a batch takes, at the end of a step whose batch is larger than
every one before; in between the last figures stand. What a system does not tell is None.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from math import inf
from pathlib import Path
from time import monotonic

import torch

PERIOD = 0.25  # seconds
SOON = 0.02  # seconds after the last look, at least, for a batch larger than every one before
_KILO = 1024
_MOST = 1 << 16  # bytes of a file, of which the system gives all at once
_STATUS, _MEMINFO, _GROUPS = Path("/proc/self/status"), Path("/proc/meminfo"), Path("/proc/self/cgroup")
_GROUP_FOLDER = Path("/sys/fs/cgroup")
_LIMITS = {resource.RLIMIT_AS: "VmSize", resource.RLIMIT_DATA: "VmData"}  # what counts against each, as the status calls it

Figures = Mapping[str, float | None]  # bytes, by the names of records.RUN_VALUES


class Memory:
    """The figures of this process; `devices` tells which devices its models are on."""

    def __init__(self, devices: Callable[[], set[torch.device]]) -> None:
        self._devices = devices
        self._looked = -inf
        self._largest = 0.0
        self._period = PERIOD
        self._figures: Figures = {}

    def figures(self, size: float = 0.0) -> Figures:
        """Those at the end of a step whose largest batch was of this size."""
        if size > self._largest:
            self._period = SOON if self._largest else 0.0
            self._largest = size
        now = monotonic()
        if now - self._looked >= self._period:
            self._looked, self._period = now, PERIOD
            self._figures = {**main_memory(), **device_memory(self._devices())}
        return self._figures


def main_memory() -> Figures:
    """In use and at peak are resident pages; free is what the system has available, less near a limit of group or process."""
    status = _text(_STATUS)
    available = _bytes(_text(_MEMINFO), "MemAvailable")
    free = [each for each in (available, *_left_in_groups(), *_left_of_limits(status)) if each is not None]
    return {"memory": _bytes(status, "VmRSS"), "memory_peak": _bytes(status, "VmHWM"), "memory_free": min(free, default=None)}


def device_memory(devices: set[torch.device]) -> Figures:
    """Of those that are CUDA devices: what tensors take, summed over them; free is what is left on the one that has least.

    The allocator's cache counts as free, for tensors can have it.
    """
    devices = {device for device in devices if device.type == "cuda"}
    if not devices or not torch.cuda.is_initialized():
        return {}
    used = {device: torch.cuda.memory_allocated(device) for device in devices}
    free = [torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - used[device] for device in devices]
    peak = sum(torch.cuda.max_memory_allocated(device) for device in devices)
    return {"device_memory": sum(used.values()), "device_memory_peak": peak, "device_memory_free": min(free)}


def _bytes(text: str, name: str) -> float | None:
    """The number of a line "name: 123 kB"."""
    begin = text.find(f"\n{name}:") + 1
    line = text[begin : text.find("\n", begin)] if begin else ""
    return float(line.split()[1]) * _KILO if line.endswith(" kB") else None


def _left_of_limits(status: str) -> Iterator[float]:
    """What the process's own limits leave."""
    for kind, name in _LIMITS.items():
        limit, _ = resource.getrlimit(kind)
        used = None if limit == resource.RLIM_INFINITY else _bytes(status, name)
        if used is not None:
            yield max(0.0, limit - used)


def _left_in_groups() -> Iterator[float]:
    """What the limits of the process's control groups leave; pages of files that nobody needs count as free."""
    for group in _groups():
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            idle = next(
                (line.split()[1] for line in _text(group / "memory.stat").splitlines() if line.startswith("inactive_file ")), 0
            )
            yield max(0.0, limit - used + float(idle))


@cache
def _groups() -> tuple[Path, ...]:
    """The folders of the groups that the process is in and that have a limit, innermost first (version 2)."""
    name = next((line[3:] for line in _text(_GROUPS).splitlines() if line.startswith("0::")), "")
    inner = _GROUP_FOLDER / name.strip("/")
    folders = [folder for folder in (inner, *inner.parents) if folder.is_relative_to(_GROUP_FOLDER)]
    return tuple(folder for folder in folders if _number(folder / "memory.max") is not None)


def _number(path: Path) -> float | None:
    text = _text(path).strip()
    return float(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a file object would take three times as long
    except OSError:
        return ""
    try:
        return os.read(descriptor, _MOST).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
