"""The trainings that are measured: a model, its optimizer, its data and its loss.

`make` gives the same training every time, so that two calls are twins that start from the same weights. The data are drawn once:
what they say does not matter here, how long a step takes does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer

Batch = tuple[dict[str, Any], Tensor]  # the arguments of the model, and what it should have said
BATCHES = 4


@dataclass(frozen=True, slots=True)
class Training:
    model: nn.Module
    optimizer: Optimizer
    batches: Sequence[Batch]
    loss: Callable[[Any, Tensor], Tensor]  # of the model's output and what it should have been
    forward: Callable[[], AbstractContextManager[Any]] = nullcontext  # around the forward pass


@dataclass(frozen=True, slots=True)
class Workload:
    """`pairs` are measured with resmon and without; half as many with the others, whose cost is no matter of a few percent.

    All modules run in every pass, so that resmon traces only the first one. Where `alone`, only resmon is measured.
    """

    title: str
    make: Callable[[], Training]
    pairs: int
    target: float | None  # largest ratio of step times, with resmon / without, that the project allows itself
    alone: bool = True


def gpt2(layers: int = 6) -> Training:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=384, n_head=6, vocab_size=50257, use_cache=False))
    texts = [torch.randint(50257, (8, 128)) for _ in range(BATCHES)]
    batches = [({"input_ids": text, "labels": text}, text) for text in texts]
    return Training(model, AdamW(model.parameters(), lr=1e-4), batches, lambda output, _: output.loss)


def resnet(layer_type: str = "basic", depths: Sequence[int] = (2, 2, 2, 2)) -> Training:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(layer_type=layer_type, depths=list(depths), embedding_size=32, hidden_sizes=[32, 64, 128, 256])
    config.num_labels = 10
    model = ResNetForImageClassification(config)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [({"pixel_values": torch.randn(64, 3, 64, 64)}, torch.randint(10, (64,))) for _ in range(BATCHES)]
    return Training(model, optimizer, batches, lambda output, labels: cross_entropy(output.logits, labels))


def compiled(make: Callable[[], Training]) -> Training:
    training = make()
    return replace(training, model=torch.compile(training.model))


def half(make: Callable[[], Training]) -> Training:
    return replace(make(), forward=partial(torch.autocast, "cpu", torch.bfloat16))


class Block(nn.Module):
    """As small as a block can be, so that its own time hides nothing of what watching it takes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x))


def blocks(count: int) -> Training:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(64) for _ in range(count)))
    batches = [({"input": torch.randn(64, 64)}, torch.randn(64, 64)) for _ in range(BATCHES)]
    return Training(model, SGD(model.parameters(), lr=1e-4), batches, nn.functional.mse_loss)


def digits() -> Training:
    from sklearn.datasets import load_digits

    from examples.digits import ResidualNetwork

    torch.manual_seed(0)
    model = ResidualNetwork()
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(data.target)
    batches = [({"images": images[i : i + 64]}, labels[i : i + 64]) for i in range(0, 64 * BATCHES, 64)]
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Training(model, optimizer, batches, cross_entropy)


_GPT2 = "GPT-2, 6 layers, width 384, batch 8x128"
_RESNET = "ResNet basic [2,2,2,2], width 32, batch 64x3x64x64"

WORKLOADS = {
    "gpt2": Workload(_GPT2, gpt2, pairs=40, target=1.01, alone=False),
    "resnet": Workload(_RESNET, resnet, pairs=100, target=1.02, alone=False),
    "digits": Workload("the network of `make demo`, batch 64x1x8x8", digits, pairs=400, target=None, alone=False),
    "gpt2-12": Workload("GPT-2, 12 layers, width 384, batch 8x128", partial(gpt2, 12), pairs=30, target=1.01),
    "resnet-50": Workload(
        "ResNet bottleneck [3,4,6,3], width 32, batch 64x3x64x64",
        partial(resnet, "bottleneck", (3, 4, 6, 3)),
        pairs=60,
        target=1.02,
    ),
    "gpt2-compiled": Workload(f"{_GPT2}, compiled", partial(compiled, gpt2), pairs=40, target=1.01),
    "resnet-compiled": Workload(f"{_RESNET}, compiled", partial(compiled, resnet), pairs=100, target=1.02),
    "gpt2-bf16": Workload(f"{_GPT2}, autocast to bfloat16", partial(half, gpt2), pairs=20, target=1.01),
    "resnet-bf16": Workload(f"{_RESNET}, autocast to bfloat16", partial(half, resnet), pairs=40, target=1.02),
    "blocks-100": Workload("100 blocks x + linear(norm(x)), batch 64x64", partial(blocks, 100), pairs=200, target=None),
    "blocks-200": Workload("200 such blocks", partial(blocks, 200), pairs=100, target=None),
    "blocks-300": Workload("300 such blocks", partial(blocks, 300), pairs=100, target=None),
}
