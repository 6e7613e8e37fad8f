"""One rank of a pipeline: `python -m tests.capture.staged FOLDER SCHEDULE...`, each schedule once bare and once watched.

`<schedule>-<rank>.json` in FOLDER holds, of both, a digest of the weights that it ended with and the collectives that were issued.
`truth` is float64, one process, the whole batch, and knows nothing of pipelines.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)
from torch.profiler import ProfilerActivity, profile

import resmon
from tests.capture.sharded import digest
from tests.capture.stack import HIDDEN, WIDTH, Block

BLOCKS, BATCH, MICRO_BATCHES, STEPS, RATE = 4, 8, 4, 3, 0.1
BRANCHES = {"attn": ("ln_1", "attn"), "down": ("ln_2", "up", "down")}
SINGLE = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
SEVERAL = {"interleaved": ScheduleInterleaved1F1B, "zero-bubble": ScheduleZBVZeroBubble}  # two stages a rank
# torch 2.6 adds up the gradients of the micro-batches, a newer one takes their mean.
SHARES = 1 if "scale_grads" in inspect.signature(ScheduleGPipe).parameters else MICRO_BATCHES


class Stage(nn.Module):
    """Some of the blocks, under the names that they have in the whole."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(1)
        blocks = [Block(WIDTH, HIDDEN) for _ in range(BLOCKS)]
        self.h = nn.ModuleDict({str(i): blocks[i] for i in numbers})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.h.values():
            x = block(x)
        return x


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        yield torch.randn(BATCH, WIDTH, generator=generator), torch.randn(BATCH, WIDTH, generator=generator)


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def share_of(output: Tensor, target: Tensor) -> Tensor:
    """The loss of a micro-batch, as the schedule is to be given it."""
    return loss_of(output, target) / SHARES


def truth() -> list[dict[str, float]]:
    """Of each step `<site> <value>`, and `total`."""
    model = Stage(tuple(range(BLOCKS))).double()
    steps = []
    for x, target in batches():
        for block in model.h.values():
            block.sums = []
        model.zero_grad()
        loss_of(model(x.double()), target.double()).backward()
        step = {"total": norm(model)}
        for i, block in model.h.items():
            for (name, modules), (skip, branch, total) in zip(BRANCHES.items(), block.sums, strict=True):
                site = f"h.{i}.{name}"
                step[f"{site} skip_rms"], step[f"{site} branch_rms"] = rms(skip), rms(branch)
                step[f"{site} gradient_norm"] = norm(*(block.get_submodule(module) for module in modules))
                step[f"{site} output_gradient_norm"] = float(total.grad.square().sum()) ** 0.5
        steps.append(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
    return steps


def norm(*modules: nn.Module) -> float:
    return sum(float(p.grad.square().sum()) for module in modules for p in module.parameters() if p.grad is not None) ** 0.5


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean()) ** 0.5


def train(name: str, folder: Path | None) -> dict[str, object]:
    rank, world = dist.get_rank(), dist.get_world_size()
    places = (rank,) if name in SINGLE else (rank, rank + world) if name == "interleaved" else (rank, 2 * world - 1 - rank)
    stages_in_all = world * len(places)
    width = BLOCKS // stages_in_all
    models = [Stage(tuple(range(place * width, (place + 1) * width))) for place in places]
    stages = [PipelineStage(m, i, stages_in_all, torch.device("cpu")) for m, i in zip(models, places, strict=True)]
    schedule = (
        SINGLE[name](stages[0], MICRO_BATCHES, loss_fn=share_of)
        if name in SINGLE
        else SEVERAL[name](stages, MICRO_BATCHES, loss_fn=share_of)
    )
    optimizer = torch.optim.SGD([p for model in models for p in model.parameters()], lr=RATE)
    watched = models[0] if name in SINGLE else {f"stage{i}": model for i, model in zip(places, models, strict=True)}
    monitor = None
    if folder is not None:
        monitor = resmon.watch(watched, optimizer, run=name, directory=folder, other_ranks="own")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for x, target in batches():
            optimizer.zero_grad()
            first, last = 0 in places, stages_in_all - 1 in places
            schedule.step(*((x,) if first else ()), **({"target": target} if last else {}))
            optimizer.step()
    if monitor is not None:
        monitor.close()
    issued = Counter(event.name for event in profiler.events() if event.name.startswith(("gloo:", "c10d::", "_c10d_")))
    return {"weights": [digest(model) for model in models], "collectives": issued}


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in names:
        said = {"bare": train(name, None), "watched": train(name, Path(folder))}
        (Path(folder) / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(said))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
