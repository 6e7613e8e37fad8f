"""The kernel's counters of processes that it killed for want of memory: as files in its formats, and this machine's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resmon.memory.kills import Kills, kills, memory_group, seen

# As Linux writes them: mountinfo of a host with version 2, of a container with version 1 and no namespace of control groups (its
# mount is that of its own group), and of a host with both, where memory is version 1's.
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
V1_CONTAINER = (
    "40 35 0:30 /docker/ab12 /sys/fs/cgroup/cpu ro,nosuid - cgroup cgroup rw,cpu\n"
    "41 35 0:31 /docker/ab12 /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
)
HYBRID = (
    "30 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    "31 25 0:28 / /sys/fs/cgroup/me\\040mory rw - cgroup cgroup rw,memory\n"
)


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def events(count: int) -> str:
    return f"low 0\nhigh 12\nmax 40\noom 5\noom_kill {count}\noom_group_kill 7\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "file", "text"),
    [
        ("0::/user.slice/run-1.scope\n", V2, "sys/fs/cgroup/user.slice/run-1.scope/memory.events", events(3)),
        (
            "5:cpu:/docker/ab12\n4:memory:/docker/ab12\n0::/\n",
            V1_CONTAINER,
            "sys/fs/cgroup/memory/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        ),
        (
            "9:memory,hugetlb:/jobs/7\n0::/jobs/7\n",
            HYBRID,
            "sys/fs/cgroup/me mory/jobs/7/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 1\noom_kill 3\n",
        ),
    ],
)
def test_a_processs_group_and_its_counter_are_found(tmp_path: Path, groups: str, mounts: str, file: str, text: str) -> None:
    put(tmp_path, "proc/41/cgroup", groups)
    put(tmp_path, "proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
    put(tmp_path, "proc/vmstat", "oom_kill 9\n")
    put(tmp_path, file, text)
    group = memory_group(41, tmp_path)
    assert group == (tmp_path / file).parent
    assert kills(group, tmp_path) == Kills(3, 9)


@pytest.mark.parametrize(
    "groups",
    ["", "0::/\n", "0::/../../other\n", "0::/user.slice/gone\n", "nonsense\n", "4:memory:/elsewhere\n", "0::/user.slice\0\n"],
)
def test_what_cannot_be_seen_from_here_is_no_group(tmp_path: Path, groups: str) -> None:
    put(tmp_path, "proc/41/cgroup", groups)
    put(tmp_path, "proc/self/mountinfo", V2 + "broken line\n" + V1_CONTAINER)
    put(tmp_path, "sys/fs/cgroup/user.slice/memory.events", events(1))
    assert memory_group(41, tmp_path) is None
    assert kills(None, tmp_path) == Kills(None, None)


def test_old_kernels_and_groups_that_are_gone_do_not_count(tmp_path: Path) -> None:
    put(tmp_path, "group/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
    assert kills(tmp_path / "group", tmp_path) == Kills()
    assert kills(tmp_path / "no such", tmp_path) == Kills()


def test_whatever_lies_in_the_groups_place_does_no_harm(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "memory.events")
    assert kills(tmp_path, tmp_path) == Kills()
    assert kills(Path("/\0"), tmp_path) == Kills()
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "memory.events").write_text("x" * (3 << 20) + "\noom_kill 3\n")
    assert kills(tmp_path / "huge", tmp_path) == Kills()


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="no Linux")
def test_the_counters_of_this_process_can_be_read() -> None:
    def counted() -> int | None:
        text = Path("/proc/vmstat").read_text()
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), None)

    group = memory_group()
    before, found, after = counted(), kills(group), counted()
    assert found.machine in (before, after)  # another test may have something killed meanwhile
    if group is not None:
        assert any((group / name).exists() for name in ("memory.events", "memory.oom_control"))


GROUP = Path("/sys/fs/cgroup/job")


def test_a_counter_that_rose_in_the_group_tells_why() -> None:
    told = seen(Kills(2, 5), Kills(3, 6), GROUP, alive=True)
    assert told == ("its control group /sys/fs/cgroup/job counts 1 more process killed so since it was last seen alive", True)
    late = seen(Kills(2, 5), Kills(3, 6), GROUP, alive=False)
    assert late is not None and not late[1] and late[0].endswith("since the run began")


def test_what_others_were_killed_for_says_nothing() -> None:
    assert seen(Kills(2, 5), Kills(2, 6), GROUP, alive=True) is None  # of another group
    assert seen(Kills(2, 5), Kills(2, 5), GROUP, alive=True) is None
    assert seen(Kills(None, None), Kills(4, 5), GROUP, alive=True) is None
    assert seen(Kills(4, 5), Kills(0, 1), GROUP, alive=True) is None  # another boot, or a group that was made again


def test_the_machines_counter_is_a_hint_while_one_looks_on() -> None:
    told = seen(Kills(None, 5), Kills(None, 7), None, alive=True)
    assert told is not None and not told[1] and "the machine counts 2 more" in told[0]
    assert seen(Kills(None, 5), Kills(None, 7), None, alive=False) is None
