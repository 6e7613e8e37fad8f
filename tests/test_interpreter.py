"""resmon in a process of its own: it is the one that is here, wherever that process starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import resmon
from resmon import interpreter


def test_what_is_printed_is_this_resmons_and_not_that_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resmon.py").write_text("print('another')")
    (tmp_path / "json.py").write_text("raise RuntimeError('another')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    said = interpreter.printed("--version", columns=80, seconds=60)
    assert (said.stdout, said.returncode) == (f"{resmon.__version__}\n", 0)


def test_errors_are_printed_too_without_colours_and_as_wide_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    wrong = interpreter.printed("tail", "nothing", "-d", "nowhere", columns=80, seconds=60)
    assert wrong.returncode == 2 and "there is no folder nowhere" in wrong.stdout
    narrow, wide = (interpreter.printed("--help", columns=columns, seconds=60).stdout for columns in (60, 120))
    assert "\x1b" not in wrong.stdout + narrow + wide
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, wide.splitlines())) <= 120


@pytest.mark.parametrize(("folder", "named"), [("site-packages", False), ("dist-packages", False), ("src", True)])
def test_only_a_source_tree_is_named(folder: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resmon, "__file__", str(tmp_path / folder / "resmon" / "__init__.py"))
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert interpreter.finding() == ({"PYTHONPATH": f"{tmp_path / folder}:/mine"} if named else {})


def test_an_interpreter_that_does_not_know_itself_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(OSError, match="does not know its own executable"):
        interpreter.program("resmon")
