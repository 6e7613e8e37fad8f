"""A small residual network that learns scikit-learn's digits, recorded as any run is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import resmon


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.relu(self.up(self.norm(x))))
        return y


def train(
    directory: Path,
    *,
    seed: int,
    optimizer: str,
    rate: float,
    steps: int,
    warm_up: int = 0,
    examples: int = 1200,
    validate_every: int = 0,
    rate_at: Mapping[int, float] | None = None,
    decay: float = 0.0,
) -> Path:
    """Train and give the rank's folder. Of the digits `examples` are trained on and the last 400 validate."""
    torch.manual_seed(seed)
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    model = nn.Sequential(nn.Linear(64, 48), Block(48), Block(48), Block(48), nn.Linear(48, 10))
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, rate, momentum=0.9, weight_decay=decay),
        "adam": lambda p: torch.optim.AdamW(p, rate),
    }
    made = kinds[optimizer](model.parameters())
    with resmon.watch(model, made, run="digits", directory=directory, agent="off") as monitor:
        for step in range(steps):
            for group in made.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / warm_up) if warm_up else rate
                for begin, other in (rate_at or {}).items():
                    group["lr"] = other if step >= begin else group["lr"]
            batch = torch.randint(0, examples, (32,))
            loss = F.cross_entropy(model(x[batch]), y[batch])
            made.zero_grad()
            loss.backward()
            made.step()
            monitor.log(loss=loss)
            if validate_every and step % validate_every == validate_every - 1:
                with torch.no_grad():
                    scores = model(x[-400:])
                    monitor.log(
                        val_loss=F.cross_entropy(scores, y[-400:]), val_accuracy=(scores.argmax(1) == y[-400:]).float().mean()
                    )
    return directory / "digits" / "attempt-0001" / "rank-00000"
