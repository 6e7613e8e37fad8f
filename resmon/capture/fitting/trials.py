"""Whether a model's arguments are at fault rather than the model: other arguments, tried out on the stand-ins.

Where shapes do not fit, the same pass is rehearsed with another batch size, with axes in another order, with sequences and images
of another size. The first change after which the model runs, as it is, is the `Cause`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from resmon.capture.discovery.dataflow import leaves
from resmon.capture.fitting.rehearsal import Ground, Outcome

MOST_SECONDS = 20.0  # of all trials
MOST_ELEMENTS = 4  # times those of the arguments, where a trial takes real memory
LARGEST_BATCH = 4096
MULTIPLES = (2, 4, 8, 16, 32, 64)
IMAGE_SIZES = (28, 32, 64, 96, 128, 224, 256, 384, 8, 16, 512)

Given = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Cause:
    """What is wrong with the arguments: of which kind, in words, and what to do."""

    kind: str  # batch, axes, length or size
    says: str
    do: str


Trials = Iterator[tuple[Cause, Given]]


def cause_of(ground: Ground, outcome: Outcome, usual: int | None = None) -> Cause | None:
    """What about the arguments would have to be different for the model, as it is, to run.

    `usual` is the batch size of earlier passes.
    """
    if outcome.fits:
        return None
    trials = (_batches(ground, outcome, usual), _axes(ground), _lengths(ground, outcome), _images(ground, outcome))
    started = perf_counter()
    for cause, given in chain.from_iterable(trials):
        if perf_counter() - started > MOST_SECONDS:
            break
        if not ground.is_fake and _elements(given) > MOST_ELEMENTS * _elements((ground.args, ground.kwargs)):
            continue
        if _fits(ground, given):
            return cause
    return None


def _fits(ground: Ground, given: Given) -> bool:
    with suppress(Exception):  # arguments that the model was never meant for may raise anything
        return ground.rehearse(None, given).error is None
    return False


def batch_of(ground: Ground) -> int | None:
    """The first dimension of the first tensor."""
    return next((int(t.shape[0]) for t in _tensors(ground) if t.dim()), None)


def with_batch(ground: Ground, size: int) -> Given:
    """The arguments with another batch size: all tensors whose first dimension is as the first one's."""
    batch = batch_of(ground)

    def resized(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != batch:
            return tensor
        return tensor.detach()[:1].expand(size, *tensor.shape[1:]).clone()

    return _changed(ground, resized)


def _elements(given: Given) -> int:
    return sum(tensor.numel() for _, tensor in leaves(given))


def _tensors(ground: Ground) -> list[Tensor]:
    return [tensor for _, tensor in leaves((ground.args, ground.kwargs))]


def _changed(ground: Ground, change: Callable[[Tensor], Tensor]) -> Given:
    """The arguments with `change` applied to each tensor."""

    def walk(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return change(tree)
        if type(tree) in (tuple, list):
            return type(tree)(map(walk, tree))
        if isinstance(tree, Mapping):
            return {key: walk(item) for key, item in tree.items()}
        return tree

    with ground.inside():
        return walk(ground.args), walk(ground.kwargs)


def _batches(ground: Ground, outcome: Outcome, usual: int | None) -> Trials:
    batch = batch_of(ground)
    if batch is None:
        return
    said = [each.message for each in outcome.mismatches] + [str(outcome.error)]
    if any("more than 1" in message for message in said):
        says = "A batch of one has no variance, and batch norm needs one while it trains"
        yield (
            Cause("batch", says, "Leave the last batch out where it is smaller: DataLoader(..., drop_last=True)."),
            with_batch(ground, 2),
        )
        return
    asked = [size for each in outcome.mismatches[:1] for size in _numbers(each.arguments[1:])[:1]]
    sizes = [*([usual] if usual else []), *asked, batch + 1, 1, 2 * batch]
    for size in dict.fromkeys(size for size in sizes if size != batch and 0 < size <= LARGEST_BATCH):
        says = f"The same model fits with a batch of {size}, not of {batch}: something in it depends on the batch size"
        do = "Take the batch size from the tensor, x.shape[0] or -1, where a reshape or a buffer has a number."
        if usual and batch < usual:
            says += f"; this batch is smaller than the {usual} of the first, as a data set's last one is"
            do += " Or leave the last batch out: DataLoader(..., drop_last=True)."
        yield Cause("batch", says, do), with_batch(ground, size)


def _axes(ground: Ground) -> Trials:
    dims = {tensor.dim() for tensor in _tensors(ground) if tensor.is_floating_point()}

    def turned(dim: int, change: Callable[[Tensor], Tensor]) -> Given:
        return _changed(ground, lambda t: change(t) if t.dim() == dim and t.is_floating_point() else t)

    for dim, says, do, change in _TURNS:
        if dim in dims:
            yield Cause("axes", f"The input {says}", f"Give it {do}."), turned(dim, change)


_TURNS: tuple[tuple[int, str, str, Callable[[Tensor], Tensor]], ...] = (
    (4, "has its channels last, and the model takes them second", "x.permute(0, 3, 1, 2)", lambda t: t.permute(0, 3, 1, 2)),
    (4, "has its channels second, and the model takes them last", "x.permute(0, 2, 3, 1)", lambda t: t.permute(0, 2, 3, 1)),
    (3, "has its last two axes the other way round", "x.transpose(1, 2)", lambda t: t.transpose(1, 2)),
    (3, "has batch and sequence the other way round", "x.transpose(0, 1)", lambda t: t.transpose(0, 1)),
    *((dim, "has no batch dimension", "x.unsqueeze(0)", lambda t: t[None]) for dim in (1, 2, 3)),
    (3, "has no channel dimension", "x.unsqueeze(1)", lambda t: t[:, None]),
)


def _lengths(ground: Ground, outcome: Outcome) -> Trials:
    """Sequences as long as what they meet."""
    sequences = [t for t in _tensors(ground) if t.dim() == 3 or (t.dim() == 2 and not t.is_floating_point())]
    if not sequences or not outcome.mismatches:
        return
    length = int(sequences[0].shape[1])
    met = {int(size) for operand in outcome.mismatches[0].operands for size in operand.shape}
    if length not in met:
        return
    others = {int(t.shape[1]) for t in _tensors(ground) if t.dim() >= 2}
    for size in sorted((size for size in met if 0 < size <= 2 * length and size != length), key=lambda size: abs(size - length)):
        says = f"The model fits a length of {size}, and this one is {length}"
        do = f"Cut the sequences to {size}, or build the model for {length}: it has {size} positions."
        if size in others:
            says = f"The model fits arguments of one length, and one here has a length of {length} and another of {size}"
            do = f"Cut or pad them alike, to {length} or to {size}, where the batch is put together."
        yield Cause("length", says, do), _changed(ground, partial(_of_length, length, size))


def _of_length(length: int, size: int, tensor: Tensor) -> Tensor:
    if tensor.dim() < 2 or tensor.shape[1] != length:
        return tensor
    return tensor.new_zeros((tensor.shape[0], size, *tensor.shape[2:]))


def _images(ground: Ground, outcome: Outcome) -> Trials:
    images = [t for t in _tensors(ground) if t.dim() == 4]
    if not images:
        return
    height, width = (int(size) for size in images[0].shape[-2:])
    yield from _multiples(ground, height, width)
    guesses: list[int] = []
    if outcome.mismatches and len(outcome.mismatches[0].operands) == 2:
        # Features that were flattened grow with the square of the size.
        a, b = (operand.shape[-1] for operand in outcome.mismatches[0].operands)
        guesses = [round(width * (b / a) ** 0.5) + more for more in (0, 1, -1, 2, -2)]
    for size in dict.fromkeys((*guesses, *IMAGE_SIZES)):
        if 0 < size != width:
            says = f"The model fits images of {size}×{size}, and these are {height}×{width}"
            do = f"Resize the images to {size}×{size}, or pool to a fixed size, nn.AdaptiveAvgPool2d, before they are flattened."
            yield Cause("size", says, do), _changed(ground, partial(_of_size, size, size))


def _multiples(ground: Ground, height: int, width: int) -> Trials:
    """Images with sides that are multiples of a number, as what halves and doubles them needs. Two sizes have to fit."""
    for factor in MULTIPLES:
        high, wide = (-(-size // factor) * factor for size in (height, width))
        if (high, wide) == (height, width) or not _fits(ground, _changed(ground, partial(_of_size, high + factor, wide + factor))):
            continue
        says = f"The model fits images of {high}×{wide}, and these are {height}×{width}"
        do = f"Pad or resize the images so that both sides are multiples of {factor}, {high}×{wide} here."
        yield Cause("size", says, do), _changed(ground, partial(_of_size, high, wide))


def _of_size(height: int, width: int, tensor: Tensor) -> Tensor:
    return tensor.new_zeros((*tensor.shape[:2], height, width)) if tensor.dim() == 4 else tensor


def _numbers(tree: Any) -> list[int]:
    if isinstance(tree, int) and not isinstance(tree, bool):
        return [tree]
    return [number for item in tree for number in _numbers(item)] if isinstance(tree, (tuple, list, torch.Size)) else []
