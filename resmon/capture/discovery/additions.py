"""The torch functions that add one tensor to another, and which two values each of them adds.

A plain addition has its two values as arguments. `addcmul`, `addcdiv` and `lerp` add what they multiply or divide themselves: their
value is a term that is computed only where somebody reads it, and never of a DTensor, whose products may ask other ranks. Other
functions add a value that is nowhere a tensor (`hidden_in`), and it would take their whole work once more to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resmon.capture.discovery.marker import residual_add
from resmon.capture.host.placement import is_distributed

ADDS = frozenset(
    {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, residual_add}
)  # fmt: skip
IN_PLACE = frozenset({Tensor.add_, Tensor.__iadd__})
_SCALED_ADDS: Mapping[Any, str] = {
    **dict.fromkeys((torch.addcmul, Tensor.addcmul, Tensor.addcmul_), "mul"),
    **dict.fromkeys((torch.addcdiv, Tensor.addcdiv, Tensor.addcdiv_), "div"),
    **dict.fromkeys((torch.lerp, Tensor.lerp, Tensor.lerp_), "lerp"),
}
ADDITIONS = ADDS | _SCALED_ADDS.keys()

# A tensor, or an operation on two that makes one: mul, div, or rest, which multiplies with what the second leaves of 1.
Term = Tensor | tuple[str, Tensor, Tensor]
Addition = tuple[Term, Term, tuple[float, float]]  # what the terms are multiplied with

# Functions, by name, that add to their first argument what they make of the others, and when some of them do.
_INTO = frozenset(
    """addmm addmm_ baddbmm baddbmm_ addbmm addbmm_ _sparse_addmm index_add index_add_ scatter_add scatter_add_
    index_put index_put_ scatter_reduce scatter_reduce_""".split()
)
# They may add up what was stacked.
_REDUCING = frozenset("sum mean einsum tensordot matmul __matmul__ __rmatmul__".split())


def operands(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The two operands of a call of one of ADDS."""
    first = args[0] if args else kwargs.get("input", kwargs.get("skip"))
    second = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("branch"))
    return first, second


def addition(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Addition | None:
    """What a call of one of ADDITIONS adds, where that can be a residual addition at all."""
    if func in ADDS:
        first, second = operands(args, kwargs)
        return (first, second, (1, kwargs.get("alpha", 1))) if is_candidate(first, second) else None
    names = ("input", "end", "weight") if _SCALED_ADDS[func] == "lerp" else ("input", "tensor1", "tensor2")
    given: list[Any] = list(args[:3])
    x, one, two = given + [kwargs.get(name) for name in names[len(given) :]]
    if not (isinstance(x, Tensor) and isinstance(one, Tensor)):
        return None
    if _SCALED_ADDS[func] != "lerp":
        if not (isinstance(two, Tensor) and _are_floating(x, one, two) and _make(x.shape, one.shape, two.shape)):
            return None
        return x, (_SCALED_ADDS[func], one, two), (1, kwargs.get("value", 1))
    if not is_candidate(x, one):
        return None
    if not isinstance(two, Tensor):
        return x, one, (1 - two, two)
    if not (_are_floating(x, one, two) and _make(x.shape, x.shape, two.shape)):
        return None
    return ("rest", x, two), ("mul", one, two), (1, 1)


def is_candidate(first: Any, second: Any) -> bool:
    """Whether an add can be a residual add at all: of two floating-point tensors of one shape, which are no single numbers."""
    return (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and not (first.is_nested or second.is_nested)
        and first.shape == second.shape
        and first.dim() > 0
        and first.is_floating_point()
        and second.is_floating_point()
    )


def value(term: Term) -> Tensor:
    """The tensor that a term is; what is computed for it alone belongs to no graph of gradients."""
    if isinstance(term, Tensor):
        return term
    operation, first, second = term
    first, second = first.detach(), second.detach()
    if operation == "div":
        return first / second
    return first * (1 - second if operation == "rest" else second)


def _are_floating(*tensors: Tensor) -> bool:
    return all(tensor.is_floating_point() and not tensor.is_nested and not _is_spread(tensor) for tensor in tensors)


def _is_spread(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor and type(tensor) is not nn.Parameter and is_distributed(tensor)


def _make(shape: torch.Size, one: torch.Size, two: torch.Size) -> bool:
    """Whether tensors of the shapes `one` and `two` make one of `shape`, which has dimensions, element by element."""
    if not len(shape) or max(len(one), len(two)) > len(shape):
        return False
    spread = [(1,) * (len(shape) - len(given)) + tuple(given) for given in (one, two)]
    return all(n in pair and all(m in (1, n) for m in pair) for n, *pair in zip(shape, *spread, strict=True))


def hidden_in(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What the function of that name adds to, where what it adds is nowhere a tensor."""
    skip = args[0] if args else kwargs.get("input")
    if not isinstance(skip, Tensor) or not kwargs.get("beta", 1):
        return None
    if name.rstrip("_") in ("addcmul", "addcdiv", "lerp"):
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        return skip if len(given) == 3 and any(map(_is_spread, given)) else None
    if name not in _INTO:
        return None
    if name.startswith("index_put") and not (args[3] if len(args) > 3 else kwargs.get("accumulate", False)):
        return None
    if name.startswith("scatter_reduce") and (args[4] if len(args) > 4 else kwargs.get("reduce")) != "sum":
        return None
    return skip


SUBTRACTIONS = frozenset(
    {torch.sub, torch.subtract, Tensor.sub, Tensor.sub_, Tensor.subtract, Tensor.subtract_, Tensor.__sub__, Tensor.__isub__}
)


def adds_up(name: str) -> bool:
    """Whether the function of that name may add up what was stacked."""
    return name in _REDUCING


def is_kernel(func: Callable[..., Any]) -> bool:
    """Whether torch itself does not know what the function computes."""
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return str(func).partition(".")[0] not in ("aten", "prims", "prim")
    return isinstance(func, type) and issubclass(func, torch.autograd.Function) and not func.__module__.startswith("torch.")
