"""Trainings to look at: `python -m tests.assets.dashboards.trainings DIRECTORY`, with the agent's settings in the environment.

One process imports torch, and is forked for each rank of each training that a line of its input asks for: a kind, a name and how
many ranks, as JSON. Each logs what there is to log, at about 20 steps a second, until its fault comes after some seconds, or the
process is told to end.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # which the first optimizer would import, in each child anew
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import resmon
from tests.failing import CLASSES, WIDTH, Block, Training
from tests.ports import free_port

PACE = 0.04
SOON = 10.0  # seconds until a fault comes
AFTER = 7.0  # seconds that a training with a fault goes on


class Watched(Training):
    """With validation, a score, an epoch, a target, two parameter groups, clipping and checkpoints."""

    def __init__(self, run: str, folder: str) -> None:
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Block() for _ in range(11)), nn.Linear(WIDTH, CLASSES))
        self.centres = 0.6 * torch.randn(CLASSES, WIDTH)
        kinds = [[each for each in self.model.parameters() if (each.ndim > 1) == is_matrix] for is_matrix in (True, False)]
        self.optimizer = torch.optim.AdamW([{"params": kinds[0]}, {"params": kinds[1], "weight_decay": 0.0}], 3e-3)
        self.monitor = resmon.watch(self.model, self.optimizer, run=run, directory=folder, targets=("accuracy >= 0.4",))
        self.network = DistributedDataParallel(self.model) if dist.is_initialized() else self.model
        self.saved = Path(folder) / f"{os.getpid()}.pt"
        self.steps = 0

    def step(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        outputs = self.network(x)
        loss = F.cross_entropy(outputs, labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        self.monitor.log(loss=loss, accuracy=(outputs.argmax(1) == labels).float().mean(), epoch=self.steps // 50)
        if self.steps % 50 == 0:
            with torch.no_grad():
                x, labels = self.batch(64)
                self.monitor.log(val_loss=F.cross_entropy(self.model(x), labels))
            self.save(self.saved)
        time.sleep(PACE)

    def go_on(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.step(*self.batch())


def healthy(training: Watched) -> None:
    """Until it is ended from outside."""
    training.go_on(3600)


def brief(training: Watched) -> None:
    training.go_on(3)
    training.monitor.close()


def nonfinite(training: Watched) -> None:
    """A logarithm of 0 in one block."""
    training.go_on(SOON)
    training.model[4].floor = 0.0  # type: ignore[index, union-attr]
    training.go_on(AFTER)
    training.monitor.close()


def out_of_memory(training: Watched) -> None:
    training.go_on(SOON)
    used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, ((used << 10) + (128 << 20), resource.RLIM_INFINITY))
    training.step(*training.batch(200_000))


def killed(training: Watched) -> None:
    training.go_on(SOON)
    os.kill(os.getpid(), signal.SIGKILL)


KINDS: dict[str, Callable[[Watched], None]] = {each.__name__: each for each in (healthy, brief, nonfinite, out_of_memory, killed)}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, run, world = json.loads(line)
        port = free_port()
        for rank in range(world):
            if os.fork() == 0:
                if world > 1:
                    together = {
                        "WORLD_SIZE": world,
                        "RANK": rank,
                        "LOCAL_RANK": rank,
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port,
                    }
                    os.environ |= {name: str(value) for name, value in together.items()}
                    dist.init_process_group("gloo")
                torch.manual_seed(len(run))
                KINDS[kind](Watched(run, folder))
                return


if __name__ == "__main__":
    main(sys.argv[1])
