"""What is built and released: the sdist, the wheel that comes out of it, and what somebody has who installs that one.

Environments here hold the wheel and what it says it needs (tests/environments.py), so that nothing of this checkout, and no package
that is not declared, can help.
"""

from __future__ import annotations

import email
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from base64 import urlsafe_b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import distribution
from pathlib import Path
from threading import Thread
from zipfile import ZipFile

import httpx
import pytest

import resmon
from resmon.errors import ServerError
from resmon.servers.alertmanager import Alertmanager
from tests.checkout import CHECKOUT
from tests.environments import Environment, environment
from tests.ports import free_port
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
NATIVES = {f"resmon/{room}/_native.abi3.so" for room in ("capture", "detectors")}


def build(what: str, source: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", what, "-d", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", CHECKOUT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist alone, as pip does where no wheel fits."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", next(folder.iterdir()), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install resmon`."""
    return environment(tmp_path_factory.mktemp("base"), wheel)


@pytest.fixture(scope="module")
def training(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install 'resmon[torch]'`."""
    return environment(tmp_path_factory.mktemp("training"), wheel, ["torch"])


def tracked() -> set[str]:
    """The files of this checkout that git would commit."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return {name for name in done.stdout.splitlines() if (CHECKOUT / name).is_file()}


# ---- what is in them ---------------------------------------------------------------------------------------------------------


def test_an_sdist_holds_the_checkout_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert found - {"PKG-INFO"} == tracked()


def test_a_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    """The package but for its C, which is compiled, the examples and the runbooks: no test, no benchmark, no document."""
    files = tracked()
    package = {name for name in files if name.startswith("resmon/") and not name.endswith((".c", ".h"))}
    brought = {f"resmon/{name}" for name in files if name.startswith(("examples/", "runbooks/"))}
    found = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == package | brought | NATIVES
    assert "resmon/py.typed" in found


def test_one_wheel_serves_every_python(wheel: Path) -> None:
    """The tag promises the stable interface from the oldest Python that is supported; docs/versions.md says where it was run."""
    name, version, interpreter, abi, platform = wheel.stem.split("-")
    least = PROJECT["requires-python"].removeprefix(">=")
    assert (name, version, interpreter, abi) == ("resmon", resmon.__version__, f"cp{least.replace('.', '')}", "abi3")
    assert platform.startswith("linux_") or sys.platform != "linux"
    archive = ZipFile(wheel)
    described = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/WHEEL"))
    assert email.message_from_bytes(archive.read(described))["Root-Is-Purelib"] == "false"
    command = [sys.executable, "-m", "abi3audit", "--strict", "--report", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (audited,) = json.loads(done.stdout)["specs"].values()
    found = [each["result"] for each in audited["wheel"]]
    assert len(found) == len(NATIVES)
    assert all(each["is_abi3"] and each["baseline"] == least and not each["non_abi3_symbols"] for each in found), found


@pytest.mark.skipif(not (ROOT / "resmon").is_symlink(), reason="these tests run in the checkout; make test runs them at the wheel")
def test_what_is_tested_is_the_wheel_that_is_installed() -> None:
    """Each file of it, by the sums that the wheel brought along; and it is what every process of a test imports."""
    installed = distribution("resmon")
    assert "editable" not in (installed.read_text("direct_url.json") or "")
    package = Path(str(installed.locate_file("resmon")))
    assert Path(resmon.__file__).parent.resolve() == package.resolve() != (CHECKOUT / "resmon").resolve()
    for file in installed.files or ():
        if file.hash is not None:
            digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
            assert urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file
    command = [sys.executable, "-c", "import resmon; print(resmon.__file__)"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd="/", capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent.resolve() == package.resolve()


def test_on_ci_the_wheel_is_tested() -> None:
    assert not os.environ.get("CI") or (ROOT / "resmon").is_symlink(), "make test runs the tests where the wheel is: .ci/wheel"


# ---- one version -------------------------------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place(wheel: Path) -> None:
    """Whatever tells it, has it from resmon/__init__.py; the images of deploy/ are named after it."""
    version = resmon.__version__
    archive = ZipFile(wheel)
    metadata = email.message_from_bytes(archive.read(f"resmon-{version}.dist-info/METADATA"))
    assert metadata["Version"] == version and "version" in PROJECT["dynamic"] and "version" not in PROJECT
    code = [name for name in tracked() if name.endswith((".py", ".toml", ".c", ".js")) and not name.startswith("tests/")]
    assert [name for name in sorted(code) if f'"{version}"' in (CHECKOUT / name).read_text()] == ["resmon/__init__.py"]
    images = {
        found
        for name in tracked()
        if name.startswith("deploy/")
        for found in re.findall(r"\bresmon:(\d[\w.]*\d)", (CHECKOUT / name).read_text())
    }
    assert images == {version}


def test_servers_are_told_who_asks() -> None:
    heard: list[str] = []

    class Heard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["User-Agent"])
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", free_port()), Heard) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            with Alertmanager.of([f"http://127.0.0.1:{server.server_port}"]) as client, pytest.raises(ServerError):
                client.silences()
        finally:
            server.shutdown()
    assert set(heard) == {f"resmon/{resmon.__version__}"}


# ---- what a user has ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_is_watched_served_and_read_by_what_was_installed(
    base: Environment, training: Environment, tmp_path: Path
) -> None:
    """Away from any checkout: a training with torch, and without torch the agent, its page and the commands that read."""
    shown = base.run("resmon", "--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"{resmon.__version__}\n"), shown.stderr
    assert base.run("python", "-c", "import torch", cwd=tmp_path).returncode == 1

    port = free_port()
    runtime = {"RESMON_RUNTIME_DIR": str(tmp_path / "runtime")}
    command = [base.folder / "bin" / "resmon", "agent", "-d", tmp_path / "runs", "--listen", f"127.0.0.1:{port}", "--linger", "600"]
    (tmp_path / "runs").mkdir()
    with (tmp_path / "agent.txt").open("w") as said:
        where = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)} | runtime
        agent = subprocess.Popen(command, cwd=tmp_path, env=where, stdout=said, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _ok(f"{url}/-/ready"), said=(tmp_path / "agent.txt").read_text)
        (tmp_path / "train.py").write_text(TRAINING)
        trained = training.run("python", "train.py", cwd=tmp_path, RESMON_AGENT="sidecar", **runtime)
        assert trained.returncode == 0, trained.stderr
        assert trained.stdout == "['0', '1'] set()\n"
        assert resmon.__version__ in re.findall(r'resmon_agent_info\{version="([^"]+)"\} 1', httpx.get(f"{url}/metrics").text)
        wait_for(lambda: 'resmon="' in httpx.get(f"{url}/metrics").text)
        told = re.findall(r'^resmon_run_info\{.*\bresmon="([^"]+)".*run="fresh"', httpx.get(f"{url}/metrics").text, re.MULTILINE)
        assert told == [resmon.__version__]
        page = httpx.get(url).text
        linked = re.findall(r'(?:src|href)="([^":]+\.(?:js|css|svg))"', page)
        assert len(linked) >= 3
        for name in linked:
            answer = httpx.get(f"{url}/{name.lstrip('/')}")
            assert answer.status_code == 200 and answer.content, name
    finally:
        agent.terminate()
        agent.wait(60)
    for words, said_ in COMMANDS.items():
        done = base.run("resmon", *words.split(), cwd=tmp_path, **runtime)
        assert done.returncode == 0 and re.search(said_, done.stdout), (words, done.stdout, done.stderr)
    report = next(tmp_path.glob("postmortem-*.html")).read_text()
    assert "<style" in report and "box-sizing: border-box" in report and "plotly.js v" in report and "draw();" in report
    assert (tmp_path / "alerts" / "slo.yaml").read_text() == (ROOT / "alerts" / "slo.yaml").read_text()
    assert (tmp_path / "made" / "alerts" / "resmon.yaml").read_text() == (ROOT / "alerts" / "resmon.yaml").read_text()


# What reads needs files of the package: runbooks, templates, scripts, styles, specifications.
COMMANDS = {
    "ls": r"fresh +1 +nonfinite",
    "tail fresh": r"step 5 ",
    "incidents fresh": r"div in module 1",
    "runbook --run fresh": r"div in module 1",
    "runbook nonfinite": r"Diagnosis",
    "postmortem fresh": r"postmortem-.*\.html",
    "replay fresh": r"1 page",
    "export fresh --to parquet": r"blocks\.parquet",
    "slo generate": r"slo\.yaml",
    "assets made --only alerts": r"resmon\.yaml",
    "settings": r"max_series",
}

# The second block divides by zero at the last of six steps. It says which packages of extras it has imported, of those that are not
# what torch itself imports.
TRAINING = """
import sys
import torch
import resmon

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.bad = torch.nn.Linear(4, 4), False

    def forward(self, x):
        y = self.linear(x)
        if self.bad:
            y = y / (y - y)
        return x + torch.relu(y)

model = torch.nn.Sequential(Block(), Block())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with resmon.watch(model, optimizer, run="fresh") as monitor:
    for step in range(6):
        model[1].bad = step == 5
        loss = model(torch.randn(2, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.log(loss=loss)
    print([site.name for site in monitor.sites], {"pandas", "scipy", "uvicorn", "starlette", "httpx", "plotly"} & {*sys.modules})
"""


def _ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_the_page_of_versions_has_what_is_declared_and_what_is_run() -> None:
    """The oldest that is declared was run, each Python that the package names, and all that `make test-versions` goes through."""
    page = (ROOT / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| (3\.\d+)[.\d]* \| ([\d.]+|none) \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    pythons = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    assert pythons == {python for python, _, _, _ in rows} and f">={min(pythons)}" == PROJECT["requires-python"]
    least = EXTRAS["torch"][0].removeprefix("torch>=")
    assert any(f"{torch}.".startswith(f"{least}.") for _, torch, _, _ in rows)
    script = (CHECKOUT / ".ci" / "versions").read_text()
    tried = re.findall(r'^  "(index|debian) (\S+)(?: (\S+))?"', script, re.MULTILINE)
    shown = {(f"Debian {what}", "") if kind == "debian" else ("index", what) for kind, what, _ in tried}
    assert shown <= {(origin, "" if origin.startswith("Debian") else python) for python, _, origin, _ in rows}
    makefile = (CHECKOUT / "Makefile").read_text()
    pinned = re.search(r"^TORCH := torch==([\d.]+)$", makefile, re.MULTILINE)
    assert pinned is not None and ("3.11", pinned[1]) in {(python, torch) for python, torch, _, _ in rows}


# ---- type information --------------------------------------------------------------------------------------------------------

USER = """
from pathlib import Path
from typing import assert_type

import torch
from torch import nn

import resmon


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return assert_type(resmon.residual_add(x, torch.relu(self.linear(x))), torch.Tensor)


def train(directory: Path) -> None:
    model = nn.Sequential(Block(), Block())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with resmon.watch(model, optimizer, run="typed", directory=directory, agent="off") as monitor:
        assert_type(monitor, resmon.Monitor)
        for _ in range(3):
            loss = model(torch.randn(2, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)
        monitor.checkpoint("last.pt")
        assert_type(monitor.directory, Path)
        names: list[str] = [site.name for site in monitor.sites]
    flight = assert_type(resmon.load(directory / "typed"), resmon.Flight)
    print(names, len(flight.steps()), len(flight.blocks()), len(flight.findings()))
    found = assert_type(resmon.discover(model, torch.randn(2, 4)), list[resmon.ResidualSite])
    print([(site.name, site.kind) for site in found])


def wrong(monitor: resmon.Monitor) -> None:
    monitor.logg(loss=1.0)  # type: ignore[attr-defined]
    monitor.checkpoint(3)  # type: ignore[arg-type]
    resmon.load()  # type: ignore[call-arg]
    resmon.missing  # type: ignore[attr-defined]


if __name__ == "__main__":
    try:
        train(Path("runs"))
    except resmon.ResmonError as error:
        raise SystemExit(str(error)) from error
"""


@pytest.mark.slow
def test_a_users_strict_type_checker_sees_the_installed_types(wheel: Path, training: Environment, tmp_path: Path) -> None:
    """mypy looks at the installed package alone. Were that without types, every name in it would be Any, and each comment that lets
    a wrong line pass would be one too many."""
    script = tmp_path / "train.py"
    script.write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(training.python), "--config-file", os.devnull]
    where = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MYPY_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([*command, script.name], cwd=tmp_path, env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = training.run("python", script, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("['0', '1'] 3 6 0\n")

    (training.packages / "resmon" / "py.typed").rename(tmp_path / "py.typed")
    try:
        done = subprocess.run([*command, script.name], cwd=tmp_path, env=where, capture_output=True, text=True, check=False)
    finally:
        (tmp_path / "py.typed").rename(training.packages / "resmon" / "py.typed")
    assert done.returncode == 1 and "py.typed marker" in done.stdout
