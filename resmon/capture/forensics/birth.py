"""Where in a traced pass the first value was born that is not finite.

Forward: every torch call is an event that knows what it read and wrote was finite or not. An event that made NaN or Inf out of
finite values is a birth, and most births are harmless: masks, `torch.where`, rows that nobody looks at. So the origin is looked for
from the end: from the outputs that are not finite back through the events that wrote what they were made from, by storage, to the
first NaN on that way, and from there to the birth of what it was made of. Infinities that were written down as such (a mask filled
with -inf) are no origin as long as there is another.

Backward: every node of the graph is tagged with the event that made it. A node whose own backward made NaN or Inf out of finite
gradients is a birth; from the parameters whose gradients are not finite one follows the edges to the first. Where the value that
such an operation had saved was itself not finite, the birth of that one is the origin.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import CodeType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction, checkpoint
from torch.utils.hooks import RemovableHandle

from resmon.capture.discovery.additions import ADDITIONS, addition
from resmon.capture.discovery.dataflow import contents, leaves
from resmon.capture.host.compiler import plain
from resmon.capture.host.stack import is_the_users, source_line
from resmon.records import ResidualSite

NAN, ABOVE, BELOW = 1, 2, 4  # kinds of values that are not finite: NaN, +Inf, -Inf

# These write values down as they are given; an infinite one among them is meant.
_PLACES = frozenset(
    """full full_like new_full new_tensor tensor as_tensor scalar_tensor asarray fill fill_ fill_diagonal_ masked_fill masked_fill_
    where __setitem__ index_fill index_fill_ index_put index_put_ pad constant_pad_nd clamp clamp_ clip nan_to_num""".split()
)
# What a row of nothing but masked scores becomes NaN in.
_SOFTMAX = frozenset("softmax _softmax log_softmax logsumexp scaled_dot_product_attention multi_head_attention_forward".split())
# What these return has no values yet.
_EMPTY = frozenset("empty empty_like empty_strided new_empty new_empty_strided empty_permuted".split())

_RUNNING = frozenset({"batch_norm", "instance_norm"})
# Operators that torch gives names of their own.
_SPELLINGS = {"__rdiv__": "div", "__rtruediv__": "div", "__rpow__": "pow", "__rsub__": "sub", "__rmatmul__": "matmul"}

Kind = Literal["operation", "parameter", "buffer", "input", "constant"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A residual add: the `ordinal`-th candidate in that call of the module at `path`. They come in order of execution."""

    path: str
    call: int
    ordinal: int
    block: str
    inside: tuple[str, ...]  # modules of its branch and projection


class Sign(NamedTuple):
    """What of a block was not finite so far in a step: elements of its sum and of its sum's gradient; and its skip's square."""

    site: ResidualSite
    forward: int
    backward: int
    skip: float


@dataclass(slots=True, eq=False)
class Event:
    """A torch call, or (another kind) something that was there before the pass."""

    order: int
    operation: str
    kind: Kind = "operation"
    name: str = ""  # of what was there before
    path: str = ""  # the module whose forward was running, and which of its calls that was
    call: int = 0
    block: str = ""
    file: str = ""
    number: int = 0
    kinds: int = 0  # that it wrote
    placed: bool = False  # infinities that were written down as such
    dtype: str = ""  # of what it wrote
    largest: float | None = None  # absolute value that it read, where it made what is not finite of finite ones
    read: list[tuple[Event, int]] = field(default_factory=list)  # what was not finite: written by whom, and of which kinds

    @property
    def line(self) -> str:
        return source_line(self.file, self.number) if self.file else ""


def kinds(tensor: Tensor) -> int:
    """Which kinds of values that are not finite it holds."""
    tensor = tensor.detach()
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.device.type == "meta":
        return 0
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
    if not tensor.numel():
        return 0
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.element_size() == 1:
        tensor = tensor.float()
    # The sum is several times as fast as looking at each element, and finite only if all of them are.
    if math.isfinite(float(tensor.sum(dtype=torch.float32 if tensor.element_size() < 4 else None))):
        return 0
    found = NAN if bool(tensor.isnan().any()) else 0
    found |= ABOVE if bool((tensor == math.inf).any()) else 0
    return found | (BELOW if bool((tensor == -math.inf).any()) else 0)


def _largest(tensors: Iterable[Tensor]) -> float | None:
    """The largest absolute value in finite tensors."""
    strided = [t.detach() for t in tensors if t.is_floating_point() and t.layout is torch.strided and t.device.type != "meta"]
    return max((float(tensor.abs().max()) for tensor in strided if tensor.numel() and tensor.element_size() > 1), default=None)


class Watcher(Protocol):
    """Who hears of the calls of modules; "" is the model."""

    def entered(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...
    def left(self, path: str, call: int, output: Any) -> None: ...


class _Frame:
    """One call of one module's forward; `adds` counts the candidate adds in it so far."""

    __slots__ = ("adds", "call", "path")

    def __init__(self, path: str, call: int) -> None:
        self.path, self.call, self.adds = path, call, 0


class Trace(TorchFunctionMode):
    """Traces one forward pass of `model` and then its backward pass.

    `called_at` is the line that called the model, for what is in no other line of the user's; `watcher` hears of its modules.
    """

    def __init__(
        self,
        model: nn.Module,
        holders: Sequence[Holder] = (),
        called_at: tuple[str, int] = ("", 0),
        watcher: Watcher | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self._called_at = called_at
        self._watcher = watcher
        self._holders = tuple(holders)
        self._adds = {(holder.path, holder.call, holder.ordinal): holder for holder in holders}
        self._added: set[Holder] = set()  # that have been made
        self._paths = {module: plain(path) for path, module in model.named_modules()}
        self._calls: dict[str, int] = {}
        self._frames = [_Frame("", 0)]
        self._order = 0
        self._writers: dict[int, Event] = {}  # by storage: who wrote what is not finite in it, or what was there before
        self._tags: dict[Any, Event] = {}  # by node of the graph
        self._ran: dict[Any, _Ran] = {}  # likewise
        self._handles: list[RemovableHandle] = []
        self._apply: Any = None
        for kind, named in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
            for path, tensor in named(remove_duplicate=False):
                self._was_there(tensor, kind, plain(path))  # type: ignore[arg-type]

    def _was_there(self, tensor: Tensor, kind: Kind, name: str) -> None:
        if place := _storage(tensor):
            self._writers.setdefault(place, Event(0, "", kind, name, path=name.rpartition(".")[0]))

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the model."""
        for position, tensor in leaves((args, dict(kwargs))):
            self._was_there(tensor, "input", position_name(position))
        for tensor in contents((args, dict(kwargs))):
            self._was_there(tensor, "input", "inside an argument")
        for module in self._paths:
            if module is not self._model and not isinstance(module, torch.jit.ScriptModule):
                self._handles.append(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        self._wrap_apply()
        try:
            if self._watcher is not None:
                self._watcher.entered("", 0, args, dict(kwargs))
            with self:
                output = self._model(*args, **kwargs)
            if self._watcher is not None:
                self._watcher.left("", 0, output)
            return output
        finally:
            torch.autograd.Function.apply = self._apply  # type: ignore[method-assign]
            self._remove_hooks()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        path = self._paths[module]
        call = self._calls.get(path, 0)
        self._calls[path] = call + 1
        self._frames.append(_Frame(path, call))
        if self._watcher is not None:
            with torch._C.DisableTorchFunction():
                self._watcher.entered(path, call, args, kwargs)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if len(self._frames) > 1:
            frame = self._frames.pop()
            if self._watcher is not None:
                with torch._C.DisableTorchFunction():
                    self._watcher.left(frame.path, frame.call, output)

    def _wrap_apply(self) -> None:
        # Custom autograd functions are no torch functions. Those of reentrant checkpoints cannot be differentiated as replay must.
        self._apply = original = torch.autograd.Function.__dict__["apply"]

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if cls is CheckpointFunction:
                function, preserve, *others = args
                return checkpoint(function, *others, use_reentrant=False, preserve_rng_state=preserve)
            return self._call(cls.__name__, original.__get__(None, cls), args, kwargs)

        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        result = self._call(name, func, args, kwargs)
        if func in ADDITIONS and addition(func, args, kwargs) is not None:
            innermost = self._frames[-1]
            if made := self._adds.get((innermost.path, innermost.call, innermost.adds)):
                self._added.add(made)
            for frame in self._frames:
                frame.adds += 1
        return result

    def _call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with torch._C.DisableTorchFunction():
            read = [tensor for _, tensor in leaves((args, dict(kwargs)))]
            if name in _RUNNING:
                read = _without_running(read, args, kwargs)
            event = self._event(name)
            event.read = [(self._writer(tensor, event), found) for tensor in read if (found := kinds(tensor))]
            event.placed = name in _EMPTY or (name in _PLACES and any(_infinite(each) for each in (args, kwargs)))
            for tensor in read:
                self._tag(tensor, event)
            before = [(tensor, _version(tensor)) for tensor in read]
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            there = {_storage(tensor) for tensor in read}
            made = [tensor for _, tensor in leaves(result)]
            written = [tensor for tensor in made if _storage(tensor) not in there]
            written += [tensor for tensor, version in before if _version(tensor) != version]
            for tensor in written:
                found = 0 if name in _EMPTY else kinds(tensor)
                event.kinds |= found
                event.dtype = event.dtype or str(tensor.dtype).removeprefix("torch.")
                place = _storage(tensor)
                known = self._writers.get(place)
                inside = known is not None and known.order > event.order  # a custom function's own calls
                if place and (found or _fills(tensor)) and not inside:
                    self._writers[place] = event
                if tensor._base is not None:
                    self._tag(tensor._base, event)
            for tensor in made:
                self._tag(tensor, event)
            if event.kinds and not event.read:
                event.largest = _largest(tensor for tensor, version in before if _version(tensor) == version)
        return result

    def _event(self, operation: str) -> Event:
        self._order += 1
        frame = self._frames[-1]
        caller = sys._getframe(2)
        while not (inside := _is_a_line(caller.f_code)) and caller.f_code is not _FORWARD and caller.f_back is not None:
            caller = caller.f_back
        file, number = (caller.f_code.co_filename, caller.f_lineno) if inside else self._called_at
        return Event(
            self._order, _SPELLINGS.get(operation, operation), "operation", "", frame.path, frame.call, self._block(), file, number
        )

    def _block(self) -> str:
        """The residual block that what runs now belongs to.

        That on whose branch or projection its module lies; else that of the next add in the innermost call that makes any; else
        that of which the smallest module around it holds parts, if it holds parts of no other. Outside of blocks none, nor
        behind the last add of the model's own forward.
        """
        path = self._frames[-1].path
        if found := self._next(holder for holder in self._holders if any(is_in(path, part) for part in holder.inside if part)):
            return found
        for frame in reversed(self._frames):
            if frame.path or not path:
                mine = [holder for holder in self._holders if holder.path == frame.path]
                mine = sorted([h for h in mine if h.call == frame.call] or mine, key=lambda holder: holder.ordinal)
                if mine:
                    to_come = (holder.block for holder in mine if holder.ordinal >= frame.adds)
                    return next(to_come, mine[-1].block if frame.path else "")
        while "." in path:
            path = path.rpartition(".")[0]
            around = [holder for holder in self._holders if any(is_in(part, path) for part in holder.inside)]
            if around:
                return self._next(around) if len({holder.path for holder in around}) == 1 else ""
        return ""

    def _next(self, holders: Iterable[Holder]) -> str:
        """The block of the first of these whose add is still to come, or of the last."""
        found = list(holders)
        return next((h.block for h in found if h not in self._added), found[-1].block if found else "")

    def _writer(self, tensor: Tensor, reader: Event) -> Event:
        """Who wrote what is not finite in it."""
        place = _storage(tensor)
        known = self._writers.get(place)
        if known is None:
            known = Event(reader.order, reader.operation, "constant", "", reader.path, reader.call, reader.block)
            known.file, known.number = reader.file, reader.number
            self._writers[place] = known
        return known

    def _tag(self, tensor: Tensor, event: Event) -> None:
        """The nodes behind it that nobody has made yet were made by this event."""
        stack = [tensor.grad_fn] if tensor.requires_grad else []
        while stack:
            node = stack.pop()
            if node is not None and node not in self._tags:
                self._tags[node] = event
                stack += [each for each, _ in node.next_functions]

    def source(self, tensor: Tensor) -> Event | None:
        """Where what is not finite in an output was born; None where that is only masks."""
        place = _storage(tensor)
        last = self._writers.get(place)
        found = kinds(tensor)
        if last is None or not found:
            return None
        return _origin(last, found)

    # -- backward ------------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Hear of every node of the graph when it runs."""
        for node in self._tags:
            if not hasattr(node, "variable"):
                self._handles.append(node.register_hook(partial(self._node_ran, node)))

    def _node_ran(self, node: Any, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
        came = any(kinds(each) for each in outputs if each is not None)
        self._ran[node] = _Ran(len(self._ran), came, [each is not None and kinds(each) > 0 for each in inputs])

    def backward_source(self) -> tuple[Event, bool] | None:
        """The event whose backward made the first gradient that is not finite, or the sum of several was: then True beside it."""
        feeders: dict[Any, list[Any]] = {}
        start = []
        for node, ran in self._ran.items():
            for (following, _), bad in zip(node.next_functions, ran.made, strict=False):
                if bad and following is not None:
                    feeders.setdefault(following, []).append(node)
                    if hasattr(following, "variable"):
                        start.append(node)
        births: list[tuple[int, Event, bool]] = []
        seen = set(start)
        while start:
            node = start.pop()
            ran = self._ran[node]
            before = [each for each in feeders.get(node, ()) if each is not node]
            if not ran.came or not before:
                births.append((ran.order, self._tags[node], ran.came))
            else:
                start += (each for each in before if each not in seen)
                seen.update(before)
        if not births:
            return None
        _, event, summed = min(births, key=lambda birth: birth[0])
        return event, summed

    def behind(self, event: Event) -> Event | None:
        """Where that was born which a backward had saved and which was not finite; None where all of it was."""
        sources = [origin for writer, found in event.read if (origin := _origin(writer, found)) is not None]
        return min(sources, key=lambda each: each.order, default=None)

    def close(self) -> None:
        """Let go of the graph."""
        self._remove_hooks()
        self._tags.clear()
        self._ran.clear()
        self._writers.clear()


@dataclass(frozen=True, slots=True)
class _Ran:
    order: int
    came: bool  # a gradient came to it that was not finite
    made: list[bool]  # which of those that it gave were not


def _origin(last: Event, found: int) -> Event | None:
    reached: dict[Event, int] = {last: found}
    stack = [last]
    while stack:
        for writer, what in stack.pop().read:
            if writer not in reached:
                stack.append(writer)
            reached[writer] = reached.get(writer, 0) | what
    born = [e for e in reached if _kinds_of(e, reached) & NAN and not any(what & NAN for _, what in e.read)]
    first = min(born, key=lambda event: event.order, default=last)
    ends = {first: reached[first]} if not first.read else dict(_ends(first))
    real = [event for event, what in ends.items() if not _is_mask(event, what)]
    if real:
        loud = [event for event in real if _kinds_of(event, ends) != BELOW]
        return min(loud or real, key=lambda event: event.order)
    if not born:
        return None
    return first if first.operation in _SOFTMAX else min(ends, key=lambda event: event.order)


def _ends(event: Event) -> Iterator[tuple[Event, int]]:
    """The events behind it that read nothing that was not finite, and what was read of them; itself if it placed something."""
    seen, stack = {event}, [event]
    while stack:
        here = stack.pop()
        for writer, what in here.read:
            if not writer.read:
                yield writer, what
            elif writer not in seen:
                seen.add(writer)
                stack.append(writer)


def _kinds_of(event: Event, read: Mapping[Event, int]) -> int:
    """What it wrote, and what was read there: behind torch's back memory may have been written since."""
    return event.kinds | read.get(event, 0)


def _is_mask(event: Event, what: int) -> bool:
    """Whether its infinities were written down as such."""
    if event.kind == "operation":
        return event.operation in _EMPTY or (event.placed and not event.kinds & NAN and not what & ~event.kinds)
    return what == BELOW and event.kind != "parameter"


def _without_running(read: list[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What a normalisation reads: where it takes the batch's statistics, not the running ones, which the pass has spoilt."""
    own = kwargs.get("training", kwargs.get("use_input_stats", args[5] if len(args) > 5 else False))
    running = [*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")]
    return [tensor for tensor in read if not own or not any(tensor is each for each in running)]


def _infinite(tree: Any) -> bool:
    if isinstance(tree, float):
        return math.isinf(tree)
    if isinstance(tree, Mapping):
        return any(_infinite(each) for each in tree.values())
    return isinstance(tree, (list, tuple)) and any(_infinite(each) for each in tree)


def _storage(tensor: Tensor) -> int:
    """What tells its memory from others' as long as it lives; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors, and what only looks like one
        return id(tensor)


def _is_a_line(code: CodeType) -> bool:
    """Whether it may hold the line that called a torch function; a mode of the user's only passes calls on."""
    return is_the_users(code.co_filename) and code.co_name not in ("__torch_function__", "__torch_dispatch__")


def _fills(tensor: Tensor) -> bool:
    """Whether it is all of its storage."""
    try:
        return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return True


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def position_name(position: Iterable[Any]) -> str:
    """Where an argument stands: `args[0]`, `labels`, `batch['pixels']`."""
    side, first, *rest = position
    head = f"args[{first}]" if side == 0 else str(first)
    return head + "".join(f"[{key!r}]" for key in rest)


def is_in(path: str, holder: str) -> bool:
    """Whether a module is another one or below it."""
    return path == holder or path.startswith(f"{holder}.")


_FORWARD = Trace.forward.__code__  # the frame that is around all that a replay calls
