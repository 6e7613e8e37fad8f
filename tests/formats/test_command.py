"""`resmon export`, as people call it."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from resmon.cli import application
from resmon.errors import ConfigurationError
from resmon.formats import command
from tests.formats.conftest import STEPS, Rank
from tests.formats.test_tensorboard import read


def call(*arguments: str) -> str:
    result = CliRunner().invoke(application(), ["export", *arguments])
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def test_it_says_what_it_wrote_and_where(attempt: Path, tmp_path: Path) -> None:
    runs, out = str(tmp_path / "runs"), str(tmp_path / "out")
    said = call("digits", "--to", "tensorboard", "-d", runs, "-o", out)
    assert f"{STEPS} steps, 0 to {STEPS - 1}, for tensorboard in {out}" in said
    assert f"tensorboard --logdir {out}" in said
    assert len(read(tmp_path / "out").Scalars("branch_rms/h.1")) == 3, "blocks at every tenth step"
    said = call("digits", "--to", "csv", "-d", runs, "-o", out)
    assert f"{out}/blocks.csv" in said


def test_a_run_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PERIOD", 0.05)
    rank = Rank(tmp_path / "runs", "live")
    rank.step()

    def train() -> None:
        for step in range(1, 20):
            rank.step()
            rank.log(step, loss=float(step))
            time.sleep(0.02)
        rank.end()

    trainer = threading.Thread(target=train)
    trainer.start()
    said = call(
        "live", "--to", "tensorboard", "--follow", "--every", "1", "-d", str(tmp_path / "runs"), "-o", str(tmp_path / "out")
    )
    trainer.join()
    assert "20 steps, 0 to 19" in said
    assert [event.value for event in read(tmp_path / "out").Scalars("loss")] == [float(step) for step in range(1, 20)]


def test_damage_is_told(attempt: Path, tmp_path: Path) -> None:
    (path,) = attempt.glob("rank-00000/steps-*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    said = call("digits", "--to", "tensorboard", "-d", str(tmp_path / "runs"), "-o", str(tmp_path / "out"))
    assert "1 damaged rows were skipped" in said


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(attempt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package or name == f"resmon.formats.{package}"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'resmon\[{package}\]'"):
        call("digits", "--to", package, "-d", str(tmp_path / "runs"), "-o", str(tmp_path / "out"))


def test_tables_are_not_followed(attempt: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="without --follow"):
        call("digits", "--to", "parquet", "--follow", "-d", str(tmp_path / "runs"), "-o", str(tmp_path / "out"))


def test_a_folder_that_cannot_be_made(attempt: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        call("digits", "--to", "csv", "-d", str(tmp_path / "runs"), "-o", str(tmp_path / "file" / "out"))
