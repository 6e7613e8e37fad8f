"""The files that are generated, the committed ones among them, and the commands that make and check them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resmon.commands.slo import VERBS
from resmon.errors import ConfigurationError
from resmon.objectives import generation
from tests.objectives.specs import service, slo, written

ROOT = Path(__file__).parents[2]
FILES = ["slo.yaml", "tests/slo.yaml"]


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": "/", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "resmon", "slo", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_help_lists_every_verb(tmp_path: Path) -> None:
    shown = command("--help", folder=tmp_path)
    assert shown.returncode == 0 and all(f" {name} " in shown.stdout and verb.__doc__ for name, verb in VERBS)


def test_files_are_written_and_known_to_be_fresh(tmp_path: Path) -> None:
    made = command("generate", folder=tmp_path)
    assert made.returncode == 0 and made.stdout.split() == [f"alerts/{name}" for name in FILES] and not made.stderr
    fresh = command("generate", "--check", folder=tmp_path)
    assert fresh.returncode == 0 and fresh.stdout == "alerts/slo.yaml, alerts/tests/slo.yaml: up to date\n"
    for name in FILES:
        assert (tmp_path / "alerts" / name).read_text() == (ROOT / "alerts" / name).read_text()


def test_what_is_old_is_named_with_exit_status_1(tmp_path: Path) -> None:
    command("generate", "-o", "out", folder=tmp_path)
    rules = tmp_path / "out" / "slo.yaml"
    rules.write_text(rules.read_text().replace("14.4", "14.5"))
    found = command("generate", "-o", "out", "--check", folder=tmp_path)
    assert found.returncode == 1
    assert found.stdout == "out/slo.yaml is not what the objectives say now; make it anew with resmon slo generate\n"
    (tmp_path / "out" / "tests" / "slo.yaml").unlink()
    rules.write_bytes(b"\xff")
    found = command("generate", "-o", "out", "--check", folder=tmp_path)
    assert found.returncode == 1 and len(found.stdout.splitlines()) == 2
    assert rules.read_bytes() == b"\xff"  # nothing was written
    other = command("generate", "-o", "out", "--check", "--policy", "burn-rate-2", folder=tmp_path)
    assert other.returncode == 1


def test_ones_own_objectives_another_policy_and_other_addresses(tmp_path: Path) -> None:
    spec = written(tmp_path, service(slo()), "shop.yaml")
    done = command(
        *("generate", "shop.yaml", "--policy", "burn-rate-2", "--period", "28d"),
        *("--runbooks", "https://books/", "--dashboards", "https://boards"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "alerts" / "slo.yaml").read_text()
    assert text.startswith("# Made by `resmon slo generate` from shop.yaml: policy burn-rate-2, period 4w.\n")
    (group,) = yaml.safe_load(text)["groups"]
    page = next(rule for rule in group["rules"] if rule.get("labels", {}).get("severity") == "page")
    assert page["annotations"]["runbook_url"] == "https://books/error-budget.md"
    assert page["annotations"]["dashboard_url"] == "https://boards/resmon-slo?var-service=shop&var-slo=availability"
    assert "> 2\n" in page["expr"] and "ratio_rate4w" in text
    assert spec.read_text() == service(slo())


def test_what_a_folder_refuses(tmp_path: Path) -> None:
    (tmp_path / "alerts").write_text("a file")
    found = command("generate", folder=tmp_path)
    assert found.returncode == 2 and "cannot be written" in found.stderr and "--output" in found.stderr


def test_a_check_names_every_mistake_with_exit_status_2(tmp_path: Path) -> None:
    written(tmp_path, service(slo(objective="100"), slo("b", "90"), slo("b b")), "wrong.yaml")
    written(tmp_path, "{", "no.yaml")
    written(tmp_path, service(slo()), "good.yaml")
    found = command("check", "wrong.yaml", "no.yaml", "good.yaml", "missing.yaml", folder=tmp_path)
    assert found.returncode == 2 and not found.stdout and "Traceback" not in found.stderr
    for what in (
        "wrong.yaml, line 5, slos[0].objective: 100 leaves",
        "wrong.yaml, line 11, slos[1].objective: page quick (1h/5m) could never fire",
        "wrong.yaml, line 16, slos[2].name: must begin and end",
        "no.yaml, line 1, column 2, is no YAML",
        "missing.yaml cannot be read: No such file or directory",
    ):
        assert what in found.stderr
    assert "good.yaml" not in found.stderr


def test_a_check_of_what_is_right_says_what_it_found(tmp_path: Path) -> None:
    raw = slo("raw", "95", "raw: {error_ratio_query: 'errors:ratio{{.window}}'}\n")
    written(tmp_path, service(slo(), raw))
    found = command("check", "spec.yaml", "--period", "7d", folder=tmp_path)
    assert found.returncode == 0 and not found.stderr
    assert found.stdout.splitlines() == [
        *(
            f"ticket {pair} tells of a burn rate of {rate}, with which the budget outlasts the 1w. "
            "A larger share, or a burnRate, says so later."
            for pair, rate in (("quick (1d/2h)", 0.7), ("slow (3d/6h)", 0.233))
        ),
        (
            "shop/raw: its queries do not say how many events there were, so its alerts have no guard against few of them; "
            "resmon.events_query says it"
        ),
        "shop/availability: 99.9 % over 1w, page and ticket alerts",
        "shop/raw: 95 % over 1w, page and ticket alerts",
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--period", "soon"], "--period must be a duration such as 30m, 2h or 1d12h (got 'soon')."),
        (["--period", "2d"], "longWindow: 3d is longer than the period of 2d; take a longer --period"),
        (["--period", "90d"], "resmon slo generate: page quick (1h/5m) could never fire"),
        (["--runbooks", "books"], "--runbooks 'books' is no address; it begins with http:// or https://."),
        (["--policy", "workboo"], "there is no policy 'workboo'; the nearest is workbook."),
    ],
)
def test_options_that_cannot_be_used(arguments: list[str], why: str, tmp_path: Path) -> None:
    found = command("generate", *arguments, folder=tmp_path)
    assert found.returncode == 2 and not (tmp_path / "alerts").exists()
    assert why.removeprefix("resmon slo generate: ") in found.stderr


def test_the_same_objectives_give_the_same_files(tmp_path: Path) -> None:
    assert generation.make(None).files == generation.make(None).files
    with pytest.raises(ConfigurationError):
        generation.make([tmp_path / "missing.yaml"])
