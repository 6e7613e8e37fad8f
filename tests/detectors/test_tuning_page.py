"""docs/tuning.md: its commands print what stands below them, and its settings can be used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from resmon.monitor.tuning import resolved
from resmon.records import RunEnd
from tests.detectors.course import course
from tests.flight.flights import begin, record
from tests.test_cli import here

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
COMMANDS = [
    (command, printed)
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for command, printed in re.findall(r"^\$ (.*?)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pruned`, of which h.4 adds nothing from step 400 on, and `broke`, of which h.2 does not."""
    monkeypatch.chdir(tmp_path)
    for run, block in (("pruned", 4), ("broke", 2)):
        branch = np.full((900, 6), 0.3)
        branch[400:, block] = 0.0
        _, writer = begin(tmp_path / "runs", run)
        record(writer, course(900, branch_rms=branch))
        writer.end(RunEnd("finished", 5.0, 899))


@pytest.mark.usefixtures("runs")
def test_commands_print_what_stands_below_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert len(COMMANDS) == 4
    for command, printed in COMMANDS:
        words = [word.strip("'") for word in command.split()]
        status = here(monkeypatch, *words[1:])
        said = capsys.readouterr()
        assert status == (2 if "brnch" in command else 0)
        assert [line.rstrip() for line in (said.out + said.err).splitlines()] == printed.splitlines(), command


def test_its_settings_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    Path("resmon.toml").write_text(text)
    assert resolved({}).without_nits().detectors == {"dead_branch": {"sites": {"h.4": {"enabled": False}}}}
