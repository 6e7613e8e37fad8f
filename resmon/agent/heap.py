"""What the agent does not use it gives back: it shares the machine's memory with the training.

glibc lets the size from which memory is taken from the system for itself, and given back when it is freed, grow with what is freed.
An agent of 100,000 series writes ten megabytes at each scrape, and so had half as much again in hand as it used. What would take
memory only by being imported, an agent does not import: no pyarrow, as it reads rows as they lie on file (flight/schema.py).
"""

from __future__ import annotations

import ctypes

# mallopt(3); numbers from malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE = 32 << 10  # bytes
_ARENAS = 2  # as few threads work at once


def keep_small() -> None:
    """Of this process, from here on, where the C library has such settings."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 32 * _LARGE)
        mallopt(_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """What lies free between what is in use: after much was read at once that is a tenth of all."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
