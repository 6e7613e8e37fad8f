"""One rank that trains on a batch of which rank 1's is NaN at step STEP: `python -m tests.capture.spoilt FOLDER ddp|fsdp`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import resmon
from tests.capture.models import FunctionalDropout

STEP, ROW, STEPS = 5, 2, 8


def main(folder: Path, way: str) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), *(FunctionalDropout(8) for _ in range(3)), nn.Linear(8, 2))
    if way == "fsdp":
        for block in model[1:4]:
            fully_shard(block)
        fully_shard(model)
    called = model if way == "fsdp" else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(called.parameters(), lr=0.01)
    monitor = resmon.watch(called, optimizer, run=way, directory=folder)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(STEPS):
        x = torch.randn(4, 8, generator=generator)
        if step == STEP and dist.get_rank() == 1:
            x[ROW, 3] = float("nan")
        loss = called(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.log(loss=loss)
    monitor.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
