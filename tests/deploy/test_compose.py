"""deploy/compose: the file is one of Compose's, what it mounts is there, and its servers run with it, for real where they can."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.agent.conftest import House, scrape
from tests.checkout import CHECKOUT
from tests.ports import free_port
from tests.programs import program
from tests.servers.alertmanager.servers import receiver
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "compose"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def checked(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """By the schema of the Compose specification, which check-jsonschema brings."""
    (folder / "compose.yaml").write_text(text)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(folder / "compose.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_is_a_compose_file(tmp_path: Path) -> None:
    found = checked(TEXT, tmp_path)
    assert found.returncode == 0, found.stdout
    found = checked(TEXT.replace("    volumes:", "    volume:", 1), tmp_path)
    assert found.returncode == 1 and "'volume' was unexpected" in found.stdout


def test_images_are_pinned_and_each_service_has_no_more_than_it_needs() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", service["image"]), name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert "ports" not in service and service["network_mode"] == "host"
    listening = [word for service in SERVICES.values() for word in service.get("command", []) if "listen-address=1" in word]
    assert all("listen-address=127.0.0.1:" in word for word in listening) and len(listening) == 2
    assert SERVICES["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert SERVICES["agent"]["command"][1:3] == ["--listen", "127.0.0.1:9699"]


def mounts() -> list[tuple[str, str, Path]]:
    """Service, what is mounted, and where."""
    return [
        (name, source, Path(target.removesuffix(":ro")))
        for name, service in SERVICES.items()
        for source, target in (volume.split(":", 1) for volume in service["volumes"])
    ]


def test_what_is_mounted_is_there() -> None:
    for name, source, target in mounts():
        if source.startswith("."):
            assert (FOLDER / source).resolve().exists(), (name, source)
        else:
            assert source in COMPOSE["volumes"], (name, source)
        assert target.is_absolute()
    used = {each for service in SERVICES.values() for each in service.get("secrets", [])}
    assert used == COMPOSE["secrets"].keys() == {"alertmanager.yml", "grafana-password"}


def test_what_is_secret_is_no_part_of_the_repository(tmp_path: Path) -> None:
    for secret in COMPOSE["secrets"].values():
        assert not (FOLDER / secret["file"]).exists()
        path = f"deploy/compose/{secret['file']}"
        ignored = subprocess.run(["git", "check-ignore", path], cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert ignored.stdout.strip() == path or "not a git repository" in ignored.stderr


# ---- Grafana ---------------------------------------------------------------------------------------------------------------

# https://grafana.com/docs/grafana/v11.6/administration/provisioning/: the keys of each file, and of what is in it.
DATASOURCE = "name type access orgId uid url user database basicAuth basicAuthUser withCredentials isDefault jsonData".split()
KEYS = {
    "datasources": {*DATASOURCE, "secureJsonData", "version", "editable"},
    "jsonData": {"timeInterval", "httpMethod", "prometheusType", "prometheusVersion", "manageAlerts", "cacheLevel"},
    "providers": {
        *"name orgId folder folderUid type disableDeletion updateIntervalSeconds allowUiUpdates options".split(),
    },
    "options": {"path", "foldersFromFilesStructure"},
}


def test_grafana_is_provisioned_by_documented_keys() -> None:
    (source,) = provisioned("datasources", "datasources")
    (provider,) = provisioned("dashboards", "providers")
    assert source.keys() <= KEYS["datasources"] and source["jsonData"].keys() <= KEYS["jsonData"]
    assert provider.keys() <= KEYS["providers"] and provider["options"].keys() <= KEYS["options"]
    assert (source["type"], source["access"], source["uid"]) == ("prometheus", "proxy", "resmon-prometheus")
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in SERVICES["prometheus"]["command"]
    assert source["jsonData"]["prometheusVersion"] == SERVICES["prometheus"]["image"].rpartition(":v")[2]
    assert source["jsonData"]["timeInterval"] == CONFIGURATION["global"]["scrape_interval"]
    places = {str(target): source for name, source, target in mounts() if name == "grafana"}
    assert places[provider["options"]["path"]] == "../../dashboards"
    assert {f"/etc/grafana/provisioning/{each}" for each in ("datasources", "dashboards")} <= places.keys()


def provisioned(folder: str, key: str) -> list[dict[str, Any]]:
    (file,) = (FOLDER / "grafana" / folder).iterdir()
    content = yaml.safe_load(file.read_text())
    assert content.keys() == {"apiVersion", key} and content["apiVersion"] == 1
    return list(content[key])


# ---- Prometheus and Alertmanager, run ----------------------------------------------------------------------------------------

CONFIGURATION: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())


def contained(service: str, folder: Path, secrets: Path) -> dict[str, str]:
    """Where the container's paths are on this machine: its mounts as they are, its volume a folder."""
    found = {"/run/secrets": str(secrets)}
    for name, source, target in mounts():
        if name == service:
            place = (FOLDER / source).resolve() if source.startswith(".") else folder / source
            found[str(target)] = str(place)
    return found


def on_this_machine(words: list[str], places: dict[str, str]) -> list[str]:
    for place, here in places.items():
        words = [re.sub(rf"(?<![\w/]){re.escape(place)}(?![\w.-])", here, word) for word in words]
    return words


def test_promtool_takes_the_configuration_where_the_container_has_it(tmp_path: Path) -> None:
    places = {str(target): source for name, source, target in mounts() if name == "prometheus"}
    for target, source in places.items():
        if source.startswith("."):
            place = tmp_path / target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to((FOLDER / source).resolve())
    command = [program("promtool"), "check", "config", str(tmp_path / "etc" / "prometheus" / "prometheus.yml")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and found.stdout.count("rules found") == 2, found.stdout + found.stderr


@pytest.mark.slow
def test_from_an_agent_to_the_pager_with_the_files_as_they_are(house: House, port: int, tmp_path: Path) -> None:
    """The command lines too; only addresses are this test's, and what is 15 s is one."""
    addresses = {f"127.0.0.1:{usual}": f"127.0.0.1:{free_port()}" for usual in (9090, 9093)}
    addresses["127.0.0.1:9699"] = f"127.0.0.1:{port}"

    def moved(text: str) -> str:
        for usual, other in addresses.items():
            text = text.replace(usual, other)
        return text

    secrets = tmp_path / "secrets"
    secrets.mkdir()
    house.agent(port)
    with receiver() as heard:
        routes = (ROOT / "alerts" / "alertmanager.yml").read_text().replace("http://127.0.0.1:9095", heard.url)
        (secrets / "alertmanager.yml").write_text(routes)
        for name, executable in (("alertmanager", "prometheus-alertmanager"), ("prometheus", "prometheus")):
            places = contained(name, tmp_path, secrets)
            if name == "prometheus":
                configuration = tmp_path / "prometheus.yml"
                configuration.write_text(moved((FOLDER / "prometheus.yml").read_text()).replace("15s", "1s"))
                (tmp_path / "alerts").symlink_to(places["/etc/prometheus/alerts"])
                places["/etc/prometheus/prometheus.yml"] = str(configuration)
            house.start(program(executable), *map(moved, on_this_machine(SERVICES[name]["command"], places)))
        house.trainer("digits", pace=0.05, last=100_000, how="nonfinite")
        (page,) = wait_for(lambda: heard.of("/page"), 60)
        assert {alert["labels"]["alertname"] for alert in page["alerts"]} == {"ResmonNonfinite"}
        (alert,) = page["alerts"]
        assert alert["labels"]["run"] == "digits" and alert["labels"]["block"] == "h.2"
        assert alert["generatorURL"]


# ---- the image -------------------------------------------------------------------------------------------------------------

CONTAINERFILE = (ROOT / "deploy" / "Containerfile").read_text()


def copied() -> list[str]:
    """What the first stage takes from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE)
    return [word for line in lines for word in line.split()]


@pytest.mark.slow
def test_the_agent_runs_from_what_the_image_copies_and_without_torch(house: House, port: int, tmp_path: Path) -> None:
    """Its packages are this environment's, but for torch, which cannot be imported there."""
    source = tmp_path / "source"
    source.mkdir()
    for name in copied():
        origin = CHECKOUT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(origin, source / name)
    target = tmp_path / "image"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (target / "torch.py").write_text("raise ImportError('there is no torch in this image')\n")
    words = json.loads(re.findall(r"^CMD (.*)$", CONTAINERFILE, re.MULTILINE)[0])
    settings = dict(word.split("=") for word in re.findall(r"^ENV (.*)$", CONTAINERFILE, re.MULTILINE)[0].split())
    assert settings.pop("RESMON_RUNTIME_DIR") == "/run/resmon/agent"
    words = [word.replace("0.0.0.0:9699", f"127.0.0.1:{port}") for word in words]
    environment = settings | {"PYTHONPATH": str(target)}
    where = [sys.executable, "-P", "-c", "import resmon; print(resmon.__file__)"]
    printed = subprocess.run(where, env=environment, capture_output=True, text=True, check=True)
    assert Path(printed.stdout.strip()).is_relative_to(target)
    house.start(sys.executable, "-P", "-m", "resmon", *words, environment=environment)
    url = house.ready(port)
    house.trainer("digits", last=20, how="finished")
    wait_for(lambda: scrape(url).one("resmon_run_outcome", outcome="finished") == 1)
    wait_for(lambda: scrape(url).all("resmon_block_branch_skip_ratio"))
