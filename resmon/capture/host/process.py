"""What the training process knows of itself: its place among the ranks, the launch that it belongs to, its seed, its versions."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import uuid

import torch
import torch.distributed

# Rank and number of ranks, as launchers put them into the environment, and what else is there then: Slurm gives a batch script, in
# which nothing is distributed yet, the place of a first task too; only tasks that srun starts belong to a numbered step.
_PLACES = (("RANK", "WORLD_SIZE", "RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"))
# What tells one launch from another, where nothing better does: job, restart, and the address where ranks meet.
_LAUNCH = (
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "MASTER_ADDR",
    "MASTER_PORT",
)

_TASKS = re.compile(r"(\d{1,9})(?:\(x(\d{1,9})\))?", re.ASCII)


def is_in_group() -> bool:
    """Whether this process has joined a process group of torch's."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """This rank and how many there are: from torch.distributed where it is initialised, else from the launcher's environment."""
    if is_in_group():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return _from_environment() or (0, 1)


def local_world() -> int | None:
    """How many of the ranks run on this machine; None where the launcher does not say."""
    world = rank_and_world()[1]
    if world == 1:
        return 1
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not local and "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ:
        local = _tasks_here(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""), os.environ.get("SLURM_NODEID", ""))
    return int(local) if local.isdecimal() and 0 < int(local) <= world else None


def knows_its_rank() -> bool:
    """False in a spawned process that nobody told its rank: it may still join a process group."""
    return is_in_group() or _from_environment() is not None or multiprocessing.parent_process() is None


def launch() -> tuple[str, bool]:
    """What the ranks of one launch share and another launch does not, and whether that is sure.

    A single process shares with nobody. Ranks that have joined a process group agree through its store; others have the launcher's
    own words, which the next launch may repeat.
    """
    if rank_and_world()[1] == 1:
        return uuid.uuid4().hex, True
    if (name := agreed("launch", uuid.uuid4().hex)) is not None:
        return name, True
    return ":".join(os.environ.get(name, "") for name in _LAUNCH), False


def agreed(key: str, proposal: str) -> str | None:
    """What the first rank to ask proposed, None where there is no store that all can reach.

    One request to the store that the process group was made with. It is no collective: it waits for no other rank.
    """
    if not is_in_group():
        return None
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        # The store of torchrun's own agent outlives its workers: what they agreed on before a restart is still there.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
        answer: bytes = store.compare_set(f"resmon/{key}/{restart}", "", proposal)
    except Exception:  # a store of another kind, or one that is gone: the launcher's words must do
        return None
    return answer.decode()


def short(launch: str) -> str:
    """A name for a launch that has no better one, the same on all its ranks."""
    return f"launch-{hashlib.sha256(launch.encode()).hexdigest()[:8]}"


def _tasks_here(tasks: str, node: str) -> str:
    """Of a list such as Slurm's `4(x2),1`, by nodes, the entry of one of them; empty where there is none."""
    for entry in tasks.split(","):
        found = _TASKS.fullmatch(entry)
        if found is None or not node.isdecimal():
            return ""
        nodes = int(found[2] or 1)
        if int(node) < nodes:
            return found[1]
        node = str(int(node) - nodes)
    return ""


def _from_environment() -> tuple[int, int] | None:
    for rank, world, mark in _PLACES:
        if mark in os.environ and os.environ.get(rank, "").isdecimal() and os.environ.get(world, "").isdecimal():
            return int(os.environ[rank]), int(os.environ[world])
    return None


def torch_version() -> str:
    return torch.__version__


def seed() -> int:
    """The seed that torch's default generator was last given, or chose; reading it changes nothing."""
    return torch.initial_seed()
