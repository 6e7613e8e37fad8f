"""Small models that keep their own adds' operands, so that a test need not trust the code under test to find them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Operands = list[tuple[Tensor, Tensor]]  # (skip, branch), detached copies taken at the add


class Kept(nn.Module):
    """A block that keeps (skip, branch) of every add in `kept`."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Operands = []

    def keep(self, skip: Tensor, branch: Tensor) -> None:
        self.kept.append((skip.detach().clone(), branch.detach().clone()))


class PreActivation(Kept):
    def __init__(self, channels: int, out: int | None = None, stride: int = 1) -> None:
        super().__init__()
        out = out or channels
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.projection = nn.Conv2d(channels, out, 1, stride, bias=False) if out != channels or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        skip = x if self.projection is None else self.projection(h)
        branch = self.conv2(F.relu(self.norm2(self.conv1(h))))
        self.keep(skip, branch)
        return branch + skip


class InPlace(Kept):
    """As torchvision writes it: `out += identity`, then ReLU in place on the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv1(x))
        self.keep(x, out)
        out += x
        return self.relu(out)


class FunctionalDropout(Kept):
    """The branch passes a functional dropout, so no module's output is the operand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.dropout(self.fc2(F.gelu(self.fc1(self.norm(x)), approximate="tanh")), 0.1, self.training)
        self.keep(x, branch)
        return x + branch


class Alpha(Kept):
    """The add scales its second operand: here the skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.act(self.fc(x))
        self.keep(0.5 * x, branch)
        return torch.add(branch, x, alpha=0.5)


class TwoAdds(Kept):
    """A transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.attn(self.ln_1(x))
        self.keep(x, branch)
        x = x + branch
        branch = self.mlp(self.ln_2(x))
        self.keep(x, branch)
        return x + branch


class EarlyReturn(Kept):
    """Stochastic depth that leaves before the branch; `skipping` says whether it does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.skipping = False

    def forward(self, x: Tensor) -> Tensor:
        if self.skipping:
            return x
        branch = self.fc(x)
        self.keep(x, branch)
        return x + branch


class Flat(nn.Module):
    """Images to vectors between convolutional and linear blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def mixed() -> nn.Sequential:
    """All kinds of blocks, one after the other; takes images [N, 3, 8, 8]."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        PreActivation(8),
        PreActivation(8, 16, 2),
        InPlace(16),
        Flat(),
        TwoAdds(16),
        FunctionalDropout(16),
        Alpha(16),
        EarlyReturn(16),
        nn.Linear(16, 4),
    )


def kept(model: nn.Module) -> Operands:
    """What the blocks of `model` have kept, in order of execution, and forget it."""
    operands = []
    for module in model.modules():
        if isinstance(module, Kept):
            operands += module.kept
            module.kept = []
    return operands


def images(n: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
