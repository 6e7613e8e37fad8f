"""The trainings that are measured: a model, its optimizer, its data and its loss.

`make` gives the same training every time, so that two calls are twins that start from the same weights. The data are drawn once:
what they say does not matter here, how long a step takes does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Workload:
    """`pairs` are measured with resmon and without; half as many with the others, whose cost is no matter of a few percent.

    All modules run in every pass, so that resmon traces only the first one.
    """

    title: str
    make: Callable[[], Training]
    pairs: int
    target: float | None  # largest ratio of step times, with resmon / without, that the project allows itself


def gpt2() -> Training:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=384, n_head=6, vocab_size=50257, use_cache=False))
    texts = [torch.randint(50257, (8, 128)) for _ in range(BATCHES)]
    batches = [({"input_ids": text, "labels": text}, text) for text in texts]
    return Training(model, AdamW(model.parameters(), lr=1e-4), batches, lambda output, _: output.loss)


def resnet() -> Training:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], embedding_size=32, hidden_sizes=[32, 64, 128, 256])
    config.num_labels = 10
    model = ResNetForImageClassification(config)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [({"pixel_values": torch.randn(64, 3, 64, 64)}, torch.randint(10, (64,))) for _ in range(BATCHES)]
    return Training(model, optimizer, batches, lambda output, labels: cross_entropy(output.logits, labels))


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


WORKLOADS = {
    "gpt2": Workload("GPT-2, 6 layers, width 384, batch 8x128", gpt2, pairs=40, target=1.02),
    "resnet": Workload("ResNet basic [2,2,2,2], width 32, batch 64x3x64x64", resnet, pairs=100, target=1.03),
    "digits": Workload("the network of `make demo`, batch 64x1x8x8", digits, pairs=400, target=None),
}
