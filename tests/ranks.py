"""Processes that are the ranks of one launch, on this machine, over gloo."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import forkserver
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
# What a launcher puts into the environment; a test that runs under one must not hand it on.
_LAUNCHERS = ("TORCHELASTIC", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "SLURM_")


def environment(**more: str) -> dict[str, str]:
    """One thread each, nothing from a launcher around, no agent unless told otherwise."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(_LAUNCHERS)}
    return ours | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RESMON_AGENT": "off"} | more


def run_ranks(world: int, module: str, *arguments: str, timeout: float = 240, **more: str) -> list[str]:
    """Run `python -m module arguments` as `world` ranks, and give what each printed. All must end well and in time."""
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environments = [environment(**place, **more, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(world)]
    return run_all([["-m", module, *arguments]] * world, environments, timeout)


def run_all(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], timeout: float = 120) -> list[str]:
    """Run what follows `python` on each command line beside each other, none longer than `timeout` seconds."""
    with ThreadPoolExecutor(len(commands)) as pool:
        ended = list(pool.map(lambda words, env: forkserver.run(*words, env=env, timeout=timeout), commands, environments))
    for i, process in enumerate(ended):
        assert process.returncode == 0, f"process {i} ended with {process.returncode}:\n{(process.stdout + process.stderr)[-6000:]}"
    return [process.stdout + process.stderr for process in ended]
