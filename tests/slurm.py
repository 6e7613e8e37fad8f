"""A Slurm cluster of one node, this machine: the real controller and daemon on free loopback ports, without accounts or cgroups."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.programs import program
from tests.waiting import wait_for

# cred_expire: a job that is requeued waits for twice as long as a credential lives, two minutes each unless told otherwise.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/daemon.pid
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """Where its configuration is, and what its commands find in their environment."""

    environment: Mapping[str, str]

    def __call__(self, *words: str, **options: object) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(words, env=dict(self.environment), capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip()


@contextmanager
def cluster(folder: Path, **more: str) -> Iterator[Cluster]:
    """With a cluster whose jobs have these variables too."""
    programs = [program(name) for name in ("slurmctld", "slurmd", "sbatch", "srun", "scontrol")]
    if os.getuid() != 0:
        pytest.skip("Slurm's daemon starts jobs as root only")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    file = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    file.write_text(CONFIGURATION.format(host=host, folder=folder, controller=free_port(), daemon=free_port()))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "RESMON_", "CI"))}
    made = Cluster(kept | {"SLURM_CONF": str(file)} | more)
    daemons = []
    try:
        for daemon in programs[:2]:
            log = (folder / f"{Path(daemon).name}.log").open("w")
            daemons.append(subprocess.Popen([daemon, "-D"], env=dict(made.environment), stdout=log, stderr=log))

        def said() -> str:
            return "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))

        wait_for(lambda: _idle(made) or any(each.poll() is not None for each in daemons), said=said)
        if any(each.poll() is not None for each in daemons):
            pytest.skip(f"Slurm does not run on this machine: {said()}")
        yield made
    finally:
        if len(daemons) == 2:
            subprocess.run(["scancel", "--state=RUNNING"], env=dict(made.environment), check=False, timeout=60)
        for each in reversed(daemons):
            each.terminate()
            each.wait(60)


def _idle(made: Cluster) -> bool:
    found = subprocess.run(["sinfo", "-h", "-o", "%T"], env=dict(made.environment), capture_output=True, text=True, check=False)
    return found.stdout.strip() == "idle"
