"""The hooks that take a residual add's operands in every pass after the traced one.

Where skip, branch and output all cross module borders, hooks on those modules take them (`Tap`). Where one does not, because of a
functional dropout, say, a TorchFunctionMode that the block's own hooks enter and leave sees the very call (`AddMode`). Both are
callable objects and not closures, so that a watched model can be pickled and copied: the copy carries hooks that do nothing.

Where torch.compile traces them they become a few tensor operations on the site's cell (cells.py); between the graphs of a compiled
model they write the same cell.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from resmon.capture.discovery.additions import ADDITIONS, Addition, addition, value
from resmon.capture.discovery.dataflow import Place
from resmon.capture.discovery.survey import Sighting
from resmon.capture.host import compiler
from resmon.capture.host.hook import Hook
from resmon.capture.probes.channel import Channel

if TYPE_CHECKING:
    from resmon.capture.probes.cells import Cell


class Watcher(Protocol):
    """What a hook needs to know of the one who installed it."""

    active: bool  # a pass is under way that is to be observed
    thread: int  # in which it is: other threads may call the model's modules meanwhile
    compiled: bool  # some of the model's hooks are in graphs
    passes: int  # that were observed so far
    seconds: float  # what observing has cost in this step
    pausing: bool  # a pass is done again, of which nothing is to be observed
    aside: int  # thread in which a backward pass runs whose gradients are none of the loss's, 0 where there is none

    def fault(self, error: Exception) -> None: ...
    def fault_in_graph(self, error: str) -> None: ...
    def trace_again(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """Where one site's operands are taken: by hooks at three places, or, where `places` is None, at the call itself.

    Only the call knows what it multiplies the operands with, which may be another number in every pass.
    """

    channel: Channel
    places: tuple[Place, Place, Place] | None  # skip, branch, output
    holder: tuple[str, int]
    ordinal: int
    adds: int  # candidate adds in one call of the holder
    skip_is_first: bool

    def ordered(self, added: Addition) -> Addition:
        """Skip before branch."""
        first, second, (one, two) = added
        return added if self.skip_is_first else (second, first, (two, one))


def plan(sighting: Sighting, channel: Channel) -> Plan:
    holder = sighting.frame.path
    inside = holder + "." if holder else ""

    def within(place: Place) -> bool:
        return place.path != holder and place.path.startswith(inside)

    def choose(places: Sequence[Place], *wanted: Callable[[Place], bool]) -> Place | None:
        return next((p for want in wanted for p in places if want(p) and p.call >= 0), None)

    def own(side: str) -> Callable[[Place], bool]:
        return lambda p: (p.path, p.call) == sighting.call and p.side == side

    places = None
    if sighting.residual.kind != "marked" and not sighting.varies:
        # The outermost module's input is not met: hooks of ours at its border come before the one that begins the pass.
        inner = (own("in"),) if holder else ()
        skip = choose(sighting.skip.places[: sighting.met[0]], *inner, within, lambda p: p.side == "out")
        branch = choose(sighting.branch.places[: sighting.met[1]], lambda p: within(p) and p.side == "out", within)
        output = choose(sighting.output.places, lambda p: within(p) and p.side == "in", own("out"))
        if skip and branch and output:
            places = (skip, branch, output)
    return Plan(
        channel,
        places,
        sighting.call,
        sighting.ordinal,
        sighting.frame.adds,
        sighting.residual.skip_is_first,
    )


@dataclass(frozen=True, slots=True)
class Installed:
    """The hooks that are on a model."""

    handles: Sequence[RemovableHandle] = ()
    taps: Sequence[Tap] = ()
    behind: Sequence[Tap] = ()  # those that see what other hooks have made of a value
    modes: Sequence[AddMode] = ()

    def begin_pass(self) -> None:
        for tap in self.behind:
            tap.stay_last()
        for mode in self.modes:
            mode.begin_pass()

    def begin_pass_in_graph(self) -> None:
        for tap in self.taps:
            tap.begin_pass_in_graph()
        for mode in self.modes:
            mode.begin_pass_in_graph()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        for tap in self.taps:
            tap.take_down()


@dataclass(frozen=True, slots=True)
class Habit:
    """How a module runs in a pass, as far as is known."""

    most: int  # calls that count
    bare: bool  # some of them run without gradients, as in a reentrant checkpoint; else none that does so counts
    mixed: bool  # others that do so were seen

    @property
    def once(self) -> bool:
        """So that a graph need not count."""
        return self.most == 1

    def counts(self, watcher: Watcher) -> bool:
        """Whether a call does that runs without gradients."""
        if not (self.bare or self.mixed or compiler.traces()):
            watcher.trace_again()
        return self.bare


def install(watcher: Watcher, model: nn.Module, plans: Sequence[Plan], habits: Mapping[str, Habit]) -> Installed:
    """Put the hooks that `plans` need on the modules of `model`, whose habits are told by their paths."""
    taps: dict[tuple[str, bool, bool], Tap] = {}
    modes: dict[str, AddMode] = {}
    for p in plans:
        if p.places is None:
            path, call = p.holder
            modes.setdefault(path, AddMode(watcher, path, habits[path])).add(call, p)
            continue
        for role, place in enumerate(p.places):
            # A hook of the user's that replaces what passes comes after the value of an add, and before an operand is used.
            first = place.side == "in" or role == OUTPUT
            tap = taps.setdefault((place.path, place.side == "in", first), Tap(watcher, habits[place.path]))
            tap.add(place.call, Reading(role, place.position, p.channel, GradientTap(watcher, p.channel)))
    handles = []
    for (path, goes_in, first), tap in taps.items():
        tap.sort()
        tap.hang(model.get_submodule(path), goes_in=goes_in, first=first or not path)
    for path, mode in modes.items():
        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(Enter(mode), with_kwargs=True))
        # On the outermost module before the watcher's own hook, which ends the pass.
        handles.append(module.register_forward_hook(Leave(mode), with_kwargs=True, always_call=True, prepend=not path))
    behind = tuple(tap for (path, _, first), tap in taps.items() if not (first or not path))
    return Installed(handles, tuple(taps.values()), behind, tuple(modes.values()))


SKIP, BRANCH, OUTPUT = range(3)


@dataclass(frozen=True, slots=True)
class Reading:
    role: int
    position: tuple[Any, ...]
    channel: Channel
    gradient: GradientTap

    def write(self, tensor: Tensor) -> None:
        """Take the value in the site's cell, in a graph or between two."""
        cell = self.channel.cell
        if cell is None or not cell.takes(tensor):
            return
        if self.role != OUTPUT:
            cell.offer(self.role, tensor, 1)
            return
        cell.offer_output(tensor)
        if tensor.requires_grad:
            if compiler.traces():
                cell.expect_gradient(tensor)
            else:
                hang(tensor, self.gradient)


def to_be_traced(watcher: Watcher) -> bool:
    """Whether a graph that is being made is to observe: one for training. That of an evaluation has nothing of ours.

    A graph that builds a graph for gradients asks for no state of ours: its recomputation in a checkpoint must be the same graph.
    """
    return compiler.OBSERVES and (torch.is_grad_enabled() or watcher.active) and not compiler.exports()


class Tap(Hook):
    """The hook on one side of one module; `readings` by the call of the module in the pass."""

    def __init__(self, watcher: Watcher, habit: Habit) -> None:
        self._watcher = watcher
        self._habit = habit  # of the module
        self._once = habit.once
        self._readings: dict[int, list[Reading]] = {}
        self._calls = 0  # of the module
        self._pass = -1  # in which they were counted
        self._module: nn.Module | None = None
        self._handle: RemovableHandle | None = None
        self._goes_in = False

    def hang(self, module: nn.Module, *, goes_in: bool, first: bool) -> None:
        """Hook onto the input or the output side of `module`, before or behind all other hooks."""
        self._module, self._goes_in = module, goes_in
        register = module.register_forward_pre_hook if goes_in else module.register_forward_hook
        self._handle = register(self, with_kwargs=True, prepend=first)

    def take_down(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def add(self, call: int, reading: Reading) -> None:
        self._readings.setdefault(call, []).append(reading)

    def sort(self) -> None:
        # A value may be the output of one site and the skip of the next: the output counts first.
        for readings in self._readings.values():
            readings.sort(key=lambda r: -r.role)

    def stay_last(self) -> None:
        """Hook on anew where somebody has hooked on behind."""
        module, handle = self._module, self._handle
        if module is not None and handle is not None and next(reversed(module._forward_hooks)) != handle.id:
            handle.remove()
            self.hang(module, goes_in=self._goes_in, first=False)

    def begin_pass_in_graph(self) -> None:
        if not self._once:
            self._calls = 0

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if compiler.traces():
            self._trace((args, kwargs) if output is None else output)
            return
        watcher = self._watcher
        if not watcher.active or watcher.thread != get_ident():
            if torch._C._current_graph_task_id() != -1 and not watcher.pausing:
                self._recomputed(args, kwargs, output)
            return
        if not torch.is_grad_enabled() and not self._habit.counts(watcher):
            return
        started = perf_counter()
        if self._pass != watcher.passes:
            self._pass, self._calls = watcher.passes, 0
        readings = self._readings.get(self._calls)
        self._calls += 1
        if readings is None:
            if self._calls > self._habit.most:
                watcher.trace_again()
            return
        tree = (args, kwargs) if output is None else output
        try:
            for reading in readings:
                tensor = at(tree, reading.position)
                if tensor is not None:
                    if watcher.compiled:
                        reading.write(tensor)
                    elif reading.role == SKIP:
                        reading.channel.offer_skip(tensor, 1)
                    elif reading.role == BRANCH:
                        reading.channel.offer_branch(tensor, 1)
                    elif reading.channel.offer_output(tensor):
                        reading.channel.count()
                        if tensor.requires_grad:
                            hang(tensor, reading.gradient)
        except Exception as error:
            watcher.fault(error)
        watcher.seconds += perf_counter() - started

    def _trace(self, tree: Any) -> None:
        """What a graph is to do in the place of this hook."""
        if not to_be_traced(self._watcher) or not (torch.is_grad_enabled() or self._habit.counts(self._watcher)):
            return
        readings = self._readings.get(0 if self._once else compiler.freely(self._count))
        try:
            for reading in readings or ():
                tensor = at(tree, reading.position)
                if tensor is not None:
                    reading.write(tensor)
        except Exception as error:
            compiler.freely(self._watcher.fault_in_graph, f"{type(error).__name__}: {error}")

    def _count(self) -> int:
        call = self._calls
        self._calls += 1
        return call

    def _recomputed(self, args: Any, kwargs: Any, output: Any) -> None:
        # A checkpoint runs the forward again inside the backward pass. The values have been taken; but with the reentrant kind only
        # this second output belongs to a graph.
        try:
            tree = (args, kwargs) if output is None else output
            for reading in self._readings.get(0, ()) if len(self._readings) == 1 else ():
                tensor = at(tree, reading.position) if reading.role == OUTPUT else None
                if tensor is not None and tensor.requires_grad:
                    hang(tensor, reading.gradient)
        except Exception as error:
            self._watcher.fault(error)


def at(tree: Any, position: tuple[Any, ...]) -> Tensor | None:
    """The tensor at `position` in nested arguments or outputs, or None where this call is built otherwise."""
    try:
        for key in position:
            tree = tree[key]
    except (LookupError, TypeError):
        return None
    return tree if isinstance(tree, Tensor) else None


class GradientTap(Hook):
    """The hook on a site's output that the backward pass calls with its gradient."""

    __slots__ = ("_channel", "_watcher")

    def __init__(self, watcher: Watcher, channel: Channel | None) -> None:
        self._watcher = watcher
        self._channel = channel

    def belongs_to(self, channel: Channel) -> None:
        """Named later, where the gradient's site has its channel only once the traced pass is over."""
        self._channel = channel

    def __call__(self, gradient: Tensor) -> None:
        watcher, channel = self._watcher, self._channel
        if channel is None or compiler.traces():  # the backward pass is compiled: one that breaks there may fail the loop
            return
        if watcher.aside and (watcher.aside == get_ident() or not gradient.is_cpu):  # a GPU's have threads of their own
            return
        started = perf_counter()
        try:
            channel.gradient(gradient)
        except Exception as error:
            watcher.fault(error)
        watcher.seconds += perf_counter() - started


def hang(tensor: Tensor, tap: Callable[[Tensor], None]) -> None:
    """`tensor.register_hook(tap)`, less the handle to take it off again, which is most of what that costs."""
    node = tensor.grad_fn  # made anew each time that it is asked for
    if node is not None and tensor._backward_hooks is None:
        tensor._backward_hooks = OrderedDict({_OURS: tap})
        node._register_hook_dict(tensor)
    else:
        tensor.register_hook(tap)


_OURS = -1  # handles of hooks have numbers from 0 on


class Visit:
    """Where an AddMode is: which call of its module it is in, and what it has met there.

    An object of its own, for torch.compile follows what changes in a plain object and loses some of what changes in a mode.
    """

    __slots__ = ("adds", "calls", "disagreed", "entered", "here", "observing", "taken", "thread", "traced")

    def __init__(self) -> None:
        self.calls = 0
        self.adds = 0
        self.here: Mapping[int, Plan] = {}
        self.observing = False
        self.entered = False
        self.thread = 0  # in which it was entered
        self.disagreed = False  # a graph has made other adds than the traced call
        self.taken: list[tuple[Channel, GradientTap]] = []
        self.traced: list[Cell] = []  # what a graph took


class AddMode(Hook, TorchFunctionMode):
    """Sees the torch calls inside one module and takes the operands of its residual adds, known by their ordinal in the call.

    What it took counts when the module is left after just as many adds as in the traced call: another way through the block may
    make other adds of the same ordinals.
    """

    def __init__(self, watcher: Watcher, path: str, habit: Habit) -> None:
        super().__init__()
        self.path = path  # of its module
        self._watcher = watcher
        self._habit = habit  # of the module
        self._once = habit.once
        self._plans: dict[int, dict[int, Plan]] = {}
        self._visit = Visit()

    def add(self, call: int, plan: Plan) -> None:
        self._plans.setdefault(call, {})[plan.ordinal] = plan

    @property
    def disagreed(self) -> bool:
        return self._visit.disagreed

    def begin_pass(self) -> None:
        self._visit.calls = 0

    def begin_pass_in_graph(self) -> None:
        if not self._once:
            self._visit.calls = 0

    def enter_in_graph(self) -> None:
        visit = self._visit
        if not to_be_traced(self._watcher) or not (torch.is_grad_enabled() or self._habit.counts(self._watcher)):
            return
        call = next(iter(self._plans)) if self._once else visit.calls
        if not self._once:
            visit.calls += 1
        visit.here = self._plans.get(call, {})
        visit.observing = True
        visit.adds = 0
        if visit.here:
            visit.entered = True
            self.__enter__()  # type: ignore[no-untyped-call]

    def leave_in_graph(self) -> None:
        visit = self._visit
        if visit.entered:
            visit.entered = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            if visit.adds != next(iter(visit.here.values())).adds:
                self._take_back()
                visit.disagreed |= visit.adds > 0
            visit.traced.clear()

    def enter(self) -> None:
        visit = self._visit
        observing = self._watcher.active and self._watcher.thread == get_ident()
        recomputing = not observing and not self._watcher.pausing and torch._C._current_graph_task_id() != -1
        if not observing and not (recomputing and len(self._plans) == 1):
            return
        if visit.entered and visit.thread != get_ident():  # a recomputation in one thread, a pass in another
            return
        if observing and not torch.is_grad_enabled() and not self._habit.counts(self._watcher):
            return
        visit.thread = get_ident()
        call = visit.calls if observing else next(iter(self._plans))
        visit.calls += observing
        if visit.calls > self._habit.most:
            self._watcher.trace_again()
        visit.here = self._plans.get(call, {})
        visit.observing = observing
        visit.adds = 0
        visit.taken.clear()
        visit.traced.clear()
        if visit.here:
            visit.entered = True
            self.__enter__()  # type: ignore[no-untyped-call]

    def abandon(self) -> None:
        """The module was left without its hook: an interrupt passes by every hook."""
        self._visit.entered = False

    def leave(self) -> None:
        visit = self._visit
        if not visit.entered or visit.thread != get_ident():
            return
        visit.entered = False
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if not visit.observing:
            return
        if visit.adds == next(iter(visit.here.values())).adds:
            for channel, tap in visit.taken:
                channel.count()
                tap.belongs_to(channel)
        else:
            self._take_back()
            if visit.adds:
                self._watcher.trace_again()
        visit.taken.clear()
        visit.traced.clear()

    def _take_back(self) -> None:
        """Another way through the block was taken than in the traced pass: what was met there is not what was looked for."""
        for cell in self._visit.traced:
            cell.take_back()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        visit = self._visit
        kwargs = kwargs or {}
        if func not in ADDITIONS:
            return func(*args, **kwargs)
        added = addition(func, args, kwargs)
        if added is None:
            return func(*args, **kwargs)
        if compiler.traces():
            # What a custom function's backward adds is none of the block's, and no add that the traced pass has counted.
            if compiler.traces_backward():
                return func(*args, **kwargs)
            return compiler.freely(self._trace_add, func, args, kwargs, added)
        watcher = self._watcher
        if watcher.compiled and compiler.is_of_graph(sys._getframe(1)):  # which has what it needs of ours in it
            return func(*args, **kwargs)
        plan = visit.here.get(visit.adds)
        visit.adds += 1
        if plan is None:
            return func(*args, **kwargs)
        started = perf_counter()
        if visit.observing:
            self._guarded(lambda: self._offer(plan, added))
        watcher.seconds += perf_counter() - started
        result = func(*args, **kwargs)
        started = perf_counter()
        self._guarded(lambda: self._offer_result(plan, result))
        watcher.seconds += perf_counter() - started
        return result

    def _trace_add(self, func: Any, args: Any, kwargs: Any, added: Addition) -> Any:
        """What a graph is to do in the place of a candidate add."""
        visit = self._visit
        plan = visit.here.get(visit.adds)
        visit.adds += 1
        took = plan is not None and self._trace_operands(plan, added)
        result = func(*args, **kwargs)
        if plan is not None and took:
            self._trace_result(plan, result)
        return result

    def _trace_operands(self, plan: Plan, added: Addition) -> bool:
        # Whether it is observing is not asked: a checkpoint must recompute with the same graph, which itself knows what counts.
        try:
            cell = plan.channel.cell
            if cell is None:
                return False
            first, second, factors = plan.ordered(added)
            skip, branch = value(first), value(second)
            if not (cell.takes(skip) and cell.takes(branch)):
                return False
            cell.offer(SKIP, skip, factors[SKIP])
            cell.offer(BRANCH, branch, factors[BRANCH])
        except Exception as error:
            self._watcher.fault_in_graph(f"{type(error).__name__}: {error}")
            return False
        return True

    def _trace_result(self, plan: Plan, result: Tensor) -> None:
        try:
            cell = plan.channel.cell
            if cell is None or not cell.takes(result):
                return
            cell.offer_output(result)
            self._visit.traced.append(cell)
            if result.requires_grad:
                cell.expect_gradient(result)
        except Exception as error:
            self._watcher.fault_in_graph(f"{type(error).__name__}: {error}")

    def _guarded(self, offer: Callable[[], None]) -> None:
        try:
            offer()
        except Exception as error:
            self._watcher.fault(error)

    def _offer(self, plan: Plan, added: Addition) -> None:
        skip, branch, factors = plan.ordered(added)
        plan.channel.offer_skip(value(skip), factors[SKIP])
        plan.channel.offer_branch(value(branch), factors[BRANCH])

    def _offer_result(self, plan: Plan, result: Tensor) -> None:
        visit = self._visit
        tap = GradientTap(self._watcher, None if visit.observing else plan.channel)
        if visit.observing:
            if not plan.channel.offer_output(result):
                return
            visit.taken.append((plan.channel, tap))
        if result.requires_grad:
            hang(result, tap)


class Enter(Hook):
    def __init__(self, mode: AddMode) -> None:
        self._mode = mode

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if compiler.traces():
            compiler.freely(self._mode.enter_in_graph)
        else:
            self._mode.enter()


class Leave(Hook):
    def __init__(self, mode: AddMode) -> None:
        self._mode = mode

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if compiler.traces():
            compiler.freely(self._mode.leave_in_graph)
        else:
            self._mode.leave()
