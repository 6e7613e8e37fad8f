"""How an operation whose operands do not fit each other can go on: the table of what may take whose place.

Where two operands do not fit, either may be the wrong one, and there is a `Way` to go on for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from resmon.capture.discovery.dataflow import ADDING, ARITHMETIC, leaves

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to go on: what takes the place of which argument. `wrong` says which operand is then the one that does not fit."""

    wrong: int  # index into the operands
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    stand_ins: tuple[tuple[Tensor, Tensor], ...] = ()  # what was there, and what is there now
    result: Any = None  # where the operation is not made at all


Mend = tuple[list[Tensor], list[Way]]  # the operands that do not fit each other, and the ways to go on


def ways_on(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mend:
    """Of a call of the torch function of that name which failed: the operands that do not fit each other, and the ways to go on."""
    for names, mend in _MENDS:
        if name in names:
            try:
                return mend(_Call(name, args, kwargs))
            except (IndexError, KeyError, TypeError, AttributeError):  # called in a way that is not known here
                return [], []
    return [], []


class _Call:
    """The arguments of a call, by position or name."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs

    def get(self, position: int, name: str) -> Any:
        return self.args[position] if position < len(self.args) else self.kwargs.get(name)

    def but(self, position: int, name: str, value: Any) -> Way:
        """With another value for one argument."""
        if position < len(self.args):
            return Way(0, (*self.args[:position], value, *self.args[position + 1 :]), self.kwargs)
        return Way(0, self.args, {**self.kwargs, name: value})

    def way(self, wrong: int, *swaps: tuple[Tensor, Shape]) -> Way:
        """With tensors of these shapes in the place of those."""
        made = [(tensor, blank(tensor, shape)) for tensor, shape in swaps]
        return Way(wrong, swapped(self.args, made), swapped(self.kwargs, made), tuple(made))


def blank(like: Tensor, shape: Shape) -> Tensor:
    """A tensor of that shape, of the same type and on the same device."""
    return like.detach().new_zeros(shape)


def swapped(tree: Any, swaps: Sequence[tuple[Any, Any]]) -> Any:
    """The same nest of tuples, lists and dicts with some items in the place of others."""
    for before, now in swaps:
        if tree is before:
            return now
    if isinstance(tree, dict):
        return {key: swapped(item, swaps) for key, item in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(swapped(item, swaps) for item in tree)
    return tree


def _elementwise(call: _Call) -> Mend:
    tensors = [tensor for _, tensor in leaves((call.args, call.kwargs))]
    for i, first in enumerate(tensors):
        for second in tensors[i + 1 :]:
            one, two = aligned(tuple(first.shape), tuple(second.shape)), aligned(tuple(second.shape), tuple(first.shape))
            if one != tuple(first.shape) or two != tuple(second.shape):
                return [first, second], [call.way(1, (second, two)), call.way(0, (first, one))]
    if len(tensors) >= 2 and call.name.startswith(("__i", *ADDING)):  # in place, where the first cannot be spread
        first, second = tensors[:2]
        return [first, second], [call.way(0, (first, tuple(torch.broadcast_shapes(first.shape, second.shape))))]
    return [], []


def aligned(shape: Shape, other: Shape) -> Shape:
    """`shape` with the sizes of `other` where both have one that is not 1 and they differ."""
    made = list(shape)
    for i in range(1, min(len(shape), len(other)) + 1):
        if shape[-i] != other[-i] and shape[-i] != 1 and other[-i] != 1:
            made[-i] = other[-i]
    return tuple(made)


def _with(shape: Iterable[int], axis: int, size: int) -> Shape:
    made = list(shape)
    made[axis] = size
    return tuple(made)


def _linear(call: _Call) -> Mend:
    x, weight = call.get(0, "input"), call.get(1, "weight")
    return [x, weight], [call.way(0, (x, _with(x.shape, -1, weight.shape[1])))]


def _convolution(call: _Call) -> Mend:
    x, weight = call.get(0, "input"), call.get(1, "weight")
    groups = call.get(6, "groups") or 1
    channels = weight.shape[0] if "transpose" in call.name else weight.shape[1] * groups
    if x.dim() < weight.dim() - 1 or x.shape[1 - weight.dim()] == channels:
        return [x, weight], []
    return [x, weight], [call.way(0, (x, _with(x.shape, 1 - weight.dim(), channels)))]


def _batch_norm(call: _Call) -> Mend:
    x = call.get(0, "input")
    given = [call.get(i, each) for i, each in enumerate(("running_mean", "running_var", "weight", "bias"), 1)]
    state = [tensor for tensor in given if tensor is not None]
    reference = next((t for t in state if t.shape[0] != x.shape[1]), None)
    if reference is not None:
        return [x, reference], [
            call.way(0, (x, _with(x.shape, 1, reference.shape[0]))),
            call.way(1, *((t, (x.shape[1],)) for t in state)),
        ]
    if given[0] is None or not call.get(5, "training"):
        return [x], []
    return [x], [call.but(5, "training", False)]  # it has one value for each channel, of which there is no variance


def _layer_norm(call: _Call) -> Mend:
    x, shape = call.get(0, "input"), tuple(call.get(1, "normalized_shape"))
    state = [t for t in (call.get(2, "weight"), call.get(3, "bias")) if t is not None]
    actual = tuple(x.shape[-len(shape) :])
    own = call.way(1, *((t, actual) for t in state))
    return [x, *state[:1]], [
        call.way(0, (x, (*x.shape[: x.dim() - len(shape)], *shape))),
        replace(_Call(call.name, own.args, own.kwargs).but(1, "normalized_shape", actual), wrong=1, stand_ins=own.stand_ins),
    ]


def _group_norm(call: _Call) -> Mend:
    x, groups = call.get(0, "input"), call.get(1, "num_groups")
    state = [t for t in (call.get(2, "weight"), call.get(3, "bias")) if t is not None]
    if not state:
        return [x], []
    ways = [call.way(0, (x, _with(x.shape, 1, state[0].shape[0])))]
    if x.shape[1] % groups == 0:
        ways.append(call.way(1, *((t, (x.shape[1],)) for t in state)))
    return [x, state[0]], ways


def _product(call: _Call) -> Mend:
    tensors = [tensor for _, tensor in leaves((call.args, call.kwargs))]
    if call.name in ("addmm", "baddbmm"):
        bias, a, b = tensors
        if a.shape[-1] == b.shape[-2]:
            return [a, bias], [call.way(1, (bias, (b.shape[-1],)))]
    else:
        a, b = tensors if call.name != "__rmatmul__" else tensors[::-1]
    if b.dim() == 1:
        return [a, b], [call.way(0, (a, _with(a.shape, -1, b.shape[0])))]
    batch = tuple(b.shape[:-2]) if b.dim() > 2 and a.dim() > 2 else tuple(a.shape[:-2])
    other = tuple(a.shape[:-2]) if a.dim() > 2 and b.dim() > 2 else tuple(b.shape[:-2])
    rows = tuple(a.shape[-2:-1])
    return [a, b], [
        call.way(0, (a, (*batch, *rows, b.shape[-2]))),
        call.way(1, (b, (*other, a.shape[-1], b.shape[-1]))),
    ]


def _view(call: _Call) -> Mend:
    x = call.args[0]
    asked = call.args[1:] if len(call.args) > 1 else tuple(call.kwargs.values())
    sizes = list(asked[0] if len(asked) == 1 and not isinstance(asked[0], int) else asked)
    known = math.prod(size for size in sizes if size != -1)
    ways = []
    if sizes and sizes[0] != -1 and -1 not in sizes[1:]:  # a batch size that was written down
        rest = math.prod(sizes[1:])
        if rest and x.numel() % rest == 0 and x.numel() // rest == x.shape[0]:
            ways.append(Way(0, (x, [-1, *sizes[1:]]), {}))
    if known > 0:
        # As many elements as there should be, for as large a batch.
        count = known * (max(1, x.numel() // known) if -1 in sizes else 1)
        ways.append(call.way(0, (x, (count,))))
    return [x], ways


def _joined(call: _Call) -> Mend:
    tensors = list(call.get(0, "tensors"))
    dim = call.get(1, "dim") or 0
    first, last = tensors[0], next(t for t in tensors[1:] if not _can_join(tensors[0], t, dim, call.name))
    if first.dim() != last.dim():
        return [first, last], []

    def like(model: Tensor) -> list[tuple[Tensor, Shape]]:
        kept = None if call.name == "stack" else dim
        return [
            (t, tuple(model.shape) if kept is None else _with(model.shape, kept, t.shape[kept]))
            for t in tensors
            if not _can_join(model, t, dim, call.name)
        ]

    return [first, last], [call.way(1, *like(first)), call.way(0, *like(last))]


def _can_join(one: Tensor, other: Tensor, dim: int, name: str) -> bool:
    if one.dim() != other.dim():
        return False
    left_out = -1 if name == "stack" else dim % one.dim()
    return all(a == b for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if i != left_out)


def _attention(call: _Call) -> Mend:
    query, width = call.get(0, "query"), call.get(3, "embed_dim_to_check")
    given = {id(t): t for t in (query, call.get(1, "key"), call.get(2, "value"))}.values()
    weight = call.get(5, "in_proj_weight")
    wrong = [t for t in given if t.shape[-1] != width]
    if weight is None or not wrong:
        return [query, call.get(1, "key")], []
    return [wrong[0], weight], [call.way(0, *((t, _with(t.shape, -1, width)) for t in wrong))]


def _cross_entropy(call: _Call) -> Mend:
    x, target = call.get(0, "input"), call.get(1, "target")
    shape = (x.shape[0], *x.shape[2:]) if target.dtype == torch.long else tuple(x.shape)
    return [x, target], [call.way(1, (target, shape))]


_MENDS: tuple[tuple[frozenset[str], Callable[[_Call], Mend]], ...] = (
    (frozenset({"linear"}), _linear),
    (frozenset({f"conv{t}{d}d" for t in ("", "_transpose") for d in "123"}), _convolution),
    (frozenset({"batch_norm", "instance_norm"}), _batch_norm),
    (frozenset({"layer_norm", "rms_norm"}), _layer_norm),
    (frozenset({"group_norm"}), _group_norm),
    (frozenset("matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm".split()), _product),
    (frozenset("view reshape _unsafe_view".split()), _view),
    (frozenset("cat concat concatenate stack".split()), _joined),
    (frozenset({"multi_head_attention_forward"}), _attention),
    (
        frozenset("cross_entropy mse_loss l1_loss smooth_l1_loss binary_cross_entropy binary_cross_entropy_with_logits".split()),
        _cross_entropy,
    ),
    (
        ARITHMETIC | frozenset("residual_add multiply maximum minimum masked_fill masked_fill_ eq ne lt gt le ge".split()),
        _elementwise,
    ),
)
