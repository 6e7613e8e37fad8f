from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from resmon.agent import runtime
from resmon.agent.runtime import Seat
from resmon.agent.tally import REMEMBERED, Tally
from resmon.errors import AgentError
from tests.agent.conftest import ROOT


def python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESMON_RUNTIME_DIR", str(tmp_path / "a" / "b"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime.folder() == tmp_path / "a" / "b"
    monkeypatch.delenv("RESMON_RUNTIME_DIR")
    assert runtime.folder() == tmp_path / "resmon"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "not there"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert runtime.folder() == tmp_path / f"resmon-{os.getuid()}"
    assert runtime.folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["writable by others", "a link", "a file", "another's"])
def test_a_folder_that_cannot_be_trusted_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = tmp_path / "runtime", tmp_path / "other"
    other.mkdir()
    if kind == "a link":
        folder.symlink_to(other)
    elif kind == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777 if kind == "writable by others" else 0o700)
    if kind == "another's":
        if os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(folder, 12345, 12345)
    monkeypatch.setenv("RESMON_RUNTIME_DIR", str(folder))
    with pytest.raises(AgentError, match="RESMON_RUNTIME_DIR"):
        runtime.folder()


def test_registrations_come_back_and_damage_is_named(runtime_folder: Path, tmp_path: Path) -> None:
    strange = tmp_path / 'new\nline "quoted" \udcff'
    runtime.register(strange)
    runtime.register(strange)  # once is enough
    files = runtime_folder / runtime.RUNS
    (files / "damaged.json").write_text("{")
    (files / "relative.json").write_text(json.dumps({"rank_folder": "runs/x"}))
    (files / "list.json").write_text("[1]")
    (files / ".half-written.json").write_text("{")
    (files / "deep.json").write_text("[" * 60_000)
    found = {file.name: folder for file, folder in runtime.registrations(runtime_folder).items()}
    assert len(found) == 5
    assert [folder for folder in found.values() if folder is not None] == [strange]


def test_one_agent_has_the_seat(runtime_folder: Path) -> None:
    code = "from resmon.agent import runtime; from resmon.agent.runtime import Seat; f = runtime.folder()"
    assert python(f"{code}; print(runtime.serving(f))") == "None"
    seat = Seat.take(runtime_folder, 0.0)
    assert seat is not None
    assert python(f"{code}; print(runtime.serving(f).url == '')") == "True"  # still starting
    seat.announce("http://127.0.0.1:5", "1")
    assert json.loads((runtime_folder / runtime.TARGETS).read_text()) == [{"targets": ["127.0.0.1:5"], "labels": {}}]
    expected = f"{os.getpid()} http://127.0.0.1:5 False None"
    assert python(f"{code}; s = runtime.serving(f); print(s.pid, s.url, s.leaving, Seat.take(f, 60))") == expected
    seat.mark_leaving()
    assert python(f"{code}; print(runtime.serving(f).leaving, Seat.take(f, 0.1))") == "True None"
    seat.leave()
    assert json.loads((runtime_folder / runtime.TARGETS).read_text()) == []
    assert python(f"{code}; print(runtime.serving(f), Seat.take(f, 0.1) is not None)") == "None True"


def test_a_seat_is_lost_with_the_folder_and_may_be_taken_again(runtime_folder: Path) -> None:
    seat = Seat.take(runtime_folder, 0.0)
    assert seat is not None and not seat.is_lost
    seat.announce("http://127.0.0.1:5", "1")
    shutil.rmtree(runtime_folder)
    runtime_folder.touch()
    assert seat.is_lost
    with pytest.raises(AgentError, match="cannot be made"):
        seat.take_again()
    runtime_folder.unlink()
    assert seat.take_again() and not seat.is_lost
    now = runtime.serving(runtime_folder)
    assert now is not None and (now.pid, now.url) == (os.getpid(), "http://127.0.0.1:5")
    assert json.loads((runtime_folder / runtime.TARGETS).read_text()) == [{"targets": ["127.0.0.1:5"], "labels": {}}]
    (runtime_folder / runtime.LOCK).unlink()
    (runtime_folder / runtime.LOCK).touch()
    assert seat.is_lost
    seat.leave()  # what others have announced since is theirs
    assert json.loads((runtime_folder / runtime.TARGETS).read_text()) == [{"targets": ["127.0.0.1:5"], "labels": {}}]


def test_the_gate_is_for_one_at_a_time(runtime_folder: Path) -> None:
    code = "from resmon.agent import runtime\nwith runtime.gate(runtime.folder(), 0.05) as got: print(got is not None)"
    with runtime.gate(runtime_folder, 0.0) as descriptor:
        assert descriptor is not None
        assert python(code) == "False"
    assert python(code) == "True"


def test_the_tally_counts_once_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    tally = Tally.load(path)
    tally.count("a", "killed")
    tally.count("a", "finished")
    tally.count("b", "killed")
    tally.errors = 3
    tally.save()
    again = Tally.load(path)
    again.count("b", "failed")
    assert (again.runs["killed"], again.runs["failed"], again.runs["finished"], again.errors) == (2, 0, 0, 3)
    again.counted = {str(i): "finished" for i in range(REMEMBERED)}
    again.count("new", "finished")
    assert len(again.counted) == REMEMBERED
    assert "new" in again.counted


def test_what_is_exported_is_on_disk_and_lags_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    tally = Tally(path)
    assert not tally.holds_back
    tally.count("a", "killed")
    assert tally.holds_back and tally.exported["killed"] == 0
    assert Tally.load(path).exported["killed"] == 0  # whoever comes next begins there
    tally.release()
    assert not tally.holds_back and Tally.load(path).exported["killed"] == 1
    tally.count("b", "killed")
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"state\.json"):
        tally.release()
    assert tally.exported["killed"] == 1  # what could not be noted is not shown


def test_the_tally_of_an_agent_that_held_nothing_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text('{"runs_total": {"killed": 3}, "counted": {}, "skipped_rows": 0, "errors": 0}')
    assert Tally.load(path).exported["killed"] == 3
    path.write_text('{"runs_total": {"killed": 3}, "exported": {"killed": 9}, "counted": {}, "skipped_rows": 0, "errors": 0}')
    assert Tally.load(path).exported["killed"] == 3


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"[" * 10_000, b'{"runs_total": 1, "counted": 2}', b"\xff", b'{"runs_total":{}}']
)
def test_a_damaged_tally_counts_from_zero(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(content)
    tally = Tally.load(tmp_path / "state.json")
    assert set(tally.runs.values()) == {0}
    tally.count("a", "finished")
    assert Tally.load(tmp_path / "state.json").runs["finished"] == 1
