"""docs/oncall.md is true: its commands do what stands below them, its script runs, its figures are those of code and files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from resmon.postmortem.alerts import AFTER
from resmon.rules.durations import written
from resmon.servers.alertmanager import Alertmanager, keeper, scope
from resmon.servers.alertmanager.client import SKEW
from resmon.servers.connection import ATTEMPTS, TIMEOUT
from resmon.settings import Settings
from resmon.settings.origins import VARIABLES
from tests.programs import program
from tests.servers.alertmanager.servers import Server, running

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "oncall.md").read_text()
TEXT = " ".join(PAGE.split())
CONFIGURATION = yaml.safe_load((ROOT / "alerts" / "alertmanager.yml").read_text())

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
CHANGING = ((ID, "ID"), (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"), "TIME"), (re.compile(r"\b1h59m\d+s"), "2h"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of this page alone: it lists all silences that there are."""
    with running(tmp_path_factory.mktemp("alertmanager")) as started:
        yield started


def as_shown(text: str) -> list[list[str]]:
    """The words of each line, without what is another each time."""
    for pattern, word in CHANGING:
        text = pattern.sub(word, text)
    return [line.split() for line in text.splitlines() if line.strip()]


def resmon(command: str, server: Server, cwd: Path, user: str = "") -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", "RESMON_ALERTMANAGER": server.url}
    arguments = [*shlex.split(command)[1:], *(["--author", user] if user else [])]
    done = subprocess.run(
        [sys.executable, "-m", "resmon", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == (2 if done.stderr else 0), done.stderr
    return done.stdout + done.stderr


def test_the_commands_print_what_stands_below_them(server: Server, tmp_path: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    identity = ""
    for block in blocks:
        for command, shown in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", block, re.MULTILINE):
            adds = command.startswith("resmon silence --") and "--json" not in command
            printed = resmon(ID.sub(identity, command), server, tmp_path, "you@machine" if adds else "")
            assert as_shown(printed) == as_shown(shown) or (not shown and '"state": "active"' in printed), command
            identity = (ID.search(printed) or [identity])[0] if adds else identity
    with Alertmanager.of([server.url]) as client:
        assert [each.state for each in client.silences()].count("active") == 2


def test_the_script_runs(server: Server, tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = f"""
import time, resmon, resmon.monitor.planned
resmon.monitor.planned._watched_run = lambda: "documented"
def train_with_the_new_schedule():
    from resmon.servers.alertmanager import Alertmanager, Matcher
    with Alertmanager.of([{server.url!r}]) as client:
        while not client.silences(Matcher("run", "documented")):
            time.sleep(0.05)
{script}
print("done")
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESMON_ALERTMANAGER": server.url}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_the_figures_are_those_of_the_code() -> None:
    assert f"tried {ATTEMPTS} times, {TIMEOUT:g} s each" in TEXT
    assert f"lasts {scope.LONGEST / 86400:g} days at the most" in TEXT
    assert f"differ by more than {SKEW:g} s" in TEXT
    assert f"gives it {keeper.LIFE / 60:g} minutes to live and renews it every minute" in TEXT and keeper.BEAT == 60
    assert f"over after those {keeper.LIFE / 60:g} minutes" in TEXT
    assert f"{AFTER / 60:g} minutes after its end" in TEXT
    assert written(scope.LONGEST) == "30d"


def test_the_settings_and_variables_are_all_there() -> None:
    for name in ("alertmanager", "prometheus"):
        assert f"| `{name}` |" in PAGE and name in Settings.model_fields
    documented = set(re.findall(r"`(RESMON_ALERTMANAGER_\w+)`", PAGE))
    assert documented == {name for name in VARIABLES if name.startswith("RESMON_ALERTMANAGER_")}
    assert {name.replace("ALERTMANAGER", "PROMETHEUS") for name in documented} <= set(VARIABLES)


def test_the_routes_are_those_of_the_file() -> None:
    root = CONFIGURATION["route"]
    ours = {re.findall('"(.*)"', each["matchers"][0])[0]: each for each in root["routes"][0]["routes"]}
    rows = {"`page`": ours["page"], "`ticket`": ours["ticket"], "anything else": root}
    assert set(re.findall(r"^\| (`\w+`|anything else) \| \w+ \| after", PAGE, re.MULTILINE)) == set(rows)
    for severity, route in rows.items():
        receiver = route.get("receiver", root["receiver"])
        times = f"after {route['group_wait']} | every {route['group_interval']} | every {route['repeat_interval']}"
        assert f"| {severity} | {receiver} | {times} |" in PAGE
    assert "year 2100" in PAGE and CONFIGURATION["time_intervals"][0]["time_intervals"] == [{"years": ["2100"]}]


def test_the_commands_for_the_file_work() -> None:
    commands = re.findall(r"`((?:amtool|amlint) [^`]+)`", TEXT)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command)
        start = [program("amtool")] if words[0] == "amtool" else [sys.executable, "-m", "amlint.cli"]
        done = subprocess.run([*start, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["page"]
