"""A small pre-activation residual network learns scikit-learn's digits, watched by resmon.

The network is He et al. (2016), "Identity mappings in deep residual networks", in small: three stages of blocks, the first block
of a stage with a projection. The line that resmon needs is marked. Run it as it is, or `resmon demo`, which runs it twice:

    python examples/digits.py --seconds 60
    python examples/digits.py --learning-rate 100 --steps 200
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import resmon


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = stride == 1 and channels_in == channels
        self.projection = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(torch.relu(self.norm1(x)))
        branch = self.conv2(torch.relu(self.norm2(branch)))
        return self.projection(x) + branch


class ResidualNetwork(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), depth: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.stages = nn.ModuleList()
        channels_in = widths[0]
        for number, width in enumerate(widths):
            first = Block(channels_in, width, stride=1 if number == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Block(width, width) for _ in range(depth - 1))))
            channels_in = width
        self.norm = nn.BatchNorm2d(channels_in)
        self.head = nn.Linear(channels_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after so many seconds (60)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="stop after so many steps, if that is earlier")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--run", default="digits", help="name of the run, its folder in runs/ (digits)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # so small a network gains little from threads, and stands still where they have to share a core
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    training, held_out = order[:1437], order[1437:]

    model = ResidualNetwork()
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.learning_rate, momentum=0.9, weight_decay=5e-4)
    monitor = resmon.watch(model, optimizer, run=arguments.run)  # the one line

    step, end = 0, time.monotonic() + arguments.seconds
    while step < arguments.steps and time.monotonic() < end:
        for batch in training[torch.randperm(len(training))].split(arguments.batch_size):
            loss = cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)  # and what else is worth seeing
            step += 1
            if step == arguments.steps or time.monotonic() >= end:
                break
        model.eval()
        with torch.no_grad():
            accuracy = (model(images[held_out]).argmax(1) == labels[held_out]).float().mean()
        model.train()
        monitor.log(accuracy=accuracy)
    monitor.close()
    print(f"{step} steps, loss {loss:.4f}, accuracy on held-out images {accuracy:.3f}")


if __name__ == "__main__":
    main()
