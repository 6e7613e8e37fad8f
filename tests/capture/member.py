"""A small run of several ranks, launched in one of several ways: `python -m tests.capture.member FOLDER RUN ORDER LAUNCHER [PORT]`.

ORDER is "init-watch" or "watch-init". LAUNCHER is "environment" (this process is a rank, as torchrun starts it) or "spawn" (this
process spawns two, which know their rank as an argument only). In the environment: LATE, a rank that watches a second after the
others; WATCHES, the only rank that does; DIES, a rank that is killed at step 2 of the first launch; GONE, a rank that is killed
before it watches.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

import resmon
from tests.capture import stack


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(rank: int, world: int, folder: str, run: str, order: str, rendezvous: str) -> None:
    torch.set_num_threads(1)
    told = {"init_method": rendezvous, "rank": rank, "world_size": world} if rendezvous else {}
    model = stack.stack()
    optimizer = torch.optim.SGD(model.parameters(), lr=stack.RATE)
    if order == "init-watch":
        dist.init_process_group("gloo", **told)
    if os.environ.get("GONE") == str(rank):
        kill()
    if os.environ.get("LATE") == str(rank):
        time.sleep(1)
    watches = os.environ.get("WATCHES", str(rank)) == str(rank)
    monitor = resmon.watch(model, optimizer, run=run or None, directory=folder) if watches else None
    if order == "watch-init":
        dist.init_process_group("gloo", **told)
    alone = "GONE" in os.environ
    called = model if alone else DistributedDataParallel(model)
    for i, batch in enumerate(stack.batches(stack.WIDTH)):
        if os.environ.get("DIES") == str(rank) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" and i == 2:
            kill()
        optimizer.zero_grad()
        stack.loss_of(called(batch.chunk(world)[rank])).backward()
        optimizer.step()
    if monitor is not None:
        monitor.close()
    if not alone:
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)  # a process group whose other end was killed may not end by itself


if __name__ == "__main__":
    folder, run, order, launcher, *port = sys.argv[1:]
    if launcher == "spawn":
        where = f"tcp://127.0.0.1:{port[0]}"
        torch.multiprocessing.spawn(main, (2, folder, run, order, where), nprocs=2)
    else:
        main(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), folder, run, order, "")
