"""deploy/README.md: its commands do what they say, as far as they can be run here, and its files, figures and tables are true."""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from resmon.settings import Settings
from tests.deploy.test_compose import COMPOSE, SERVICES
from tests.deploy.test_kubernetes import JOB, SIDECAR, named
from tests.programs import program

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "deploy" / "README.md").read_text()
TEXT = " ".join(PAGE.split())
COMMANDS = [
    line.strip()
    for block in re.findall(r"^\s*(?:\d\. )?```sh\n(.*?)^\s*```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
ELSEWHERE = ("docker", "kubectl")  # which need an engine or a cluster


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the commands find in the repository."""
    for name in ("alerts", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("secrets"))
    return tmp_path


def test_what_can_be_run_here_works(checkout: Path) -> None:
    here = [command for command in COMMANDS if not command.startswith(ELSEWHERE)]
    assert len(here) == 5 and len(COMMANDS) == 16
    for command in here:
        program(shlex.split(command)[0])
        done = subprocess.run(["sh", "-euc", command], cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
    secrets = checkout / "deploy" / "compose" / "secrets"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    wanted = {Path(each["file"]).name for each in COMPOSE["secrets"].values()}
    assert {each.name for each in secrets.iterdir()} == wanted
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o644 for each in secrets.iterdir())  # the servers have other users
    assert re.fullmatch(r"[0-9a-f]{48}\n", (secrets / "grafana-password").read_text())


def test_the_receivers_that_it_shows_are_taken(checkout: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    file = checkout / "alerts" / "alertmanager.yml"
    given = yaml.safe_load(file.read_text())
    assert [each["name"] for each in given["receivers"]] == [each["name"] for each in yaml.safe_load(shown)["receivers"]]
    file.write_text(yaml.safe_dump(given | yaml.safe_load(shown)))
    found = subprocess.run([program("amtool"), "check-config", str(file)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_what_commands_for_elsewhere_name_is_there() -> None:
    for command in COMMANDS:
        words = [word for part in shlex.split(command) for word in re.split("[=,]", part)]
        for word in words:
            if word.startswith(("deploy/", "alerts/")) and "secrets" not in word:
                assert (ROOT / word).exists(), command
    label = "app.kubernetes.io/name"
    (labelling,) = [shlex.split(command) for command in COMMANDS if "--selector" in command]
    selector = labelling[labelling.index("--selector") + 1]
    for kind, name in (("PodMonitor", "resmon"), ("PrometheusRule", "resmon"), ("PrometheusRule", "resmon-slo")):
        assert selector == f"{label}={named(kind, name)['metadata']['labels'][label]}"
    # A training in a container finds the agent in another by the same volumes and folders.
    (running,) = [command for command in COMMANDS if command.startswith("docker run")]
    places = dict(each.split(":") for each in SERVICES["agent"]["volumes"])
    for volume in ("runs", "runtime"):
        assert f"-v {COMPOSE['volumes'][volume]['name']}:{places[volume]} " in running
    given = dict(word.removeprefix("RESMON_").lower().split("=") for word in shlex.split(running) if word.startswith("RESMON_"))
    given.pop("runtime_dir")
    assert str(Settings.of(**given).directory) == "/runs" and given["agent"] == "sidecar"


def test_each_row_of_the_table_is_in_the_job() -> None:
    rows = re.findall(r"^\| (.+?) \| .+ \|$", PAGE, re.MULTILINE)[1:]
    text = (ROOT / "deploy" / "kubernetes" / "job.yaml").read_text()
    assert len(rows) == 11
    for row in rows[1:]:
        for words in re.findall(r"`([^`]+)`", row):
            name, _, value = words.replace("=", ": ").partition(": ")
            if words.startswith("--"):
                option, value = words.split()
                assert SIDECAR["args"][SIDECAR["args"].index(option) + 1] == value
            elif name.startswith("RESMON_"):
                assert re.search(rf"name: {name}\n\s+value: {value}", text), words
            else:
                assert words in text, words
    assert f"`terminationGracePeriodSeconds: {JOB['spec']['template']['spec']['terminationGracePeriodSeconds']}`" in PAGE


def test_its_figures_are_those_of_the_files() -> None:
    addresses = {"prometheus": 9090, "alertmanager": 9093}
    for name, port in addresses.items():
        assert f"--web.listen-address=127.0.0.1:{port}" in SERVICES[name]["command"]
        assert f"{name.capitalize()} on {port}" in TEXT
        assert SERVICES[name]["image"].rpartition(":v")[2] in TEXT
    assert "Grafana on 3000" in TEXT
    assert Settings.model_fields["listen"].default == "127.0.0.1:9699" and "on 9699" in TEXT
    grace = SIDECAR["args"][SIDECAR["args"].index("--grace") + 1]
    assert f"for {grace} s at most" in TEXT and f"ends {grace} s later than it could" in TEXT
