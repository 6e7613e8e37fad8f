"""What a measurement has to know of the device: when its work is done, its random state, who holds how much of its memory.

A GPU works behind the host's back; on a CPU there is nothing to wait for and no memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

CPU = torch.device("cpu")


def missing() -> str | None:
    """Why nothing can be measured on a GPU here, or None where it can."""
    if torch.cuda.is_available():
        return None
    why = "finds no NVIDIA GPU here" if torch.version.cuda else "is built without CUDA"
    return f"torch {torch.__version__} {why}: nothing was measured, and nothing written; run this where an NVIDIA GPU is at hand."


def description() -> str:
    """The GPU that is measured on, the first: its name, its memory, and by which CUDA."""
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def prepare(on: torch.device) -> None:
    """Let the libraries make their workspaces, one for each thread that multiplies, before anyone is charged with memory."""
    x = torch.ones(8, 8, device=on, requires_grad=True)
    (x @ x).sum().backward()


def wait(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize(on)


def random_state(on: torch.device) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(on)] if on.type == "cuda" else [])


def set_random_state(on: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if on.type == "cuda":
        torch.cuda.set_rng_state(state[1], on)


class Meter(Protocol):
    """As torch.cuda tells of an allocator."""

    def memory_allocated(self) -> int: ...
    def max_memory_allocated(self) -> int: ...
    def reset_peak_memory_stats(self) -> None: ...


class Memory:
    """The device memory of two trainings that share an allocator: what changes while one runs is put down to it.

    So a training's peak is what it would be if it were alone: what it holds, and what its steps take besides.
    """

    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter
        self._held = [0, 0]
        self._peaks = [0, 0]

    @property
    def peaks(self) -> list[int] | None:
        """In bytes, of each training; None where the device has no memory of its own."""
        return None if self._meter is None else list(self._peaks)

    def forget_peaks(self) -> None:
        """A first step may take more than those that follow."""
        self._peaks = [0, 0]

    @contextmanager
    def of(self, training: int) -> Iterator[None]:
        if self._meter is None:
            yield
            return
        self._meter.reset_peak_memory_stats()
        before = self._meter.memory_allocated()
        yield
        most = self._held[training] + self._meter.max_memory_allocated() - before
        self._peaks[training] = max(self._peaks[training], most)
        self._held[training] += self._meter.memory_allocated() - before
