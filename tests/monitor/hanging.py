"""One of two ranks that train together, until the second one's data do not come: `python -m tests.monitor.hanging FOLDER`.

They come once FOLDER/go is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import resmon
from tests.capture import stack

HANGS = 6  # batch


class Data(Dataset[Tensor]):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        while index >= HANGS and dist.get_rank() == 1 and not (self.folder / "go").exists():
            time.sleep(0.2)  # where it hangs
        return torch.randn(stack.LENGTH, stack.WIDTH)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(stack.stack())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with resmon.watch(model, optimizer, run="hang", directory=folder, stall_after=float(os.environ["STALL_AFTER"])):
        for x in DataLoader(Data(folder)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
