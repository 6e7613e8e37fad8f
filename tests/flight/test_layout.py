from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmon.errors import ConfigurationError
from resmon.flight import layout
from resmon.flight.layout import claim, safe_name

HOSTILE = [
    "a/b",
    "../../etc/passwd",
    "..",
    ".",
    ".hidden",
    "line\nbreak",
    "nul\0byte",
    "x" * 10_000,
    "ends in space ",
    "tilde~0123456789ab",
    "größe",
    "\udcff",
    "-rf",
    "\\\\server\\share",
    "attempt-0001",
    "rank-00000",
]


@pytest.mark.parametrize("name", ["digits", "gpt2-6x384", "2024-01-01T10.00.00", "a+b=c@d", "_x", "x" * 80])
def test_harmless_names_stay(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_become_one_safe_folder(name: str, tmp_path: Path) -> None:
    folder, attempt = claim(tmp_path / "runs", name, "launch", 0)
    assert attempt == 1
    assert folder.is_dir()
    assert folder.parent.parent.parent == tmp_path / "runs"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert layout.runs(tmp_path / "runs") == [folder.parent.parent]


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        safe_name("")


def test_a_safe_name_keeps_what_can_be_read() -> None:
    assert safe_name("lr 0.1/seed 3").startswith("lr-0.1-seed-3~")


@given(st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=20, unique=True))
def test_two_names_never_share_a_folder(names: list[str]) -> None:
    folders = [safe_name(name) for name in names]
    assert len({*folders, *(safe_name(folder) for folder in folders if folder not in names)}) >= len(names)
    assert len(set(folders)) == len(names)
    assert all("/" not in folder and "\0" not in folder and 0 < len(folder) <= 80 and folder[0] != "." for folder in folders)


def test_the_hashed_name_of_one_run_is_not_the_plain_name_of_another() -> None:
    assert safe_name(safe_name("a/b")) != safe_name("a/b")


def test_ranks_of_one_launch_share_an_attempt_and_a_restart_begins_another(tmp_path: Path) -> None:
    assert [claim(tmp_path, "r", "first", rank)[1] for rank in range(3)] == [1, 1, 1]
    assert [claim(tmp_path, "r", "second", rank)[1] for rank in range(3)] == [2, 2, 2]
    # The same launch again: its ranks are there already.
    assert [claim(tmp_path, "r", "second", rank)[1] for rank in (2, 0, 1)] == [3, 3, 3]
    # A launch that is not the newest is not gone back to.
    assert claim(tmp_path, "r", "first", 5)[1] == 4
    assert list(layout.attempts(tmp_path / "r")) == [1, 2, 3, 4]
    assert list(layout.ranks(tmp_path / "r" / "attempt-0002")) == [0, 1, 2]


def test_launches_at_one_moment_keep_their_ranks_together(tmp_path: Path) -> None:
    """Two jobs of one run's name, started together: whose rank comes first is chance, and each finds its own attempt."""
    order = [("first", 0), ("second", 0), ("first", 1), ("second", 1), ("first", 2)]
    found = [claim(tmp_path, "r", launch, rank, unique=True)[1] for launch, rank in order]
    assert found == [1, 2, 1, 2, 1]
    assert {number: list(layout.ranks(path)) for number, path in layout.attempts(tmp_path / "r").items()} == {
        1: [0, 1, 2],
        2: [0, 1],
    }
    # A launch whose workers are started anew, as where one more machine joins it: all of them in one new attempt.
    assert [claim(tmp_path, "r", "first", rank, unique=True)[1] for rank in (1, 0, 2, 3)] == [3, 3, 3, 3]


def test_ranks_that_start_at_one_moment_find_one_attempt(tmp_path: Path) -> None:
    for launch in ("one", "two", "three"):
        found: list[tuple[Path, int]] = []
        barrier = threading.Barrier(16)

        def rank(
            number: int, launch: str = launch, barrier: threading.Barrier = barrier, found: list[tuple[Path, int]] = found
        ) -> None:
            barrier.wait()
            found.append(claim(tmp_path, "r", launch, number))

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({path for path, _ in found}) == 16
        assert len({attempt for _, attempt in found}) == 1
    assert len(layout.attempts(tmp_path / "r")) == 3
    assert not list((tmp_path / "r").glob(".attempt-*"))


def test_what_is_made_is_the_users_alone(tmp_path: Path) -> None:
    folder, _ = claim(tmp_path / "deep" / "runs", "r", "launch", 0)
    while folder != tmp_path:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
        folder = folder.parent


def test_a_damaged_launch_file_begins_a_new_attempt(tmp_path: Path) -> None:
    folder, _ = claim(tmp_path, "r", "launch", 0)
    (folder.parent / "launch.json").write_text("[")
    assert claim(tmp_path, "r", "launch", 1)[1] == 2


def test_a_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigurationError, match=r"runs.*directory="):
        claim(tmp_path / "runs", "r", "launch", 0)


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """As another user where the tests run as root, whom no mode stops."""
    (tmp_path / "runs").mkdir(mode=0o555)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from resmon.flight.layout import claim\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: claim(Path(sys.argv[1]), 'r', 'launch', 0)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent.stat().st_uid == os.getuid():
            parent.chmod(0o755)
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "runs")], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ConfigurationError")
    assert str(tmp_path / "runs") in result.stdout
    assert "RESMON_DIRECTORY" in result.stdout


def test_json_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "end.json"
    layout.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        layout.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["end.json"]


def test_the_owner_probes_its_lock_without_losing_it(tmp_path: Path) -> None:
    lock = tmp_path / "alive.lock"
    assert not layout.is_held(lock)
    descriptor = layout.hold(lock)
    probe = f"from pathlib import Path; from resmon.flight import layout; print(layout.is_held(Path({str(lock)!r})))"

    def seen_by_another() -> str:
        return subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.strip()

    for _ in range(2):
        assert layout.is_held(lock)
        assert seen_by_another() == "True"
    layout.release(descriptor)
    assert not layout.is_held(lock)
    assert seen_by_another() == "False"


def test_the_boot_id_stays() -> None:
    assert layout.boot_id() == layout.boot_id()


def test_links_that_lead_nowhere_hide_no_run(tmp_path: Path) -> None:
    for name in ("a", "m", "z"):
        claim(tmp_path, name, "launch", 0)
    for name, target in (("b", "b"), ("c", "/nonexistent/place"), ("n", "a/attempt-0001")):
        (tmp_path / name).symlink_to(target)
    assert [path.name for path in layout.runs(tmp_path)] == ["a", "m", "z"]


def test_the_place_of_one_rank_is_given_back_without_the_others(tmp_path: Path) -> None:
    first, second = (claim(tmp_path, "r", "launch", rank)[0] for rank in (0, 1))
    layout.give_back(first)
    assert layout.ranks(second.parent) == {1: second}
    assert claim(tmp_path, "r", "launch", 0) == (first, 1)
    for each in (first, second):
        layout.give_back(each)
    assert list(tmp_path.iterdir()) == []


def test_what_goes_while_it_is_counted_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"x" * 70)
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert layout.size(tmp_path) == 70
