"""Programs that tests run beside Python. Where one is missing the test skips; on CI it fails."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "alertmanager": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "g++": "g++",
    "openssl": "openssl",
    "chromium": "chromium",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "shellcheck": "shellcheck",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "srun": "slurm-client",
    "scontrol": "slurm-client",
}


def program(name: str) -> str:
    """The path of a program."""
    path = shutil.which(name)
    if path is None:
        assert not os.environ.get("CI"), f"{name} is missing; on CI it must be there (Debian's package {PACKAGES[name]})"
        pytest.skip(f"{name} is not installed (Debian's package {PACKAGES[name]})")
    return path
