"""What the training process knows of itself: its place among the ranks, its seed, its versions."""

from __future__ import annotations

import os

import torch
import torch.distributed


def rank_and_world() -> tuple[int, int]:
    """This rank and how many there are: from torch.distributed where it is initialised, else from the launcher's environment."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if os.environ.get(rank, "").isdecimal() and os.environ.get(world, "").isdecimal():
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def torch_version() -> str:
    return torch.__version__


def seed() -> int:
    """The seed that torch's default generator was last given, or chose; reading it changes nothing."""
    return torch.initial_seed()
