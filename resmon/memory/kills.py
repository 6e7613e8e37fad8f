"""How many processes the kernel has killed for want of memory: its own counters, read and never changed.

A control group counts those of its own processes that were killed so, whoever's limit it was that was met: version 2 in
memory.events, version 1 in memory.oom_control (both "oom_kill", since Linux 4.13); /proc/vmstat counts those of the whole machine.
So where the counter of a process's group rose while it died, that is why it died, unless another of the group did. That the
machine's rose is a hint only. What cannot be read is None.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from resmon.quantities import count

LONGEST = 1 << 20  # bytes that are read of one file

_ROOT = Path("/")
_FILES = ("memory.events", "memory.oom_control")


@dataclass(frozen=True, slots=True)
class Kills:
    """So many since the group was made, and since the machine was started."""

    group: int | None = None
    machine: int | None = None


def memory_group(process: int | str = "self", root: Path = _ROOT) -> Path | None:
    """The folder of the control group that a process's memory is counted in, as this process sees it."""
    lines = [line.split(":", 2) for line in _text(root / f"proc/{process}/cgroup").splitlines()]
    paths = {kind: path for _, kind, path in (line for line in lines if len(line) == 3)}
    first = next((path for kind, path in paths.items() if "memory" in kind.split(",")), None)  # version 1, also beside version 2
    path = paths.get("") if first is None else first
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        fields, kinds = mount.split(" "), kind.split(" ")
        if path is None or len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2" if first is None else (kinds[0] == "cgroup" and "memory" in kinds[2].split(",")):
            begin, place = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), each) for each in fields[3:5])
            inside = Path(path)
            if inside.is_relative_to(begin) and ".." not in inside.parts:
                folder = root / place.lstrip("/") / inside.relative_to(begin)
                if any((folder / name).exists() for name in _FILES):
                    return folder
    return None


def kills(group: Path | None, root: Path = _ROOT) -> Kills:
    """The counters as they are now."""
    found = None if group is None else next((told for name in _FILES if (told := _count(group / name)) is not None), None)
    return Kills(found, _count(root / "proc/vmstat"))


def seen(before: Kills, after: Kills, group: Path | None, *, alive: bool) -> tuple[str, bool] | None:
    """What the counters say of a process that died without a word, and whether that is sure; None where nothing speaks for it.

    `before` is from when it was last seen alive or, where `alive` is false, from when the run began.
    """
    since = "since it was last seen alive" if alive else "since the run began"
    if before.group is not None and after.group is not None:
        rose = after.group - before.group
        told = f"its control group {group} counts {count(rose, 'more process', 'more processes')} killed so {since}"
        return (told, alive) if rose > 0 else None
    if alive and before.machine is not None and after.machine is not None and (rose := after.machine - before.machine) > 0:
        more = count(rose, "more process", "more processes")
        return f"the machine counts {more} killed so {since}, and its control group does not tell whose they were", False
    return None


def _count(path: Path) -> int | None:
    """The number of a line "oom_kill 3"."""
    found = re.search(r"^oom_kill (\d{1,18})$", _text(path), re.MULTILINE)
    return int(found[1]) if found else None


def _text(path: Path) -> str:
    # The group's folder is what a flight says it is: what lies there may be anything.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return ""
    found = b""
    try:
        while len(found) < LONGEST and (more := os.read(descriptor, LONGEST)):
            found += more
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return found.decode("utf-8", "replace")
