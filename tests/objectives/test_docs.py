"""docs/objectives.md against what there is: its tables, its specification, its commands and what they print."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from resmon.objectives import generation, rules, spec, windows
from resmon.objectives.spec import RESERVED
from resmon.rules import Recording, durations
from tests.objectives.specs import written
from tests.programs import program
from tests.prometheus import prometheus, quick_rules, scraped
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "objectives.md").read_text()
WRONG = """\
version: prometheus/v1
service: digits
slos:
  - objectve: 99
    name: a
    sli: {events: {total_query: "sum(rate(all_total[{{.window}}]))",
      error_query: "sum(rate(bad_total[{{.window}}])"}}

  - name: b
    objective: 80
    sli: {raw: {error_ratio_query: "bad:ratio{{.window}}"}}
"""


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a row of headings."""
    text = PAGE[PAGE.index(heading) :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_the_table_of_objectives() -> None:
    told = {each.name: (f"{each.percent} %", each.guard, list(each.tiers)) for each in generation.make(None).objectives}
    assert {
        name.strip("`"): (target, int(least.split()[0]), alerts.split(", "))
        for name, target, _, least, alerts in rows("| objective | target | good is |")
    } == told
    for name in (*told, *RESERVED):
        assert f"`{name}`" in PAGE or f"**{name}.**" in PAGE
    shipped = generation.shipped()[0].read_text()
    assert 'le="8.0"' in shipped and "> 14400" in shipped and "time() - 600" in shipped and "resmon_runs_active[1h]" in shipped
    assert f"({spec.MINIMUM_EVENTS} unless said" in PAGE


def test_the_table_of_windows() -> None:
    policy = windows.policy()
    expected = [
        [row.severity, durations.written(row.long), durations.written(row.short), row.share, row.factor(policy.period)]
        for row in policy.rows
    ]
    told = [
        [severity, long, short, Fraction(share.removesuffix(" %")) / 100, Fraction(rate)]
        for severity, long, short, share, rate in rows("| alert | long window |")
    ]
    assert told == expected


def test_the_table_of_series() -> None:
    (objective,) = [each for each in generation.make(None).objectives if each.name == "step-time"]
    recorded = {rule.record for rule in rules.group(objective, windows.policy().windows()).rules if isinstance(rule, Recording)}
    named = set(re.findall(r"`(slo:[\w:]+)`", PAGE))
    assert named <= recorded
    assert {re.sub(r"\d+[mhd]$", "", name) for name in recorded} == {re.sub(r"\d+[mhd]$", "", name) for name in named}
    assert (rules.DIRECT, rules.DIRECT_NESTED, rules.INTERVAL) == (6 * 3600, 3600, 60)


def commands() -> Iterator[tuple[str, str]]:
    for block in blocks(""):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def run(command: str, folder: Path) -> str:
    words = command.split()
    known = {"resmon": [sys.executable, "-m", "resmon"], "promtool": [program("promtool")]}
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "100", "HOME": "/"}
    done = subprocess.run(
        [*known[words[0]], *words[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("docs")
    (rule_files, own) = blocks("yaml")
    assert yaml.safe_load(rule_files) == {"rule_files": ["alerts/slo.yaml"]}
    written(made, own, "digits.yaml")
    written(made, WRONG, "wrong.yaml")
    return made


def test_the_specification_is_one(folder: Path) -> None:
    (objective,) = spec.load([folder / "digits.yaml"], windows.policy().windows())
    assert (objective.alert, objective.guard, list(objective.tiers)) == ("DigitsStepTime", 200, ["ticket"])


@pytest.mark.parametrize(("command", "printed"), [each for each in commands() if "report" not in each[0]])
def test_a_command_prints_what_the_page_shows(command: str, printed: str, folder: Path) -> None:
    if "promtool" in command or "--check" in command:
        shutil.rmtree(folder / "alerts", ignore_errors=True)
        run("resmon slo generate digits.yaml -o alerts", folder)
    assert run(command, folder) == printed.strip()


@pytest.mark.slow
def test_the_report_that_the_page_shows(tmp_path: Path) -> None:
    runs = [f'resmon_runs_total{{outcome="{outcome}"}}' for outcome in ("finished", "failed")]
    labels = 'run="r",rank="0"'
    steps = [
        f'resmon_step_duration_seconds_bucket{{{labels},le="8.0"}}',
        *(
            f"{name}{{{labels}}}"
            for name in ("resmon_step_duration_seconds_count", "resmon_steps_total", "resmon_nonfinite_steps_total")
        ),
    ]
    (shown,) = [printed for command, printed in commands() if "report" in command]
    with scraped() as page, prometheus(tmp_path / "server", quick_rules(tmp_path), page) as url:
        page.values |= dict.fromkeys([*runs, *steps], 0.0)
        page.values["resmon_runs_active"] = 1
        page.values[f"resmon_last_step_timestamp_seconds{{{labels}}}"] = 4e9
        before = page.scrapes
        wait_for(lambda: page.scrapes > before + 2)
        page.values |= dict(zip([*runs, *steps], (1.0, 9.0, 995.0, 1000.0, 1000.0, 0.0), strict=True))
        # A minute passes until the first whole minute of the agent's counts.
        wait_for(lambda: run(f"resmon slo report --prometheus {url}", tmp_path) == shown.strip(), 120)
