"""What faults are put into: small networks, data that can be learnt, and by hand which modules make which residual block.

The blocks are written down here and not asked of resmon, for they are the truth that it is held against. A block's name is made as
records.ResidualSite says. Everything is as small as it can be with all its parts: a step takes some milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

CLASSES, VOCABULARY, LENGTH, ROWS = 10, 32, 8, 8
WIDTH = 16
ADDS = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__"})  # as torch calls a + b and a += b

Arguments = dict[str, Tensor]
Order = Literal["pre", "post"]


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block: its name and the modules that it consists of, each with all that is below it.

    `projections` are layers whose output has to fit the other operand of the add: the last one of the branch, or the skip's own.
    `ends` are the last layers of the branch that have weights: with all of these at zero nothing is left of it, and what multiplies
    their outputs multiplies the branch.
    """

    name: str
    modules: tuple[str, ...]
    projections: tuple[str, ...]
    ends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    title: str
    make: Callable[[], nn.Module]  # in training mode
    data: Callable[[torch.Generator, int], tuple[Arguments, Tensor]]  # so many rows, and what is to be said of them
    blocks: tuple[Block, ...]
    optimizer: Callable[[Iterable[Tensor]], Optimizer]
    shared: Mapping[str, tuple[str, ...]]  # modules that hold the adds of several blocks: these blocks, in order
    reordered: Callable[[int], nn.Module] | None = None  # with the so-manieth block normalising on the other side of its weights

    @property
    def takes_numbers(self) -> bool:
        """Whether its inputs can hold NaN; token ids cannot."""
        arguments, _ = self.data(torch.Generator(), 1)
        return all(each.is_floating_point() for each in arguments.values())

    def block_of(self, module: str, operation: str = "", ordinal: int = 0) -> str | None:
        """The block that an operation in a module belongs to, "" outside of blocks; None where that cannot be said."""
        for block in self.blocks:
            if any(module == path or module.startswith(f"{path}.") for path in block.modules):
                return block.name
        if module in self.shared:
            adds = self.shared[module]
            return adds[ordinal] if operation in ADDS and ordinal < len(adds) else None
        return ""


# -- data ------------------------------------------------------------------------------------------------------------------


def patterns(generator: torch.Generator, rows: int, shape: tuple[int, ...], noise: float) -> tuple[Tensor, Tensor]:
    """Ten patterns under noise."""
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    known = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(0))
    return known[labels] + noise * torch.randn(rows, *shape, generator=generator), labels


def images(name: str, generator: torch.Generator, rows: int, noise: float = 0.5) -> tuple[Arguments, Tensor]:
    found, labels = patterns(generator, rows, (1, 8, 8), noise)
    return {name: found}, labels


def vectors(generator: torch.Generator, rows: int, noise: float = 0.5) -> tuple[Arguments, Tensor]:
    found, labels = patterns(generator, rows, (WIDTH,), noise)
    return {"x": found}, labels


def texts(name: str, generator: torch.Generator, rows: int) -> tuple[Arguments, Tensor]:
    """Each token follows from the one before, but for a tenth of them; what is to be said are the following ones."""
    tokens = torch.randint(3, VOCABULARY, (rows, LENGTH + 1), generator=generator)
    for i in range(LENGTH):
        kept = torch.rand(rows, generator=generator) < 0.1
        tokens[:, i + 1] = torch.where(kept, tokens[:, i + 1], 3 + (5 * tokens[:, i] + 1) % (VOCABULARY - 3))
    return {name: tokens[:, :-1]}, tokens[:, 1:]


def sentences(name: str, generator: torch.Generator, rows: int) -> tuple[Arguments, Tensor]:
    """Whole texts, of which the first token's class is to be said."""
    arguments, _ = texts(name, generator, rows)
    return arguments, arguments[name][:, 0] % CLASSES


def logits_of(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def losses(output: Any, target: Tensor) -> Tensor:
    """Of each row of the batch."""
    logits = logits_of(output)
    each = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    return each.view(target.shape).flatten(1).mean(1) if target.dim() > 1 else each


# -- networks of our own ---------------------------------------------------------------------------------------------------


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class PreActivation(nn.Module):
    """He et al. 2016; in the other order it is their first one, of 2015."""

    def __init__(self, inputs: int, outputs: int, stride: int, order: Order) -> None:
        super().__init__()
        self.order = order
        self.bn1 = nn.BatchNorm2d(inputs if order == "pre" else outputs)
        self.conv1 = convolution(inputs, outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs)
        self.shortcut = convolution(inputs, outputs, 1, stride) if inputs != outputs or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "post":
            out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))
        h = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(h)
        out = self.conv2(F.relu(self.bn2(self.conv1(h))))
        return skip + out


class Basic(nn.Module):
    """As torchvision writes it: an add in place, then one ReLU in place that the whole block shares."""

    def __init__(self, inputs: int, outputs: int, stride: int, order: Order) -> None:
        super().__init__()
        self.order = order
        self.conv1 = convolution(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs if order == "post" else inputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = convolution(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        plain = inputs == outputs and stride == 1
        self.downsample = None if plain else nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity: Tensor = x if self.downsample is None else self.downsample(x)
        if self.order == "pre":
            out: Tensor = self.conv2(self.relu(self.bn2(self.conv1(self.relu(self.bn1(x))))))
            out += identity
            return out
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        y: Tensor = self.relu(out)
        return y


class Dropping(nn.Module):
    """Stochastic depth of samples, at a rate that is a tenth to a fifth, as torchvision's operation has it."""

    def __init__(self, inputs: int, outputs: int, stride: int, order: Order) -> None:
        super().__init__()
        self.order = order
        self.norm = nn.GroupNorm(2, inputs if order == "pre" else outputs)
        self.conv = convolution(inputs, outputs, stride=stride)
        self.out = nn.Conv2d(outputs, outputs, 1)
        plain = inputs == outputs and stride == 1
        self.projection = nn.Identity() if plain else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.out(F.silu(self.conv(self.norm(x) if self.order == "pre" else x)))
        if self.training:
            keep = torch.rand(len(x), 1, 1, 1) < 0.85
            branch = branch * keep / 0.85
        added: Tensor = self.projection(x) + branch
        return added if self.order == "pre" else self.norm(added)


class Images(nn.Module):
    """Three blocks between a bare convolution and a head; the second halves the picture and doubles the channels."""

    def __init__(self, kind: Callable[[int, int, int, Order], nn.Module], orders: Sequence[Order]) -> None:
        super().__init__()
        shapes = ((8, 8, 1), (8, 16, 2), (16, 16, 1))
        self.stem = convolution(1, 8)
        self.blocks = nn.ModuleList(kind(*shape, order) for shape, order in zip(shapes, orders, strict=True))
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(F.relu(self.norm(x)).mean((2, 3)))
        return logits


class Scaled(nn.Module):
    """A residual MLP whose branch ends in zeros and a scale for each channel (Touvron et al. 2021)."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self.order = order
        self.norm = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.1))
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.order == "post" else self.norm(x)
        y: Tensor = x + self.gamma * self.fc2(F.gelu(self.fc1(h)))
        return y if self.order == "pre" else self.norm(y)  # type: ignore[no-any-return] # a module's call is Any


class Stack(nn.Module):
    """Blocks on vectors; where they are made lazily, after the stem."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


class Attention(nn.Module):
    """Causal attention written out, with the mask as literal infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.divisor = (WIDTH // 2) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / self.divisor
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = F.dropout(scores.masked_fill(future, -torch.inf).softmax(-1), 0.1, self.training)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return mixed


class Parallel(nn.Module):
    """Attention and MLP side by side, summed before the one add (Wang and Komatsuzaki 2021, GPT-J)."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self.order = order
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x) if self.order == "pre" else x
        added: Tensor = x + (self.attention(h) + self.mlp(h))
        return added if self.order == "pre" else self.norm(added)


class Serial(nn.Module):
    """The usual pre-norm block, with dropout as a function on both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.attention(self.norm1(x)), 0.1, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), 0.1, self.training)


class Texts(nn.Module):
    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        x = self.tokens(text) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def orders(count: int, usual: Order, other: int = -1) -> list[Order]:
    """The usual order in all blocks but one."""
    swapped: Order = "post" if usual == "pre" else "pre"
    return [swapped if i == other else usual for i in range(count)]


# -- networks of transformers ----------------------------------------------------------------------------------------------

SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def transformer(kind: str, **config: Any) -> nn.Module:
    import transformers

    made = getattr(transformers, kind)
    model: nn.Module = made(made.config_class(**config))
    return model.train()


# -- the table -------------------------------------------------------------------------------------------------------------

momentum = partial(SGD, lr=0.02, momentum=0.9)
adam = partial(AdamW, lr=1e-3)


def own_block(i: int, *projections: str, ends: Sequence[str] = ()) -> Block:
    """The projections end the branch, unless told otherwise."""
    first, last = (tuple(f"blocks.{i}.{name}" for name in names) for names in (projections, ends or projections))
    return Block(f"blocks.{i}", (f"blocks.{i}",), first, last)


def two(inside: str, *parts: tuple[str, tuple[str, ...], tuple[str, ...]]) -> Iterable[Block]:
    """Blocks of a layer: the name, the modules, the projections, all below the layer."""
    for name, modules, projections in parts:
        last = tuple(f"{inside}.{p}" for p in projections)
        yield Block(f"{inside}.{name}", tuple(f"{inside}.{m}" for m in modules), last, last)


def layers(
    inside: str, count: int, *parts: tuple[str, tuple[str, ...], tuple[str, ...]]
) -> tuple[tuple[Block, ...], dict[str, tuple[str, ...]]]:
    """The blocks of all layers, and which of them share a layer's own forward."""
    blocks = tuple(block for i in range(count) for block in two(f"{inside}.{i}", *parts))
    return blocks, {f"{inside}.{i}": tuple(f"{inside}.{i}.{name}" for name, _, _ in parts) for i in range(count)}


_GPT2 = layers("transformer.h", 2, ("attn", ("ln_1", "attn"), ("attn.c_proj",)), ("mlp", ("ln_2", "mlp"), ("mlp.c_proj",)))
_LLAMA = layers(
    "model.layers",
    2,
    ("self_attn", ("input_layernorm", "self_attn"), ("self_attn.o_proj",)),
    ("mlp", ("post_attention_layernorm", "mlp"), ("mlp.down_proj",)),
)
_BERT = layers(
    "bert.encoder.layer",
    2,
    ("attention.output", ("attention.self", "attention.output"), ("attention.output.dense",)),
    ("output", ("intermediate", "output"), ("output.dense",)),
)
_VIT = layers(
    "vit.layers",
    2,
    ("attention", ("layernorm_before", "attention"), ("attention.o_proj",)),
    ("mlp", ("layernorm_after", "mlp"), ("mlp.fc2",)),
)
_SERIAL = layers(
    "blocks",
    2,
    ("attention", ("norm1", "attention"), ("attention.out",)),
    ("mlp", ("norm2", "mlp"), ("mlp.2",)),
)


def resnet_block(stage: int, layer: int, shortcut: bool = False) -> Block:
    path = f"resnet.encoder.stages.{stage}.layers.{layer}"
    return Block(
        path, (path,), (f"{path}.{'shortcut' if shortcut else 'layer.1'}.convolution",), (f"{path}.layer.1.normalization",)
    )


def convnext_block(stage: int, layer: int) -> Block:
    path = f"convnext.encoder.stages.{stage}.layers.{layer}"
    return Block(path, (path,), (f"{path}.pwconv2",), (f"{path}.pwconv2",))


ARCHITECTURES: dict[str, Architecture] = {
    "resnet": Architecture(
        "ResNet, basic blocks (transformers)",
        partial(
            transformer,
            "ResNetForImageClassification",
            num_channels=1,
            layer_type="basic",
            depths=[1, 2],
            embedding_size=8,
            hidden_sizes=[8, 16],
            num_labels=CLASSES,
        ),
        partial(images, "pixel_values"),
        (resnet_block(0, 0), resnet_block(1, 0, shortcut=True), resnet_block(1, 1)),
        momentum,
        {},
    ),
    "gpt2": Architecture(
        "GPT-2 (transformers)",
        partial(
            transformer,
            "GPT2LMHeadModel",
            n_layer=2,
            n_embd=WIDTH,
            n_head=2,
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            use_cache=False,
            attn_implementation="eager",
            **SPECIAL,
        ),
        partial(texts, "input_ids"),
        _GPT2[0],
        adam,
        _GPT2[1],
    ),
    "llama": Architecture(
        "Llama (transformers)",
        partial(transformer, "LlamaForCausalLM", **SMALL, **SPECIAL, vocab_size=VOCABULARY, num_key_value_heads=1, use_cache=False),
        partial(texts, "input_ids"),
        _LLAMA[0],
        adam,
        _LLAMA[1],
    ),
    "bert": Architecture(
        "BERT, post-norm (transformers)",
        partial(
            transformer,
            "BertForSequenceClassification",
            **SMALL,
            vocab_size=VOCABULARY,
            max_position_embeddings=LENGTH,
            num_labels=CLASSES,
        ),
        partial(sentences, "input_ids"),
        _BERT[0],
        adam,
        {},
    ),
    "vit": Architecture(
        "ViT (transformers)",
        partial(transformer, "ViTForImageClassification", **SMALL, image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES),
        partial(images, "pixel_values"),
        _VIT[0],
        adam,
        _VIT[1],
    ),
    "convnext": Architecture(
        "ConvNeXt, layer scale and stochastic depth (transformers)",
        partial(
            transformer,
            "ConvNextForImageClassification",
            num_channels=1,
            patch_size=2,
            num_stages=2,
            hidden_sizes=[8, 16],
            depths=[2, 2],
            drop_path_rate=0.1,
            layer_scale_init_value=0.1,
            num_labels=CLASSES,
        ),
        partial(images, "pixel_values"),
        tuple(convnext_block(stage, layer) for stage in range(2) for layer in range(2)),
        adam,
        {},
    ),
    "pre-activation": Architecture(
        "ResNet, pre-activation, with a projection",
        lambda: Images(PreActivation, orders(3, "pre")),
        partial(images, "x"),
        tuple(own_block(i, *(("shortcut", "conv2") if i == 1 else ("conv2",)), ends=("conv2",)) for i in range(3)),
        momentum,
        {},
        lambda i: Images(PreActivation, orders(3, "pre", i)),
    ),
    "in-place": Architecture(
        "ResNet as torchvision's, adds and ReLUs in place",
        lambda: Images(Basic, orders(3, "post")),
        partial(images, "x"),
        tuple(own_block(i, *(("downsample.0", "conv2") if i == 1 else ("conv2",)), ends=("bn2",)) for i in range(3)),
        momentum,
        {},
        lambda i: Images(Basic, orders(3, "post", i)),
    ),
    "stochastic-depth": Architecture(
        "ResNet, stochastic depth of samples",
        lambda: Images(Dropping, orders(3, "pre")),
        partial(images, "x"),
        tuple(own_block(i, *(("projection", "out") if i == 1 else ("out",)), ends=("out",)) for i in range(3)),
        adam,
        {},
        lambda i: Images(Dropping, orders(3, "pre", i)),
    ),
    "mlp": Architecture(
        "residual MLP, zero-initialised, layer scale",
        lambda: Stack(map(Scaled, orders(4, "pre"))),
        vectors,
        tuple(own_block(i, "fc2") for i in range(4)),
        adam,
        {},
        lambda i: Stack(map(Scaled, orders(4, "pre", i))),
    ),
    "parallel": Architecture(
        "transformer, attention and MLP in parallel",
        lambda: Texts(map(Parallel, orders(3, "pre"))),
        partial(texts, "text"),
        tuple(own_block(i, "attention.out", "mlp.2") for i in range(3)),
        adam,
        {},
        lambda i: Texts(map(Parallel, orders(3, "pre", i))),
    ),
    "serial": Architecture(
        "transformer, pre-norm, dropout as a function",
        lambda: Texts(Serial() for _ in range(2)),
        partial(texts, "text"),
        _SERIAL[0],
        adam,
        _SERIAL[1],
    ),
}
