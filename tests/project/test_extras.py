"""Extras bring what they say and no more, nobody imports what he has not asked for, and who lacks one is told which.

The environments are those of tests/environments.py: what is not asked for is not there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from resmon.flight.layout import claim
from resmon.flight.writer import FlightWriter
from resmon.records import RunEnd
from tests import synthetic
from tests.checkout import CHECKOUT
from tests.environments import Environment, closure, environment, modules, names, requirements
from tests.project.test_wheel import EXTRAS, TRAINING, build

ROOT = Path(__file__).parents[2]
OWN = {"bench", "dev", "release"}  # for who works on resmon
USERS = sorted(EXTRAS.keys() - OWN)
TORCH = {"torch", "safetensors"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", CHECKOUT, tmp_path_factory.mktemp("extras"))


def named(extra: str) -> set[str]:
    """The packages that an extra names, and those of the extras that it names."""
    found = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        if requirement.name == "resmon":
            found |= {name for other in requirement.extras for name in named(other)}
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def test_the_page_says_what_each_brings() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (`[^|]+`) \|$", page, re.MULTILINE)
    assert {name: re.findall(r"`([^`]+)`", brought) for name, brought in rows} == {name: EXTRAS[name] for name in USERS}
    assert all(f"`{name}`" in page for name in OWN)


@pytest.mark.parametrize("extra", ["", *USERS])
def test_nothing_comes_that_is_not_named(extra: str, wheel: Path) -> None:
    """Of all that an installation without extras brings, nothing is what an extra is for; nor is it with another extra's."""
    everything = {name for other in USERS for name in named(other)}
    # wandb itself needs OpenTelemetry, so that it comes with that extra, too.
    everything = {name for name in everything if not name.startswith("opentelemetry-")}
    brought = names(closure(requirements(wheel, frozenset([extra] if extra else []))))
    own = named(extra) if extra else set()
    assert own <= brought
    assert brought & everything == own & everything


@pytest.mark.slow
def test_neither_importing_nor_training_imports_an_extra(tmp_path: Path) -> None:
    """Here everything is installed, so that whoever wants to import it can."""
    wanted = [Requirement(name) for extra in USERS for name in named(extra) - TORCH]
    heavy = {module for found in closure(wanted) if names([found]) <= {each.name for each in wanted} for module in modules(found)}
    heavy = {module for module in heavy if module not in ("example", "opentelemetry")} | {"opentelemetry.sdk"}
    assert {"sklearn", "lightning", "transformers", "accelerate", "tensorboard", "wandb", "pynvml"} <= heavy
    # torch imports pynvml where that is installed.
    program = f"import sys, torch\nbare = {{*sys.modules}}\n{TRAINING}\nprint(sorted({heavy!r} & ({{*sys.modules}} - bare)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESMON_AGENT": "off", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["[]"], done.stderr


# What is said of each command where only `pip install resmon` was done: the extra, after `pip install`.
LACKING = {
    "demo": "demo",
    "run train.py": "torch",
    "inspect train:make -i 1,2": "torch",
    "check train:make -i 1,2": "torch",
    "explain capsule.safetensors": "torch",
    "assets made": "assets",
    "export told --to tensorboard": "tensorboard",
    "export told --to wandb": "wandb",
    "agent --otlp http://127.0.0.1:9 --listen 127.0.0.1:0": "otel",
}


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return environment(tmp_path_factory.mktemp("base"), wheel)


@pytest.mark.slow
def test_who_lacks_an_extra_is_told_which_in_one_sentence(base: Environment, tmp_path: Path) -> None:
    folder, attempt = claim(tmp_path / "runs", "told", "launch", 0)
    training = synthetic.Training(synthetic.sites(2), seed=0)
    writer = FlightWriter(folder, synthetic.info(run="told", attempt=attempt), 1 << 30)
    writer.sites(training.sites, training.groups)
    for _ in range(3):
        writer.step(training.step())
    writer.end(RunEnd("finished", training.now, 2))
    (tmp_path / "train.py").write_text("def make():\n    raise AssertionError\n")
    (tmp_path / "capsule.safetensors").write_bytes(b"")
    for words, extra in LACKING.items():
        done = base.run("resmon", *words.split(), cwd=tmp_path, RESMON_RUNTIME_DIR=str(tmp_path / "runtime"))
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        *logged, last = done.stderr.splitlines()
        assert last.startswith("resmon: ") and f"pip install 'resmon[{extra}]'" in last, (words, done.stderr)
        assert len(logged) <= words.startswith("agent"), (words, logged)  # which says that it has left
    for module in ("accelerate", "lightning", "transformers"):
        done = base.run("python", "-c", f"import resmon.integrations.{module}", cwd=tmp_path)
        assert "pip install 'resmon[torch]'" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_everything_else_is_imported_with_what_is_declared(base: Environment, tmp_path: Path) -> None:
    """Every module of the installed package that is in no part which an extra is for."""
    done = base.run("python", "-c", IMPORTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lacking = dict(line.split(" ", 1) for line in done.stdout.splitlines()[1:])
    assert int(done.stdout.splitlines()[0]) > 150
    missing = {module: re.findall(r"No module named '(\w+)|resmon\[(\w+)\]", said) for module, said in lacking.items()}
    assert all(len(found) == 1 for found in missing.values()), lacking
    assert {module: "".join(found[0]) for module, found in missing.items()} == {
        "resmon.agent.push": "requests",  # what OpenTelemetry's exporter is built on
        "resmon.assets.dashboards": "grafana_foundation_sdk",
        "resmon.capture": "torch",
        "resmon.formats.tensorboard": "tensorboard",
        "resmon.formats.wandb": "wandb",
        "resmon.exporters.events": "opentelemetry",
        "resmon.exporters.opentelemetry": "opentelemetry",
        "resmon.integrations": "torch",
        "resmon.monitor.watch": "torch",
    }


IMPORTS = """
import importlib, pkgutil, resmon
count, lacking = 0, {}
for module in pkgutil.walk_packages(resmon.__path__, "resmon.", onerror=lambda name: None):
    if not module.name.endswith("__main__") and ".examples" not in module.name:
        try:
            importlib.import_module(module.name)
            count += 1
        except (ImportError, resmon.ConfigurationError) as error:
            lacking[module.name] = str(error)
print(count)
for name, said in lacking.items():
    print(name, said)
"""
