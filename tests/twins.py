"""Models with the same parameters, by name and shape, in another order: pre- and post-activation, pre- and post-norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvolutionalBlock(nn.Module):
    """He et al. (2016) where `post` is false, He et al. (2015) where it is true."""

    def __init__(self, width: int, post: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.post = post

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
            return torch.relu_(x + y)
        return x + self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))


class Convolutional(nn.Module):
    def __init__(self, post: bool = False, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvolutionalBlock(width, post) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y


class AttentionBlock(nn.Module):
    """Vaswani et al. (2017) where `post` is true, GPT-2 where it is false."""

    def __init__(self, width: int, post: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.post = post

    def attend(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attend(x))
            y: Tensor = self.norm2(x + self.mlp(x))
            return y
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, post: bool = False, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.blocks = nn.Sequential(*(AttentionBlock(width, post) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x.flatten(1).unsqueeze(1).repeat(1, 4, 1) * torch.arange(1.0, 5.0).view(1, 4, 1))
        y: Tensor = self.head(self.blocks(tokens).mean(1))
        return y
