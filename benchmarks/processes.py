"""CPU time of processes, from Linux' /proc. Elsewhere it is not known, and said so by None."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def background_seconds(others: Iterable[int]) -> float | None:
    """CPU seconds so far of all descendants of this process and of the processes `others` with theirs."""
    if not (PROC / "self" / "stat").exists():
        return None
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                # After the name in parentheses: state, parent, ..., utime and stime, its own and its dead children's.
                values = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            parents[int(folder.name)] = int(values[1])
            ticks[int(folder.name)] = sum(map(int, values[11:15]))
    mine = os.getpid()
    roots = {mine, *others}

    def is_below(pid: int) -> bool:
        while pid not in roots and pid in parents:
            pid = parents[pid]
        return pid in roots

    return sum(ticks[pid] for pid in ticks if pid != mine and is_below(pid)) / os.sysconf("SC_CLK_TCK")
