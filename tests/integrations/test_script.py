"""`resmon run`, on scripts that know nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import resmon
from resmon.cli import application
from resmon.errors import ConfigurationError
from tests.integrations.programs import LIGHTNING, PLAIN, SEVERAL_PROCESSES, TRAINER
from tests.ports import free_port


class Folder:
    """Where a script lies and runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def script(self, text: str, name: str = "train.py") -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"RESMON_AGENT": "off", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "resmon", "run", *arguments)

    def flight(self, run: str) -> resmon.Flight:
        return resmon.load(self.folder / "runs" / run)


@pytest.fixture
def here(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def lines(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if not line.startswith("resmon: run ")]


def test_a_script_runs_as_it_would_and_is_recorded(here: Folder) -> None:
    """Its arguments, also those that resmon has too, its name, its weights to the last bit, its exit status."""
    here.script(PLAIN)
    bare = here.python("train.py", "--steps", "3", "--run", "other")
    watched = here.run("--run", "named", "train.py", "--steps", "3", "--run", "other")
    assert watched.stdout == bare.stdout
    assert "other __main__ ['train.py', '--steps', '3', '--run', 'other'] True" in watched.stdout
    assert (watched.returncode, lines(watched.stderr)) == (bare.returncode, lines(bare.stderr)) == (3, [])
    steps, blocks = here.flight("named").steps(), here.flight("named").blocks()
    said = [float(line.split()[2]) for line in bare.stdout.splitlines() if line.startswith("loss")]
    assert steps["loss"].tolist() == pytest.approx(said, rel=1e-6)
    assert sorted(set(blocks["block"])) == ["1", "2"]
    assert blocks["gradient_norm"].notna().all()


def test_an_exception_is_told_as_python_tells_it_and_ends_the_run_as_failed(here: Folder) -> None:
    here.script(PLAIN)
    bare = here.python("train.py", "--steps", "9")
    watched = here.run("-r", "fails", "train.py", "--steps", "9")
    assert lines(watched.stderr) == lines(bare.stderr)
    assert watched.stderr.endswith("ValueError: seven\n")
    assert watched.returncode == bare.returncode == 1
    assert here.flight("fails").outcome == "failed"
    (incident,) = here.flight("fails").incidents().itertuples()
    assert "seven" in incident.summary and "train.py" in incident.summary


def test_a_script_that_never_trains_says_so_and_records_nothing(here: Folder) -> None:
    here.script("import torch\nprint(torch.nn.Linear(2, 2)(torch.ones(1, 2)).shape)")
    done = here.run("train.py")
    assert (done.returncode, done.stdout) == (0, "torch.Size([1, 2])\n")
    assert done.stderr == "resmon: nothing was trained, so nothing was recorded: no optimizer was made\n"
    assert not (here.folder / "runs").exists()


@pytest.mark.slow
def test_a_module_in_a_package_runs_by_its_name(here: Folder) -> None:
    here.script("", "package/__init__.py")
    here.script("WIDTH = 8", "package/sizes.py")
    here.script("from . import sizes\nprint(__package__, sizes.WIDTH, __spec__.name)", "package/train.py")
    assert here.run("-m", "package.train").stdout == "package 8 package.train\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.py"], "nowhere.py cannot be read: No such file or directory. Name the script that trains"),
        (["."], "cannot be read: Is a directory"),
        (["-m", "no.such.module"], "there is no module no.such.module"),
        (["-m", "sys"], "there is no module sys that could be run"),
        ([str(Path(__file__).parent.parent.parent / "README.md")], "is no Python"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: list[str], said: str) -> None:
    path, main, argv = list(sys.path), sys.modules["__main__"], list(sys.argv)
    try:
        result = CliRunner().invoke(application(), ["run", *arguments])
        assert isinstance(result.exception, ConfigurationError)
        assert said in str(result.exception)
        assert sys.modules["__main__"] is main
    finally:
        sys.path[:], sys.argv[:] = path, argv


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spawn", "fork", "torchrun"])
def test_several_processes_are_ranks_of_one_run(here: Folder, how: str) -> None:
    here.script(SEVERAL_PROCESSES)
    port = str(free_port())
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"] if how == "torchrun" else []
    done = here.python(*launcher, "-m", "resmon", "run", "-r", how, "train.py", how, port)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (here.folder / "runs").iterdir()] == [how], "workers of data loaders record nothing"
    flight = here.flight(how)
    assert flight.info["ranks"] == (0, 1)
    assert flight.info["world_size"] == 2
    assert flight.steps()["step"].tolist() == list(range(6))
    assert flight.blocks().groupby("block").size().to_dict() == {"1": 6, "2": 6}
    assert flight.steps()["loss"].notna().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "blocks"),
    [(TRAINER, [f"transformer.h.{i}.{part}" for i in range(2) for part in ("attn", "mlp")]), (LIGHTNING, ["1", "2"])],
)
def test_a_script_that_leaves_the_loop_to_a_framework(here: Folder, program: str, blocks: list[str]) -> None:
    here.script(program)
    done = here.run("--run", "run", "train.py")
    assert done.returncode == 0, done.stderr
    flight = here.flight("run")
    assert flight.steps()["step"].tolist() == list(range(6))
    assert sorted(set(flight.blocks()["block"])) == blocks
    assert flight.steps()["loss"].notna().all()
    assert flight.outcome == "finished"
