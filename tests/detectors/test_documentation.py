"""docs/detectors.md says what the detectors are, to the last default; its example runs."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from resmon.detectors import DETECTORS, Detector
from resmon.detectors.own import load
from resmon.records import RunEnd
from tests.detectors.course import course, said
from tests.detectors.test_contract import stimulus
from tests.flight.flights import begin, record
from tests.test_cli import here

PAGE = Path(__file__).parents[2] / "docs" / "detectors.md"


def row(kind: type[Detector]) -> str:
    """The detector's line in the first table."""
    text = inspect.getdoc(kind) or ""
    says = text.splitlines()[0].replace("|", "\\|")
    severities = " or ".join(word for word in ("page", "ticket") if re.search(rf"\b{word}\b", text))
    events = said(kind(), stimulus(kind), end=True)
    books = ", ".join(f"[{book}](../runbooks/{book}.md)" for book in dict.fromkeys(event.runbook for event in events))
    return f"| `{kind.name}` | {says} | {severities} | {books} |\n"


def options_of(kind: type[Detector]) -> str:
    """Its lines in the second."""
    fields = kind.options.model_fields.items()
    shown = [(name, field) for name, field in fields if name != "enabled" or field.default is not True]
    return "".join(f"| `{kind.name}.{name}` | {str(field.default).lower()} | {field.description} |\n" for name, field in shown)


@pytest.mark.parametrize("kind", DETECTORS, ids=lambda kind: kind.name)
def test_every_detector_is_there_with_its_options_and_their_defaults(kind: type[Detector]) -> None:
    text = PAGE.read_text()
    assert row(kind) in text
    assert options_of(kind) in text


def test_no_other_is() -> None:
    text = PAGE.read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [kind.name for kind in DETECTORS]
    known = {f"{kind.name}.{name}" for kind in DETECTORS for name in kind.options.model_fields}
    assert set(re.findall(r"^\| `(\w+\.\w+)` \|", text, re.MULTILINE)) <= known


def example() -> str:
    """The code of the page that defines a class."""
    (code,) = (each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "class " in each)
    return code


def test_the_pages_own_detector_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("mine.py").write_text(example())
    kind = load("mine:LoudBranch", [str(tmp_path)])
    assert len([line for line in example().split("class ")[1].splitlines() if line.strip()]) == 10
    branch = np.full((400, 6), 0.3)
    branch[200:, 4] = 9.0
    _, writer = begin(tmp_path / "runs")
    record(writer, course(400, branch_rms=branch))
    writer.end(RunEnd("finished", 5.0, 399))
    assert here(monkeypatch, "replay", "digits", "--detector", "mine:LoudBranch", "--json") == 0
    assert '"kind": "loud_branch"' in capsys.readouterr().out
    Path("resmon.toml").write_text('own_detectors = "mine:LoudBranch"')
    assert here(monkeypatch, "replay", "digits") == 0
    assert "h.4 is loud" in capsys.readouterr().out
    assert said(kind(), course(400), end=True) == []
    sys.modules.pop("mine", None)


def test_the_pages_settings_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    Path("resmon.toml").write_text(toml)
    assert here(monkeypatch, "settings") == 0
