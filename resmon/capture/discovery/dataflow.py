"""The dataflow of one forward pass: a node for every value a tensor has had, and which values each one was made from.

A `Trace` is entered around one forward pass of a model. A TorchFunctionMode sees every torch call; hooks on the model's modules
tell whose forward is running and which values cross module borders. Tensors are known by identity and held weakly, so that
the trace keeps no activation alive. An operation in place gives its tensor a new node; a function that gives its input back
makes none. The trace changes nothing: it only calls what the model calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from threading import get_ident
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from resmon.capture.discovery.additions import (
    ADDITIONS,
    IN_PLACE,
    SUBTRACTIONS,
    Term,
    addition,
    adds_up,
    hidden_in,
    is_kernel,
    value,
)
from resmon.capture.discovery.marker import residual_add
from resmon.capture.host.compiler import plain
from resmon.capture.host.hook import Hook

# Names of torch functions and tensor methods, in all their spellings.
ADDING = frozenset("add add_ __add__ __radd__ __iadd__ sub sub_ __sub__ __isub__".split())
SCALING = frozenset(
    "mul mul_ __mul__ __rmul__ __imul__ multiply div div_ __truediv__ __itruediv__ true_divide divide neg __neg__".split()
)
ARITHMETIC = (
    ADDING | SCALING | frozenset("__rsub__ rsub __rtruediv__ addcmul addcmul_ addcdiv lerp lerp_ pow __pow__ where".split())
)

# No gradient takes the way through these, so no residual connection does.
_CUTS = frozenset({"detach", "detach_", "data"})
_NOISE = frozenset({"randn", "randn_like", "normal", "normal_"})
_DRAWS = frozenset("rand rand_like randint randint_like bernoulli bernoulli_ uniform_ random_ multinomial randperm".split())
_COPIES = frozenset({"clone", "contiguous", "alias"})
_CHOOSES = SCALING | {"where", "masked_fill", "masked_fill_"}
# These take shape, dtype or device of some arguments, not their values: of all but the first, or of all.
_VALUE_OF_FIRST = frozenset("expand_as view_as reshape_as type_as to".split())
_VALUE_OF_NONE = frozenset(
    """zeros_like ones_like full_like empty_like rand_like randn_like randint_like
    new_zeros new_ones new_full new_empty new_tensor new_empty_strided""".split()
)
# Functions that take `inplace=True` or `out=`, and then return what they wrote into.
_MAY_WRITE = frozenset(
    """relu relu6 leaky_relu elu selu celu silu mish hardtanh hardswish hardsigmoid rrelu threshold dropout dropout1d dropout2d
    dropout3d alpha_dropout feature_alpha_dropout add sub mul div matmul""".split()
)


class Frame:
    """One call of one module's forward.

    `call` numbers the calls of that module in this pass, from 0; `adds` counts the candidate adds inside it, its submodules' too.
    `bare` says that it runs without gradients, `aside` that it does so elsewhere than in a custom function, where all do.
    """

    __slots__ = ("adds", "aside", "bare", "call", "path")

    def __init__(self, path: str, call: int, *, bare: bool = False, aside: bool = False) -> None:
        self.path = path
        self.call = call
        self.adds = 0
        self.bare, self.aside = bare, aside


@dataclass(frozen=True, slots=True)
class Place:
    """Where a hook meets a value: going into or out of one call of a module.

    `position` holds the keys that lead to it in (args, kwargs) or in the output; empty where the output is the tensor itself.
    """

    frame: Frame
    side: str  # "in" or "out"
    position: tuple[Any, ...]

    @property
    def path(self) -> str:
        return self.frame.path

    @property
    def call(self) -> int:
        return self.frame.call


class Node:
    """One value of one tensor.

    `parents` are the floating-point values that it was computed from: dependence through integers (token ids, positions,
    routing) is no way for a gradient. `live` tells whether it depends on the model's input at all; what is not live is made of
    parameters and constants only, and `parameters` names the former. `looked_up` is what the input's integers alone select from
    those, such as an embedding, until something mixes it with a parameter. `places` are where hooks would meet it. `carries` is
    set where it is a residual add's result: the skip operand that lives on in it. `random` is what was drawn, and `drops` says that
    the value was multiplied with, or chosen by, something random that has one number for each sample, or one for all.
    """

    __slots__ = (
        "carries",
        "drops",
        "frame",
        "live",
        "looked_up",
        "noise",
        "numel",
        "op",
        "order",
        "parameters",
        "parents",
        "places",
        "random",
    )

    def __init__(self, order: int, op: str, parents: tuple[Node, ...], live: bool, frame: Frame | None, numel: int) -> None:
        self.order = order
        self.op = op
        self.parents = parents
        self.live = live
        self.frame = frame
        self.numel = numel
        self.parameters: frozenset[str] = frozenset()
        self.noise = False
        self.looked_up = False
        self.places: list[Place] = []
        self.carries: Node | None = None
        self.random = False
        self.drops = False


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """A candidate add that the trace meets, told to the listener before it runs."""

    first: Tensor
    second: Tensor
    first_node: Node
    second_node: Node
    factors: tuple[float, float]  # what the operands are multiplied with
    frame: Frame
    ordinal: int  # how many candidate adds this call of the holder has seen before
    marked: bool  # through resmon.residual_add
    varies: bool  # the factors are arguments of the call, and may be others in the next one
    into: bool  # the first is changed in place


Does = Literal["adds", "may add", "subtracts"]


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """A call that reads two values and may add them, where neither can be taken.

    `does` says whether it adds them, may add them, or subtracts the second, which leaves `result`.
    """

    operation: str
    frame: Frame
    first: Node
    second: Node
    does: Does
    result: Node | None = None


# Hears of each candidate add before it runs, and answers with what is to be told its result, or None.
Listener = Callable[[Add], Callable[[Tensor, Node], None] | None]


def leaves(tree: Any, position: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors in nested tuples, lists and mappings (which model outputs are), each with its position."""
    if isinstance(tree, Tensor):
        yield position, tree
    elif isinstance(tree, (tuple, list)):
        for i, item in enumerate(tree):
            yield from leaves(item, (*position, i))
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from leaves(item, (*position, key))


def tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterable[Tensor]:
    """Those among a call's arguments, in order. Most models are given nothing else, and nothing is to be searched."""
    given = (*args, *kwargs.values())
    if set(map(type, given)) == {Tensor}:
        return given
    return (tensor for _, tensor in leaves((args, kwargs)))


def contents(batch: Any) -> Iterator[Tensor]:
    """The tensors in `batch`, also in attributes of objects such as dataclasses and graphs; only so much of it is looked at."""
    stack, seen = [batch], 0
    while stack and seen < 10_000:
        item = stack.pop()
        seen += 1
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list)):
            stack += item
        elif isinstance(item, Mapping):
            stack += item.values()
        elif not isinstance(item, (type, nn.Module, ModuleType)):
            stack += getattr(item, "__dict__", {}).values()


class Trace(TorchFunctionMode):
    """Traces one forward pass of `model`, which `begin` and `finish` enclose. `listener` hears of every candidate add.

    `begin` and `finish` stand where hooks of the model itself would, because hooks that are added during a call are not called.
    """

    def __init__(self, model: nn.Module, listener: Listener) -> None:
        super().__init__()
        self._listener = listener
        self._nodes: Any = WeakIdKeyDictionary()
        self._order = 0
        self._calls: dict[str, int] = {}
        self._frames: list[Frame] = []
        self._entered: list[Frame] = []  # all that were, in order
        self._functions = 0  # custom ones that are running, inside of each other
        self.mixed: frozenset[str] = frozenset()  # modules of which some calls are aside, and some are not
        self.bare: frozenset[str] = frozenset()  # modules of which some calls count that run without gradients
        self._handles: list[RemovableHandle] = []
        self._function_apply: Any = None
        self._paths = {module: path for path, module in model.named_modules()}
        self._model = model
        self._slices: dict[tuple[Node, object], Node] = {}  # by what was sliced, and how
        self.fused: list[Fused] = []  # in order of execution
        self._by_graph: dict[int, Node] = {}  # by the sequence number of the autograd function that made the value
        self._first = 0  # of these numbers in this pass
        self._names: dict[str, str] = {}  # of each parameter, by the path under which a module has it
        for path, parameter in model.named_parameters(remove_duplicate=False):
            node = self._nodes.get(parameter) or self._leaf(parameter, live=False)
            node.parameters = node.parameters or frozenset({plain(path)})
            (self._names[path],) = node.parameters
        for buffer in model.buffers():
            self._leaf(buffer, live=False)

    @property
    def calls(self) -> Mapping[str, int]:
        """How often each module has been called, by its path."""
        return self._calls

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names, enter, leave = _Here(self._name_parameters), _Here(self._enter_module), _Here(self._leave_module)
        for module in self._paths:
            if module is not self._model and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                if module._parameters:  # behind FSDP's own hook
                    self._handles.append(module.register_forward_pre_hook(names))
                self._handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
                self._handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        self._wrap_function_apply()
        self._enter_module(self._model, args, kwargs)
        self.__enter__()  # type: ignore[no-untyped-call]

    def finish(self, output: Any) -> None:
        """Also after a forward that raised, with whatever output; every trace of the trace is gone afterwards."""
        if self._function_apply is None:
            return
        if _get_current_function_mode() is self:  # not so after an interrupt that its owner has cleared away
            self.__exit__(None, None, None)
        torch.autograd.Function.apply = self._function_apply  # type: ignore[method-assign]
        self._function_apply = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        del self._frames[1:]
        self._leave_module(self._model, (), {}, output)
        self._number_anew()

    def _number_anew(self) -> None:
        """Of a module that runs with gradients and aside, as where a pass is fed with its own output, the former count."""
        self.mixed = frozenset(f.path for f in self._entered if f.aside) & {f.path for f in self._entered if not f.aside}
        calls = dict.fromkeys(self.mixed, 0)
        for frame in self._entered:
            if frame.path in self.mixed:
                frame.call = -1 if frame.aside else calls[frame.path]
                calls[frame.path] += not frame.aside
        self._calls |= calls
        self.bare = frozenset(frame.path for frame in self._entered if frame.bare and frame.call >= 0)
        self._entered.clear()

    def _wrap_function_apply(self) -> None:
        # Custom autograd functions are no torch functions: without this, what their kernels return would come from nowhere.
        original = torch.autograd.Function.__dict__["apply"]

        thread = get_ident()

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if get_ident() != thread:
                return original.__get__(None, cls)(*args, **kwargs)
            read = [(tensor, self._node(tensor)) for _, tensor in leaves((args, kwargs))]
            before = self._order
            self._functions += 1
            try:
                result = original.__get__(None, cls)(*args, **kwargs)  # no Python function any more in torch 2.14
            finally:
                self._functions -= 1
            known = {node for _, node in read}
            with torch._C.DisableTorchFunction():
                for _, tensor in leaves(result):
                    node = self._nodes.get(tensor)
                    # What its forward computed from them with torch functions has been seen already; what it took out of them (as
                    # the local part of a DTensor) has not.
                    if node is None or not _made_from(known, node, before):
                        self._record(tensor, cls.__name__, read)
                        if is_kernel(cls):
                            self._suspect(cls.__name__, _beside(read, tensor), tensor)
            return result

        self._function_apply = original
        torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]

    # -- modules -------------------------------------------------------------------------------------------------------

    def _enter_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = self._paths[module]
        call = self._calls.get(path, 0)
        self._calls[path] = call + 1
        outermost = not self._frames
        frame = Frame(path, call, bare=not torch.is_grad_enabled(), aside=self._is_aside())
        self._frames.append(frame)
        self._entered.append(frame)
        if outermost:
            for tensor in contents((args, kwargs)):
                if tensor not in self._nodes:
                    self._leaf(tensor, live=True)
        for position, tensor in leaves((args, kwargs)):
            node = self._node(tensor)
            node.places.append(Place(frame, "in", position))

    def _is_aside(self) -> bool:
        return not (torch.is_grad_enabled() or self._functions)

    def _name_parameters(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # In this pass a module may have other parameters than before: FSDP puts gathered ones in the place of this rank's shards.
        path = self._paths[module]
        for name, parameter in module._parameters.items():
            full = f"{path}.{name}" if path else name
            if parameter is not None and full in self._names:
                node = self._nodes.get(parameter) or self._leaf(parameter, live=False)
                node.live, node.parameters = False, frozenset({self._names[full]})

    def _leave_module(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        frame = self._frames[-1]
        for position, tensor in leaves(output):
            self._node(tensor).places.append(Place(frame, "out", position))
        self._frames.pop()

    # -- values --------------------------------------------------------------------------------------------------------

    def _leaf(self, tensor: Tensor, *, live: bool) -> Node:
        self._order += 1
        # A lazy module's parameter has no size before its first pass.
        numel = 0 if torch.nn.parameter.is_lazy(tensor) else tensor.numel()
        node = Node(self._order, "", (), live, None, numel)
        self._nodes[tensor] = node
        return node

    def _node(self, tensor: Tensor) -> Node:
        node: Node | None = self._nodes.get(tensor)
        if node is not None:
            return node
        # Not seen before: made by what is no torch function, such as a scripted one, part of an older graph, or a constant.
        with torch._C.DisableTorchFunction():
            made_from = self._made_from(tensor)
            if not made_from:
                return self._leaf(tensor, live=tensor.requires_grad)
            self._suspect("TorchScript or an extension", [source for _, source in made_from], tensor)
            return self._record(tensor, "unseen", made_from)

    def _made_from(self, tensor: Tensor) -> list[tuple[Tensor, Node]]:
        """The known values nearest behind `tensor` in the graph of this pass, in order of execution as far as the graph tells."""
        found: dict[Node, None] = {}
        queue = deque([tensor.grad_fn] if self._by_graph else [])
        seen = set(queue)
        while queue:
            function = queue.popleft()
            if function is None:
                continue
            variable = getattr(function, "variable", None)  # of a leaf of the graph
            number = function._sequence_nr()
            node = self._nodes.get(variable) if variable is not None else self._by_graph.get(number)
            if node is not None:
                found[node] = None
            elif variable is None and number >= self._first:
                queue += (f for f, _ in function.next_functions if f not in seen)
                seen.update(f for f, _ in function.next_functions)
        return [(tensor, node) for node in reversed(found)]

    def _record(self, tensor: Tensor, op: str, read: Sequence[tuple[Tensor, Node]]) -> Node:
        """A new node for `tensor`, which `op` computed from what it read."""
        self._order += 1
        live = any(node.live for _, node in read)
        way = _is_floating(tensor) and op not in _CUTS
        parents = tuple(node for t, node in read if _is_floating(t)) if way else ()  # twice where it was read twice: x * x
        node = Node(self._order, op, parents, live, self._frames[-1] if self._frames else None, tensor.numel())
        if not live:
            node.parameters = frozenset().union(*(n.parameters for _, n in read))
            node.noise = op in _NOISE or (not node.parameters and any(n.noise for _, n in read))
            node.random = op in _DRAWS or (not node.parameters and any(n.random for _, n in read))
        else:
            sources = [parent for parent in parents if parent.live]
            unmixed = op in ARITHMETIC or not any(parent.parameters for parent in parents)
            samples = tensor.shape[0] if tensor.dim() else 1
            node.drops = op in _CHOOSES and any(n.random and not n.live and n.numel in (1, samples) for _, n in read)
            node.looked_up = not sources or (unmixed and all(source.looked_up for source in sources))
        self._nodes[tensor] = node
        # A view of what was changed in place would be given a new autograd function by being asked, out of its turn.
        if not (tensor._is_view() and tensor._version) and tensor.grad_fn is not None:
            number = tensor.grad_fn._sequence_nr()
            self._first = self._first or number
            self._by_graph[number] = node
        return node

    # -- calls ---------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._frames:
            return func(*args, **kwargs)
        told, added = None, None
        if func in ADDITIONS and (adds := addition(func, args, kwargs)) is not None:
            frame = self._frames[-1]
            added = first, second = self._operand(adds[0]), self._operand(adds[1])
            varies = set(adds[2]) != {1} or "alpha" in kwargs
            marked, into = func is residual_add, func in IN_PLACE
            add = Add(first[0], second[0], first[1], second[1], adds[2], frame, frame.adds, marked, varies, into)
            if frame.aside or not self._is_aside():  # what a call with gradients adds without them is none of its blocks
                told = self._listener(add)
            for outer in self._frames:
                outer.adds += 1
        read = [(tensor, self._node(tensor)) for _, tensor in leaves((args, kwargs))]
        if func is residual_add and added:  # of the kernel that made the sum there is no more to be said
            pair = {node for _, node in added}
            self.fused = [call for call in self.fused if {call.first, call.second} != pair]
        name = _name(func)
        hidden = self._hidden(name, args, kwargs, read)
        result = func(*args, **kwargs)
        if name in _VALUE_OF_NONE:
            read = []
        elif name in _VALUE_OF_FIRST:
            read = read[:1]
        op = "subsample" if func is Tensor.__getitem__ and _subsamples(args[1]) else name
        if func is Tensor.__setitem__:
            self._wrote(args[0], op, read)
        for _, tensor in leaves(result):
            given = any(t is tensor for t, _ in read)
            if given and not _writes(op, kwargs):
                continue  # the function gave its input back
            sliced = self._slicing(args[1]) if func is Tensor.__getitem__ else None
            if isinstance(sliced, str) and tensor.numel() == args[0].numel():
                op = "alias"  # a crop or a padding's end that came to nothing
            # What multiplies and adds in one is the sum of what it adds.
            node = self._wrote(tensor, op, read) if given else self._record(tensor, "add" if added else op, added or read)
            if sliced:
                # The same part taken again has the same values, also out of a copy.
                before = self._slices.setdefault((_copied(read[0][1]), sliced), node)
                node = node if before is node else self._record(tensor, "alias", [(tensor, before)])
            if hidden is not None and node.numel == hidden[0].numel:
                self.fused.append(Fused(name, self._frames[-1], *hidden, "adds"))
                hidden = None
            elif func in SUBTRACTIONS and len(read) == 2 and all(n.live and n.numel == node.numel for _, n in read):
                self.fused.append(Fused(name, self._frames[-1], read[0][1], read[1][1], "subtracts", node))
            elif is_kernel(func):
                self._suspect(str(func), _beside(read, tensor), tensor)
            if told is not None:
                told(tensor, node)
        return result

    def _operand(self, term: Term) -> tuple[Tensor, Node]:
        """What an addition adds, computed here where no tensor of the model's holds it."""
        tensor = value(term)
        if isinstance(term, Tensor):
            return tensor, self._node(tensor)
        read = [(factor, self._node(factor)) for factor in term[1:]]
        return tensor, self._record(tensor, "div" if term[0] == "div" else "mul", read)

    def _hidden(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], read: Sequence[tuple[Tensor, Node]]
    ) -> tuple[Node, Node] | None:
        """The two values that a call is about to add, where the second is nowhere a tensor or both are stacked in one."""
        if (skip := hidden_in(name, args, kwargs)) is not None:
            to = self._node(skip)
            place = next(i for i, (tensor, _) in enumerate(read) if tensor is skip)  # once: addmm(x, x, w) multiplies it, too
            parents = tuple(node for tensor, node in (*read[:place], *read[place + 1 :]) if _is_floating(tensor))
            self._order += 1
            return to, Node(self._order, name.strip("_"), parents, True, self._frames[-1], skip.numel())
        if adds_up(name):
            live = [node for _, node in read if node.live]
            if len(live) == 1 and live[0].op == "stack" and len(live[0].parents) == 2:
                first, second = live[0].parents
                return first, second
        return None

    def _suspect(self, operation: str, sources: Sequence[Node], result: Tensor) -> None:
        """A kernel that torch knows nothing of may add any two of its sources that are of its result's size."""
        if self._frames:
            alike = [node for node in sources if node.live and node.numel == result.numel()]
            self.fused.extend(Fused(operation, self._frames[-1], *pair, "may add") for pair in combinations(alike, 2))

    def _slicing(self, index: Any) -> object:
        """A key for an index of numbers and slices, or by one tensor; None for any other."""
        if isinstance(index, Tensor):
            return self._node(index)
        return _slicing(index) or None

    def _wrote(self, tensor: Tensor, op: str, read: Sequence[tuple[Tensor, Node]]) -> Node:
        """`op` changed `tensor` in place, and with it the tensor that it is a view of."""
        node = self._record(tensor, op, read)
        if tensor._base is not None:
            self._record(tensor._base, op, [(tensor._base, self._node(tensor._base)), (tensor, node)])
        return node


class _Here(Hook):
    """A hook that acts in the thread in which it was made: others may call the model meanwhile."""

    def __init__(self, act: Callable[..., None]) -> None:
        self._act = act
        self._thread = get_ident()

    def __call__(self, *arguments: Any) -> None:
        if get_ident() == self._thread:
            self._act(*arguments)


def _made_from(sources: set[Node], node: Node, before: int) -> bool:
    """Whether `node` is one of `sources` or was computed from one by what happened since `before`."""
    stack, seen = [node], {node}
    while stack:
        node = stack.pop()
        if node in sources:
            return True
        if node.order > before:
            stack += (parent for parent in node.parents if parent not in seen)
            seen.update(node.parents)
    return False


def _name(func: Any) -> str:
    name: str = getattr(func, "__name__", "")
    if name == "__get__":  # a property, such as Tensor.T or Tensor.data
        name = getattr(func.__self__, "__name__", name)
    return name


def _subsamples(index: Any) -> bool:
    """Whether x[index] keeps every n-th element along some dimensions and all along the others, as strided pooling does."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is ... or (isinstance(part, slice) and part.start is None and part.stop is None) for part in parts)


def _beside(read: Sequence[tuple[Tensor, Node]], result: Tensor) -> list[Node]:
    """The values that a kernel has read as floating-point tensors; none where it hands one of them through."""
    return [] if any(_share_memory(t, result) for t, _ in read) else [node for t, node in read if _is_floating(t)]


def _share_memory(one: Tensor, other: Tensor) -> bool:
    try:
        return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors, and what only looks like one
        return one is other


def _copied(node: Node) -> Node:
    """The value that `node` is a copy of, number for number, or itself."""
    while node.op in _COPIES and len(node.parents) == 1:
        node = node.parents[0]
    return node


def _slicing(index: Any) -> str:
    """A key for an index of numbers and slices; empty for any other."""
    parts = index if isinstance(index, tuple) else (index,)
    numbers = [n for part in parts for n in ((part.start, part.stop, part.step) if isinstance(part, slice) else (part,))]
    return repr(parts) if all(n is None or n is ... or isinstance(n, int) for n in numbers) else ""


def _writes(op: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether the function of that name changes a tensor that it returns."""
    in_place = (op.endswith("_") and not op.endswith("__")) or op.startswith("__i")
    made_elsewhere = kwargs.get("output") is not None  # residual_add's sum
    return in_place or op in _MAY_WRITE or made_elsewhere


def _is_floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
