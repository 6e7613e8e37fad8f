"""docs/slurm.md: its job script and its training run under the real Slurm, are requeued there, and go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import resmon
from tests.ports import free_port
from tests.programs import program
from tests.slurm import cluster
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
(JOB,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
(TRAINING,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(COPYING,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def test_the_scripts_are_right() -> None:
    for script in (JOB, f"#!/bin/sh\n{COPYING}"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    checked = subprocess.run([program("shellcheck"), "-"], input=JOB, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_every_setting_of_the_script_is_explained_and_is_one() -> None:
    rows = re.findall(r"^\| (.*?) \| ", PAGE, re.MULTILINE)
    explained = " ".join(rows)
    for name in re.findall(r"export (\w+)=", JOB):
        assert name in explained
    for option in re.findall(r"resmon agent (.*?) &", JOB)[0].split():
        assert not option.startswith("--") or option in explained
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert yaml.safe_load(config)["scrape_configs"][0]["job_name"] == "resmon"


def commands(folder: Path) -> Path:
    """A folder with `resmon` and `torchrun`, as an installation has them."""
    folder.mkdir()
    for name, module in (("resmon", "resmon"), ("torchrun", "torch.distributed.run"), ("python", "")):
        words = f"{sys.executable} -m {module}" if module else sys.executable
        (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_a_job_that_is_requeued_goes_on_as_the_next_attempt(tmp_path: Path) -> None:
    job = JOB.replace("9699", str(free_port())).replace("29500", str(free_port())).replace("--grace 25", "--grace 2")
    assert job.count("--grace 2 ") == 1
    (tmp_path / "job.sh").write_text(job)
    (tmp_path / "train.py").write_text(TRAINING)
    path = f"{commands(tmp_path / 'bin')}:{os.environ['PATH']}"
    more = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "STEPS": "100000000"}
    with cluster(tmp_path / "slurm", **more) as slurm:
        number = slurm("sbatch", "--parsable", "--output=job.out", "job.sh", cwd=tmp_path)

        def said() -> str:
            return (tmp_path / "job.out").read_text()

        run = tmp_path / "runs" / f"digits-{number}"

        def begun(attempt: int) -> bool:
            try:
                flight = resmon.load(run, attempt=attempt)
            except resmon.FlightError:
                return False
            return flight.info["ranks"] == (0, 1) and len(flight.steps()) > 0

        wait_for(lambda: begun(1) and len(resmon.load(run).checkpoints()) > 0, 120, said)
        slurm("scontrol", "requeue", number)
        wait_for(lambda: resmon.load(run, attempt=1).outcome == "interrupted", 120, said)
        wait_for(lambda: begun(2), 240, said)
        slurm("scancel", number)
        wait_for(lambda: not slurm("squeue", "-h"), 120, said)
    first, second = (resmon.load(run, attempt=attempt) for attempt in (1, 2))
    assert {end.reason for end in first.ends.values()} == {"SIGTERM"}
    named = max(incident.checkpoint_step for incident in first.incidents().itertuples())
    start = second.info["start_step"]
    assert start == second.steps()["step"].tolist()[0]
    # The signal may come between a checkpoint's writing and its naming.
    assert start - 1 in (named, named + 100)
    assert second.outcome == "interrupted"
    assert "the agent has left" in said()
    assert f"run 'digits-{number}', attempt 2, rank 1: interrupted" in said()


@pytest.mark.slow
def test_a_training_in_the_batch_script_itself_is_no_rank(tmp_path: Path) -> None:
    """Slurm gives the script the place of a first task of several; without srun nothing is distributed."""
    training = re.sub(r"^(dist\.|import torch.distributed).*\n", "", TRAINING, flags=re.MULTILINE)
    training = training.replace("model = DistributedDataParallel(model)\n", "").replace("model.module.", "model.")
    (tmp_path / "train.py").write_text(training.replace(" and dist.get_rank() == 0", ""))
    (tmp_path / "job.sh").write_text("#!/bin/bash\n#SBATCH --ntasks=2\npython train.py\nsrun --ntasks=1 python train.py\n")
    path = f"{commands(tmp_path / 'bin')}:{os.environ['PATH']}"
    settings = {"RESMON_RUN": "alone", "RESMON_DIRECTORY": str(tmp_path / "runs"), "RESMON_AGENT": "off", "STEPS": "5"}
    with cluster(tmp_path / "slurm", PATH=path, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", **settings) as slurm:
        slurm("sbatch", "--wait", "--output=job.out", "job.sh", cwd=tmp_path)
    for attempt in (1, 2):
        flight = resmon.load(tmp_path / "runs" / "alone", attempt=attempt)
        assert (flight.outcome, flight.info["world_size"], flight.info["ranks"]) == ("finished", 1, (0,))
        assert flight.blocks()["gradient_norm"].notna().all()
