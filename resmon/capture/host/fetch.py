"""Numbers that a device computes, on their way to the host; and the few that take the other way.

Nothing waits for them: they are copied to pinned memory in one piece, an event is recorded behind the copy, and whoever wants them
asks later whether it has passed.
"""

from __future__ import annotations

import time
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from resmon.errors import UnobservableError
from resmon.records import Floats

OBSERVED = ("cpu", "cuda")  # kinds of devices; ROCm's call themselves cuda
_POLL = 0.001  # seconds


def is_here(tensor: Tensor) -> bool:
    """Whether its numbers can be read without waiting for a device."""
    return tensor.is_cpu


def held(value: Tensor) -> float | Tensor:
    """What a tensor of one element is now; one on a CUDA device stays there, for reading it would wait for the device."""
    elsewhere = not is_here(value) and value.device.type in OBSERVED
    return value.detach().clone() if elsewhere else float(value.item())


def check(device: torch.device) -> None:
    """Raises UnobservableError for a device whose numbers could only be had by waiting for it."""
    if device.type not in OBSERVED:
        raise UnobservableError(
            f"tensors are on {device} now, and only main memory and CUDA devices are read. Move the model to one of those "
            "and watch it again to observe its blocks."
        )


def is_capturing() -> bool:
    """Whether a CUDA graph records what is done now, and so would repeat what we do, and cannot bear to be asked for events."""
    try:
        return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    except RuntimeError:  # the device has failed, which the loop will hear of from its own calls
        return False


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """The host's numbers where `device` is, for what is queued on it from now on."""
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


def to_host(numbers: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Where a device's numbers will be in main memory, and what will have passed by then."""
    if numbers.is_cpu:
        return numbers, None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    with torch.cuda.device(numbers.device):
        host.copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
    return host, event


class Later:
    """Numbers that are there once their Fetch has arrived."""

    __slots__ = ("_from", "_host", "_to")

    def __init__(self) -> None:
        self._host: Tensor | None = None
        self._from = self._to = 0

    def arrive_in(self, host: Tensor, start: int, end: int) -> None:
        self._host, self._from, self._to = host, start, end

    def numbers(self) -> Floats:
        """One-dimensional; NaN where the fetch was given up."""
        if self._host is None:
            return np.full(1, np.nan)
        numbers: Floats = self._host.numpy()[self._from : self._to]
        return numbers


Number = float | Later


def number(value: Number) -> float:
    return value if isinstance(value, float) else float(value.numbers()[0])


class Fetch:
    """Takes tensors until it is sent, and knows when what it was sent for has arrived."""

    def __init__(self) -> None:
        self._wanted: list[tuple[Tensor, Later]] = []
        self._events: list[torch.cuda.Event] = []
        self.failed = False  # the device is beyond answering

    def add(self, tensor: Tensor) -> Later:
        """Its values as they are when the fetch is sent, in float64."""
        later = Later()
        self._wanted.append((tensor.detach(), later))
        return later

    def number(self, value: float | Tensor) -> Number:
        return self.add(value) if isinstance(value, Tensor) else value

    def send(self) -> Fetch:
        """Queue the copies."""
        wanted, self._wanted = self._wanted, []
        wanted.sort(key=lambda each: (each[0].device.type, each[0].device.index or 0))
        for _, group in groupby(wanted, key=lambda each: each[0].device):
            members = list(group)
            host, event = to_host(torch.cat([tensor.reshape(-1).to(torch.float64) for tensor, _ in members]))
            if event is not None:
                self._events.append(event)
            start = 0
            for tensor, later in members:
                later.arrive_in(host, start, start + tensor.numel())
                start += tensor.numel()
        return self

    def has_arrived(self) -> bool:
        """Also true where the device failed: nothing will come, and `failed` says so."""
        try:
            while self._events and self._events[-1].query():
                self._events.pop()
        except RuntimeError:  # what failed on the device is the loop's to hear of
            self.failed = True
        return self.failed or not self._events

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; whether it has arrived."""
        end = time.monotonic() + seconds
        while not self.has_arrived():
            if time.monotonic() > end:
                return False
            time.sleep(_POLL)
        return True
