"""A forward pass that is rehearsed: traced on stand-ins, going on where shapes do not fit.

Where an operation fails because its operands do not fit each other, the rehearsal notes it as a `Mismatch`, puts operands in their
place that do, and goes on: so the pass comes to its end, all its residual additions have their names, and every later misfit is
found too. Mostly there are two ways to go on, one for each operand that may be the wrong one. `explore` takes the ways after which
the rest of the model fits best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from resmon.capture import rule
from resmon.capture.compiler import PAUSE, plain
from resmon.capture.dataflow import ADDING, ADDS, ARITHMETIC, Add, Frame, Node, Trace, _name, leaves, operands
from resmon.capture.fakes import DEPENDS_ON_NUMBERS
from resmon.capture.stack import Whereabouts, current_line, whereabouts
from resmon.capture.survey import Names, Survey
from resmon.records import ResidualSite

MOST_MISMATCHES = 64  # of one pass, which then ends
MOST_PASSES = 24  # of one exploration
MOST_SECONDS = 20.0  # likewise

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A tensor that an operation was given."""

    tensor: Tensor
    node: Node

    @property
    def shape(self) -> Shape:
        return tuple(self.tensor.shape)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to go on: what takes the place of which argument. `wrong` says which operand is then the one that does not fit."""

    wrong: int  # index into the operands
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    stand_ins: tuple[tuple[Tensor, Tensor], ...] = ()  # what was there, and what is there now


@dataclass(frozen=True, slots=True, eq=False)
class Mismatch:
    """An operation whose operands do not fit each other. `operands` are the two that do not, where that can be told."""

    operation: str
    frame: Frame
    message: str
    error: Exception
    arguments: tuple[Any, ...]
    operands: tuple[Operand, ...]
    ways: tuple[Way, ...]
    chosen: int
    residual: rule.Residual | None  # where it would be a residual addition
    line: str  # of the user's code
    results: list[Node] = field(default_factory=list)  # what came of it when it was mended

    @property
    def module(self) -> str:
        return plain(self.frame.path)

    @property
    def wrong(self) -> int | None:
        """Which operand the chosen way takes to be the wrong one."""
        return self.ways[self.chosen].wrong if self.ways else None


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast:
    """A residual addition whose operands differ in shape and are spread over each other without an error."""

    frame: Frame
    skip: Shape
    branch: Shape
    residual: rule.Residual

    @property
    def module(self) -> str:
        return plain(self.frame.path)


@dataclass(eq=False)
class Outcome:
    """What a rehearsed pass came to. `error` is what ended it before its end, and `where` that was."""

    mismatches: list[Mismatch]
    broadcasts: list[Broadcast]
    sites: list[ResidualSite]
    survey: Survey
    trace: Rehearsal
    output: Any = None
    error: Exception | None = None
    where: Whereabouts = field(default_factory=Whereabouts)

    @property
    def fits(self) -> bool:
        return not self.mismatches and self.error is None

    def block(self, nodes: Iterable[Node]) -> str:
        """The site whose branch, projection or sum these values are."""
        wanted = set(nodes)
        for site, sighting in zip(self.sites, self.survey.sightings, strict=True):
            if not wanted.isdisjoint((sighting.output, *sighting.residual.branch, *sighting.residual.skip)):
                return site.name
        return ""

    @property
    def taken(self) -> tuple[int, ...]:
        """The ways that were taken, misfit by misfit."""
        return tuple(mismatch.chosen for mismatch in self.mismatches)

    @property
    def misfits(self) -> int:
        return len(self.mismatches) + (MOST_MISMATCHES if self.error is not None else 0)


class Rehearsal(Trace):
    """Traces one pass and mends what does not fit, the i-th misfit in the way that `choices` has at i, else in the first.

    With None as choices nothing is mended.
    """

    def __init__(self, model: nn.Module, survey: Survey, choices: Sequence[int] | None = ()) -> None:
        super().__init__(model, survey)
        self.mismatches: list[Mismatch] = []
        self.broadcasts: list[Broadcast] = []
        self._choices = choices
        self._survey = survey

    @property
    def stack(self) -> Sequence[Frame]:
        """The modules whose forward is running, the innermost last."""
        return self._frames

    @property
    def seen(self) -> int:
        """How many residual additions there have been so far."""
        return len(self._survey.sightings)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            result = super().__torch_function__(func, types, args, kwargs)
        except DEPENDS_ON_NUMBERS:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            if not self._frames or len(self.mismatches) >= MOST_MISMATCHES:
                raise
            if _is_of_types(error):
                args, kwargs = self._of_one_type(args, kwargs)
                return super().__torch_function__(func, types, args, kwargs)
            if self._choices is None:
                raise
            way = self._way_on(func, args, kwargs, error)
            if way is None:
                raise
            for before, now in way.stand_ins:
                self._nodes[now] = self._node(before)
            result = super().__torch_function__(func, types, way.args, way.kwargs)
            self.mismatches[-1].results.extend(self._node(tensor) for _, tensor in leaves(result))
            return result
        if func in ADDS and self._frames:
            self._look_for_broadcast(args, kwargs, result)
        return result

    def _way_on(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> Way | None:
        name = _name(func)
        tensors, ways = _fit(name, args, kwargs)
        if not tensors:
            tensors = [tensor for _, tensor in leaves((args, kwargs))][:2]
        known = tuple(Operand(tensor, self._node(tensor)) for tensor in tensors)
        i, choices = len(self.mismatches), self._choices or ()
        chosen = choices[i] if i < len(choices) and choices[i] < len(ways) else 0
        residual = None
        frame = self._frames[-1]
        if func in ADDS and len(known) == 2:
            first, second = known
            add = Add(first.tensor, second.tensor, first.node, second.node, 1, frame, frame.adds, False)
            residual = rule.judge(add)
        message = " ".join(str(error).split())
        self.mismatches.append(
            Mismatch(name, frame, message, error, args, known, tuple(ways), chosen, residual, current_line())
        )
        return ways[chosen] if ways else None

    def _look_for_broadcast(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        first, second = operands(args, kwargs)
        if not (isinstance(first, Tensor) and isinstance(second, Tensor) and isinstance(result, Tensor)):
            return
        if first.shape == second.shape or not (first.is_floating_point() and second.is_floating_point()):
            return
        if not (first in self._nodes and second in self._nodes) or first is result:
            return
        frame = self._frames[-1]
        one, two = self._node(first), self._node(second)
        if not (one.live and two.live):
            return
        residual = rule.judge(Add(first, second, one, two, 1, frame, frame.adds, False))
        if residual is not None:
            skip, branch = (first, second) if residual.skip_is_first else (second, first)
            self.broadcasts.append(Broadcast(frame, tuple(skip.shape), tuple(branch.shape), residual))

    def _of_one_type(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As autocast would have had it, in which the pass may have run."""
        floats = [tensor for _, tensor in leaves((args, kwargs)) if tensor.is_floating_point()]
        wide = floats[0].dtype if floats else torch.float32
        for tensor in floats:
            wide = torch.promote_types(wide, tensor.dtype)
        swaps = []
        for tensor in floats:
            if tensor.dtype != wide:
                cast = tensor.detach().to(wide)
                self._nodes[cast] = self._node(tensor)
                swaps.append((tensor, cast))
        return _swapped(args, swaps), _swapped(kwargs, swaps)


class Ground:
    """A model and its arguments on which passes are rehearsed: `model` must be a copy, or nobody else's."""

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inside: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.args, self.kwargs = args, kwargs
        self.inside = inside

    def rehearse(
        self,
        choices: Sequence[int] | None = (),
        given: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
        around: Callable[[Rehearsal], AbstractContextManager[Any]] = lambda trace: nullcontext(),
    ) -> Outcome:
        """One pass, of other arguments where some are `given`. Raises what depends on numbers that fakes do not have."""
        args, kwargs = given or (self.args, self.kwargs)
        survey = Survey()
        trace = Rehearsal(self.model, survey, choices)
        made = Outcome(trace.mismatches, trace.broadcasts, [], survey, trace)
        PAUSE.hold(trace)
        with self.inside(), torch.enable_grad():
            hook = self.model.register_forward_pre_hook(lambda _, a, k: trace.begin(a, k), with_kwargs=True)
            try:
                with around(trace):
                    made.output = self.model(*args, **kwargs)
                trace.finish(made.output)
            except DEPENDS_ON_NUMBERS:
                raise
            except Exception as error:
                made.error = error
                made.where = whereabouts(error, {"": self.model}, ())
            finally:
                hook.remove()
                trace.finish(None)
                PAUSE.release(trace)
        made.sites = Names(self.model).sites(survey.sightings)
        return made

    def explore(self, given: tuple[tuple[Any, ...], dict[str, Any]] | None = None) -> Outcome:
        """The pass in which, of all ways to go on after each misfit, those were taken after which the rest fits best."""
        started = perf_counter()
        best = self.rehearse(None, given)
        if best.error is None:  # a misfit that the model itself deals with, as one that catches the exception, is none
            return best
        best = self.rehearse((), given)
        passes, i = 2, 0
        while i < len(best.mismatches):
            for other in range(1, len(best.mismatches[i].ways)):
                if passes >= MOST_PASSES or perf_counter() - started > MOST_SECONDS:
                    return best
                tried = self.rehearse((*best.taken[:i], other), given)
                passes += 1
                if tried.misfits < best.misfits:
                    best = tried
            i += 1
        return best


# -- how an operation's operands can be made to fit --------------------------------------------------------------------


def _fit(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Way]]:
    """The operands that do not fit each other, and what may take their places."""
    for names, fit in _FITS:
        if name in names:
            bound = _Call(args, kwargs)
            try:
                return fit(name, bound)
            except (IndexError, KeyError, TypeError, AttributeError):  # called in a way that is not known here
                return [], []
    return [], []


class _Call:
    """The arguments of a call, by position or name."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def get(self, position: int, name: str) -> Any:
        return self.args[position] if position < len(self.args) else self.kwargs.get(name)

    def way(self, wrong: int, *swaps: tuple[Tensor, Shape]) -> Way:
        """With tensors of these shapes in the place of those."""
        made = [(tensor, _blank(tensor, shape)) for tensor, shape in swaps]
        return Way(wrong, _swapped(self.args, made), _swapped(self.kwargs, made), tuple(made))


def _blank(like: Tensor, shape: Shape) -> Tensor:
    return like.detach().new_zeros(shape)


def _swapped(tree: Any, swaps: Sequence[tuple[Any, Any]]) -> Any:
    """The same nest of tuples, lists and dicts with some items in the place of others."""
    for before, now in swaps:
        if tree is before:
            return now
    if isinstance(tree, dict):
        return {key: _swapped(item, swaps) for key, item in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_swapped(item, swaps) for item in tree)
    return tree


def _elementwise(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    tensors = [tensor for _, tensor in leaves((call.args, call.kwargs))]
    for i, first in enumerate(tensors):
        for second in tensors[i + 1 :]:
            one, two = _aligned(tuple(first.shape), tuple(second.shape)), _aligned(tuple(second.shape), tuple(first.shape))
            if one != tuple(first.shape) or two != tuple(second.shape):
                return [first, second], [call.way(1, (second, two)), call.way(0, (first, one))]
    if len(tensors) >= 2 and name.startswith(("__i", *ADDING)):  # in place, where the first cannot be spread
        first, second = tensors[:2]
        return [first, second], [call.way(0, (first, tuple(torch.broadcast_shapes(first.shape, second.shape))))]
    return [], []


def _aligned(shape: Shape, other: Shape) -> Shape:
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


def _linear(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    x, weight = call.get(0, "input"), call.get(1, "weight")
    return [x, weight], [call.way(0, (x, _with(x.shape, -1, weight.shape[1])))]


def _convolution(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    x, weight = call.get(0, "input"), call.get(1, "weight")
    groups = call.get(6, "groups") or 1
    channels = weight.shape[0] if "transpose" in name else weight.shape[1] * groups
    if x.dim() < weight.dim() - 1 or x.shape[1 - weight.dim()] == channels:
        return [x, weight], []
    return [x, weight], [call.way(0, (x, _with(x.shape, 1 - weight.dim(), channels)))]


def _batch_norm(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    x = call.get(0, "input")
    state = [t for t in (call.get(i, n) for i, n in enumerate(("", "running_mean", "running_var", "weight", "bias")) if n) if t is not None]
    sizes = {t.shape[0] for t in state}
    if not state or (sizes == {x.shape[1]}):
        if name == "batch_norm" and call.get(5, "training"):  # one value per channel, of which there is no variance
            way = Way(0, (*call.args[:5], False, *call.args[6:]), {**call.kwargs, **({"training": False} if len(call.args) < 6 else {})})
            return [x], [way] if call.get(1, "running_mean") is not None else []
        return [x], []
    reference = next((t for t in state if t.shape[0] != x.shape[1]), state[0])
    return [x, reference], [
        call.way(0, (x, _with(x.shape, 1, reference.shape[0]))),
        call.way(1, *((t, (x.shape[1],)) for t in state)),
    ]


def _layer_norm(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    x, shape = call.get(0, "input"), tuple(call.get(1, "normalized_shape"))
    state = [t for t in (call.get(2, "weight"), call.get(3, "bias")) if t is not None]
    actual = tuple(x.shape[-len(shape) :])
    as_it_is = call.way(1, *((t, actual) for t in state))
    changed = (as_it_is.args[0], actual, *as_it_is.args[2:]) if len(as_it_is.args) > 1 else as_it_is.args
    kwargs = {**as_it_is.kwargs, **({"normalized_shape": actual} if len(as_it_is.args) <= 1 else {})}
    return [x, *state[:1]], [
        call.way(0, (x, (*x.shape[: x.dim() - len(shape)], *shape))),
        Way(1, changed, kwargs, as_it_is.stand_ins),
    ]


def _group_norm(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    x, groups = call.get(0, "input"), call.get(1, "num_groups")
    state = [t for t in (call.get(2, "weight"), call.get(3, "bias")) if t is not None]
    if not state:
        return [x], []
    ways = [call.way(0, (x, _with(x.shape, 1, state[0].shape[0])))]
    if x.shape[1] % groups == 0:
        ways.append(call.way(1, *((t, (x.shape[1],)) for t in state)))
    return [x, state[0]], ways


def _product(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    tensors = [tensor for _, tensor in leaves((call.args, call.kwargs))]
    if name in ("addmm", "baddbmm"):
        bias, a, b = tensors
        if a.shape[-1] == b.shape[-2]:
            return [a, bias], [call.way(1, (bias, (b.shape[-1],)))]
    else:
        a, b = tensors if name != "__rmatmul__" else tensors[::-1]
    if b.dim() == 1:
        return [a, b], [call.way(0, (a, _with(a.shape, -1, b.shape[0])))]
    batch = tuple(b.shape[:-2]) if b.dim() > 2 and a.dim() > 2 else tuple(a.shape[:-2])
    other = tuple(a.shape[:-2]) if a.dim() > 2 and b.dim() > 2 else tuple(b.shape[:-2])
    rows = tuple(a.shape[-2:-1])
    return [a, b], [
        call.way(0, (a, (*batch, *rows, b.shape[-2]))),
        call.way(1, (b, (*other, a.shape[-1], b.shape[-1]))),
    ]


def _view(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
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


def _joined(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    tensors = list(call.get(0, "tensors"))
    dim = call.get(1, "dim") or 0
    first, last = tensors[0], next(t for t in tensors[1:] if not _can_join(tensors[0], t, dim, name))
    if first.dim() != last.dim():
        return [first, last], []

    def like(model: Tensor) -> list[tuple[Tensor, Shape]]:
        kept = None if name == "stack" else dim
        return [
            (t, tuple(model.shape) if kept is None else _with(model.shape, kept, t.shape[kept]))
            for t in tensors
            if not _can_join(model, t, dim, name)
        ]

    return [first, last], [call.way(1, *like(first)), call.way(0, *like(last))]


def _can_join(one: Tensor, other: Tensor, dim: int, name: str) -> bool:
    if one.dim() != other.dim():
        return False
    left_out = -1 if name == "stack" else dim % one.dim()
    return all(a == b for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if i != left_out)


def _attention(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    query, width = call.get(0, "query"), call.get(3, "embed_dim_to_check")
    given = {id(t): t for t in (query, call.get(1, "key"), call.get(2, "value"))}.values()
    weight = call.get(5, "in_proj_weight")
    wrong = [t for t in given if t.shape[-1] != width]
    if weight is None or not wrong:
        return [query, call.get(1, "key")], []
    return [wrong[0], weight], [call.way(0, *((t, _with(t.shape, -1, width)) for t in wrong))]


def _cross_entropy(name: str, call: _Call) -> tuple[list[Tensor], list[Way]]:
    x, target = call.get(0, "input"), call.get(1, "target")
    shape = (x.shape[0], *x.shape[2:]) if target.dtype == torch.long else tuple(x.shape)
    return [x, target], [call.way(1, (target, shape))]


_FITS: tuple[tuple[frozenset[str], Callable[[str, _Call], tuple[list[Tensor], list[Way]]]], ...] = (
    (frozenset({"linear"}), _linear),
    (frozenset({f"conv{t}{d}d" for t in ("", "_transpose") for d in "123"}), _convolution),
    (frozenset({"batch_norm", "instance_norm"}), _batch_norm),
    (frozenset({"layer_norm", "rms_norm"}), _layer_norm),
    (frozenset({"group_norm"}), _group_norm),
    (frozenset("matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm".split()), _product),
    (frozenset("view reshape _unsafe_view".split()), _view),
    (frozenset("cat concat concatenate stack".split()), _joined),
    (frozenset({"multi_head_attention_forward"}), _attention),
    (frozenset("cross_entropy mse_loss l1_loss smooth_l1_loss binary_cross_entropy binary_cross_entropy_with_logits".split()), _cross_entropy),
    (ARITHMETIC | frozenset("residual_add multiply maximum minimum masked_fill masked_fill_ eq ne lt gt le ge".split()), _elementwise),
)


def _is_of_types(error: Exception) -> bool:
    text = str(error)
    return "dtype" in text or "same type" in text or "scalar type" in text.lower()
