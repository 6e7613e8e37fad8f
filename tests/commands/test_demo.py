"""Where the demonstration writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from resmon.commands.demo import made
from resmon.errors import ConfigurationError


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "runs"
    assert made(folder) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert made(folder) == folder
    assert made(None) is None


def test_one_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/runs cannot be made: Not a directory\. Name another one with --directory"):
        made(tmp_path / "file" / "runs")
