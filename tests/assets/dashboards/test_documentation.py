"""docs/dashboards.md is true: its tables are the dashboards, its commands print what stands below them, its snippet provisions."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from resmon.assets import Links, differing
from resmon.assets.dashboards import BOARDS
from resmon.rules import metrics
from tests.assets.dashboards.lint import plain
from tests.assets.dashboards.test_boards import FILES
from tests.grafana import panels

ROOT = Path(__file__).parent.parent.parent.parent
PAGE = (ROOT / "docs" / "dashboards.md").read_text()
CONTENT = {name: json.loads(FILES[name].read_text()) for name in BOARDS}


def rows(below: str, heading: str) -> list[str]:
    return below.split(f"| {heading} |\n", 1)[1].split("\n\n", 1)[0].strip().splitlines()[1:]


def reads(name: str) -> Iterator[str]:
    for panel in panels(CONTENT[name]):
        found = {metric for target in panel["targets"] for metric in metrics(plain(target["expr"]))}
        families = {re.sub(r"_(bucket|sum|count)$", "", metric) if metric.startswith("resmon_") else metric for metric in found}
        yield f"| {panel['title']} | {', '.join(f'`{metric}`' for metric in sorted(families))} |"


@pytest.mark.parametrize("name", BOARDS)
def test_the_tables_are_the_dashboards(name: str) -> None:
    title = CONTENT[name]["title"].removeprefix("resmon / ")
    assert rows(PAGE.split(f"### {title}\n", 1)[1], "panel | reads") == list(reads(name))
    assert f"| [{title}](#{title.lower()}) (`/d/{CONTENT[name]['uid']}`) |" in PAGE


def test_the_commands_print_what_stands_below_them(tmp_path: Path) -> None:
    (console,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    commands = re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", console, re.MULTILINE)
    install, *ours = commands
    extra = re.search(r"resmon\[(\w+)\]", install[0])
    assert extra is not None and f'\n{extra[1]} = ["grafana-foundation-sdk==' in (ROOT / "pyproject.toml").read_text()
    assert len(ours) == 2
    for command, shown in ours:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, shown), done.stderr
    assert differing(tmp_path, Links(runbooks="https://wiki.example.org/runbooks"), ["dashboards"]) == []


def test_the_snippet_is_one_that_grafana_reads() -> None:
    (snippet,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    content = yaml.safe_load(snippet)
    (provider,) = content["providers"]
    assert content["apiVersion"] == 1 and provider["type"] == "file" and provider["options"]["path"]


def test_what_it_says_of_variables_marks_and_links_is_so() -> None:
    labels = {variable["label"] for board in CONTENT.values() for variable in board["templating"]["list"]}
    assert {"Run", "Model", "Blocks", "Against run"} <= labels
    for name in ("oncall", "debug"):
        assert [mark["name"] for mark in CONTENT[name]["annotations"]["list"]] == ["Ends", "Incidents", "Findings", "Checkpoints"]
    assert [mark["name"] for mark in CONTENT["executive"]["annotations"]["list"]] == ["Failures"]
    for board in CONTENT.values():
        (link,) = board["links"]
        assert link["includeVars"] and link["keepTime"] and set(link["tags"]) <= set(board["tags"])


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, place = link.partition("#")
        assert not path or (ROOT / "docs" / path).is_file(), link
        assert not place or re.search(rf"^#+ {place}$", PAGE, re.MULTILINE | re.IGNORECASE), link
