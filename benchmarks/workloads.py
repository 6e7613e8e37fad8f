"""The trainings that are measured: a model, its optimizer, its data and its loss.

`make` gives the same training every time, so that two calls are twins that start from the same weights, on the device that torch
makes tensors on at that time. The data are drawn once: what they say does not matter here, how long a step takes does.
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

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


@dataclass(frozen=True, slots=True)
class Workload:
    """`pairs` are measured with resmon and without; half as many with the others, whose cost is no matter of a few percent.

    All modules run in every pass, so that resmon traces only the first one. Any workload can be measured on any device that holds
    it; `devices` are those whose published table it stands in.
    """

    title: str
    make: Callable[[], Training]
    pairs: int
    target: float | None  # largest ratio of step times, with resmon / without, that the project allows itself
    beside: tuple[str, ...] = ()  # the observers that are measured besides resmon
    devices: tuple[str, ...] = ("cpu",)


def gpt2(layers: int = 6) -> Training:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=384, n_head=6, vocab_size=50257, use_cache=False))
    texts = [torch.randint(50257, (8, 128)) for _ in range(BATCHES)]
    batches = [({"input_ids": text, "labels": text}, text) for text in texts]
    return Training(model, AdamW(model.parameters(), lr=1e-4), batches, lambda output, _: output.loss)


def gpt2_xl(
    layers: int = 48, width: int = 1600, heads: int = 25, vocabulary: int = 50257, batch: int = 4, length: int = 1024
) -> Training:
    """GPT-2's shape with torch's own attention kernels and optimizer, as one trains it on a GPU; the head's weights are its own."""
    from examples.char_gpt import GPT

    torch.manual_seed(0)
    model = GPT(vocabulary, length, width, layers, heads)
    texts = [torch.randint(vocabulary, (batch, length + 1)) for _ in range(BATCHES)]
    batches = [({"text": text[:, :-1]}, text[:, 1:].flatten()) for text in texts]
    optimizer = AdamW(model.parameters(), lr=1e-4, fused=True)
    return Training(model, optimizer, batches, lambda logits, following: cross_entropy(logits.flatten(0, 1), following))


def resnet(
    layer_type: str = "basic",
    depths: Sequence[int] = (2, 2, 2, 2),
    stem: int = 32,
    width: int = 32,
    images: Sequence[int] = (64, 3, 64, 64),
    classes: int = 10,
) -> Training:
    """`width` is what the first stage puts out; each further stage doubles it."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    widths = [width << stage for stage in range(len(depths))]
    config = ResNetConfig(layer_type=layer_type, depths=list(depths), embedding_size=stem, hidden_sizes=widths)
    config.num_labels = classes
    model = ResNetForImageClassification(config)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [({"pixel_values": torch.randn(*images)}, torch.randint(classes, (images[0],))) for _ in range(BATCHES)]
    return Training(model, optimizer, batches, lambda output, labels: cross_entropy(output.logits, labels))


def compiled(make: Callable[[], Training]) -> Training:
    training = make()
    return replace(training, model=torch.compile(training.model))


def half(make: Callable[[], Training]) -> Training:
    training = make()
    return replace(training, forward=partial(torch.autocast, training.device.type, torch.bfloat16))


def channels_last(make: Callable[[], Training]) -> Training:
    training = make()
    training.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs do not know it
    batches = [
        ({name: images.to(memory_format=torch.channels_last) for name, images in arguments.items()}, labels)
        for arguments, labels in training.batches
    ]
    return replace(training, batches=batches)


class StochasticDepth(nn.Module):
    """Drops the branch of a sample with the given probability."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.keep = 1 - probability

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(self.keep) / self.keep


def dropping() -> Training:
    training = resnet()
    for module in list(training.model.modules()):
        if type(module).__name__ == "ResNetBasicLayer":
            module.layer.append(StochasticDepth(0.2))  # type: ignore[operator,union-attr] # torch's stubs take it for a tensor
    return training


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
_GPT2_XL = "GPT-2-XL's shape, batch 4x1024, autocast to bfloat16"
_RESNET_50 = "ResNet-50, batch 128x3x224x224, channels last, autocast to bfloat16"
_OTHERS = ("wandb", "tensorboard", "hooks", "nothing")
_OTHERS_GPU = ("wandb", "nothing")  # histograms of so many values on the host would take minutes a step
_EVERYWHERE = ("cpu", "cuda")

_resnet_50 = partial(
    channels_last, partial(resnet, "bottleneck", (3, 4, 6, 3), stem=64, width=256, images=(128, 3, 224, 224), classes=1000)
)

# In the order of the table; on a GPU what takes long to compile comes last, should the time there be short.
WORKLOADS = {
    "gpt2": Workload(_GPT2, gpt2, pairs=40, target=1.01, beside=_OTHERS),
    "resnet": Workload(_RESNET, resnet, pairs=400, target=1.02, beside=_OTHERS),
    "digits": Workload("the network of `make demo`, batch 64x1x8x8", digits, pairs=400, target=None, beside=_OTHERS),
    "gpt2-12": Workload("GPT-2, 12 layers, width 384, batch 8x128", partial(gpt2, 12), pairs=30, target=1.01),
    "resnet-50": Workload(
        "ResNet bottleneck [3,4,6,3], width 32, batch 64x3x64x64",
        partial(resnet, "bottleneck", (3, 4, 6, 3)),
        pairs=60,
        target=1.02,
    ),
    "resnet-dropping": Workload(f"{_RESNET}, stochastic depth of samples", dropping, pairs=60, target=1.02),
    "gpt2-compiled": Workload(f"{_GPT2}, compiled", partial(compiled, gpt2), pairs=40, target=1.01),
    "resnet-compiled": Workload(f"{_RESNET}, compiled", partial(compiled, resnet), pairs=100, target=1.02),
    "gpt2-bf16": Workload(f"{_GPT2}, autocast to bfloat16", partial(half, gpt2), pairs=20, target=1.01),
    "resnet-bf16": Workload(f"{_RESNET}, autocast to bfloat16", partial(half, resnet), pairs=40, target=1.02),
    "gpt2-xl": Workload(_GPT2_XL, partial(half, gpt2_xl), pairs=40, target=1.01, beside=_OTHERS_GPU, devices=("cuda",)),
    "resnet-50-224": Workload(_RESNET_50, partial(half, _resnet_50), pairs=100, target=1.02, beside=_OTHERS_GPU, devices=("cuda",)),
    "blocks-100": Workload(
        "100 blocks x + linear(norm(x)), batch 64x64", partial(blocks, 100), pairs=200, target=None, devices=_EVERYWHERE
    ),
    "blocks-200": Workload("200 such blocks", partial(blocks, 200), pairs=100, target=None, devices=_EVERYWHERE),
    "blocks-300": Workload("300 such blocks", partial(blocks, 300), pairs=100, target=None, devices=_EVERYWHERE),
    "resnet-50-224-compiled": Workload(
        f"{_RESNET_50}, compiled", partial(half, partial(compiled, _resnet_50)), pairs=100, target=1.02, devices=("cuda",)
    ),
    "gpt2-xl-compiled": Workload(
        f"{_GPT2_XL}, compiled", partial(half, partial(compiled, gpt2_xl)), pairs=40, target=1.01, devices=("cuda",)
    ),
}
