"""The files that `resmon assets` writes: committed as they would be written now, and told where they are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resmon.assets import OUTPUTS, Links, differing, write
from tests.programs import program

ROOT = Path(__file__).parent.parent.parent


def resmon(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "resmon", "assets", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_what_is_committed_is_what_would_be_written_now() -> None:
    assert differing(ROOT, Links()) == []


def test_the_folder_holds_nothing_else_that_is_generated() -> None:
    headers = ("# Written by `resmon assets`", "# Made by `resmon assets`")
    folders = {ROOT / Path(path).parts[0] for path in OUTPUTS}
    generated = {path for folder in folders for path in folder.rglob("*.yaml") if path.read_text().startswith(headers)}
    assert generated | {*(ROOT / "dashboards").rglob("*")} == {ROOT / path for path in OUTPUTS}


def test_what_was_written_is_fresh_and_what_was_changed_is_told(tmp_path: Path) -> None:
    assert write(tmp_path, Links()) == list(OUTPUTS)
    assert write(tmp_path, Links()) == []
    file = tmp_path / "alerts" / "resmon.yaml"
    file.write_text(file.read_text().replace("2m", "3m", 1))
    assert differing(tmp_path, Links()) == ["alerts/resmon.yaml"]
    (tmp_path / "alerts" / "tests" / "runs.yaml").unlink()
    assert differing(tmp_path, Links()) == ["alerts/resmon.yaml", "alerts/tests/runs.yaml"]


def test_the_command_checks_and_writes(tmp_path: Path) -> None:
    checked = resmon("--check", cwd=tmp_path)
    assert checked.returncode == 1
    assert "alerts/resmon.yaml is not as it would be written now" in checked.stdout
    assert not list(tmp_path.iterdir())
    written = resmon(cwd=tmp_path)
    assert (written.returncode, written.stdout.splitlines()) == (0, list(OUTPUTS))
    assert resmon("--check", cwd=tmp_path).returncode == 0
    assert (tmp_path / "alerts" / "resmon.yaml").read_bytes() == (ROOT / "alerts" / "resmon.yaml").read_bytes()


@pytest.mark.slow
def test_a_check_asks_for_the_same_options(tmp_path: Path) -> None:
    options = ("--runbooks", "https://wiki.example/books/", "--dashboards", "https://grafana.example/d")
    assert resmon(*options, cwd=tmp_path).returncode == 0
    assert resmon(*options, "--check", cwd=tmp_path).returncode == 0
    assert resmon("--check", cwd=tmp_path).returncode == 1
    rules = [
        rule for group in yaml.safe_load((tmp_path / "alerts" / "resmon.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    alerts = [rule["annotations"] for rule in rules if "alert" in rule]
    assert all(each["runbook_url"].startswith("https://wiki.example/books/") for each in alerts)
    assert not any("books//" in each["runbook_url"] for each in alerts)
    assert all(each["dashboard_url"].startswith("https://grafana.example/d/resmon-") for each in alerts)
    for file in ("alerts/slo.yaml", "deploy/kubernetes/rules.yaml"):
        text = (tmp_path / file).read_text()
        assert "https://wiki.example/books/" in text and "github.com" not in text and "localhost" not in text, file
    for path in sorted((tmp_path / "alerts" / "tests").iterdir()):  # their unit tests expect the same addresses
        if path.name == "slo.yaml":  # which tests/objectives runs, with other addresses too, and which takes long
            continue
        found = subprocess.run([program("promtool"), "test", "rules", path.name], cwd=path.parent, capture_output=True, check=False)
        assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(("option", "url"), [("--runbooks", "wiki"), ("--dashboards", "")])
def test_what_is_no_address_is_refused(option: str, url: str, tmp_path: Path) -> None:
    refused = resmon(option, url, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"{option} '{url}' is no address" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "alerts").write_text("a file")
    refused = resmon(cwd=tmp_path)
    assert refused.returncode == 2
    assert "cannot be written" in refused.stderr and "alerts" in refused.stderr
    assert "Traceback" not in refused.stderr


WITHOUT_SDK = (
    "import sys; sys.modules['grafana_foundation_sdk'] = None; sys.argv[0] = 'resmon'; from resmon.cli import main; main()"
)


def without_sdk(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_SDK, "assets", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_without_grafanas_sdk_nothing_is_written_and_what_to_install_is_said(tmp_path: Path) -> None:
    refused = without_sdk(cwd=tmp_path)
    assert refused.returncode == 2
    assert "pip install 'resmon[assets]'" in refused.stderr and "--only alerts" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_one_folder_is_written_and_checked_alone_and_alerts_without_the_sdk(tmp_path: Path) -> None:
    written = without_sdk("--only", "alerts", cwd=tmp_path)
    assert (written.returncode, written.stdout.splitlines()) == (0, [path for path in OUTPUTS if path.startswith("alerts/")])
    assert without_sdk("--only", "alerts", "--check", cwd=tmp_path).returncode == 0
    assert differing(tmp_path, Links(), ["dashboards"]) == [path for path in OUTPUTS if path.startswith("dashboards/")]
