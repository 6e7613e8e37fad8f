"""One watched model: which forward passes count, which of them are traced, and where the hooks are.

The first pass that builds a graph is traced; so are the next ones while modules with parameters have not run yet (stochastic
depth that skips whole blocks), any later one in which such a module wakes up, and the first after modules were added or replaced.
All others only pass the taps.

A pass of a compiled model can be traced only while the compiler pauses (host/compiler.py): `wants_pause` says so to whoever ends
the steps. Where the model is called inside a compiled function the pass's begin and end are themselves part of a graph.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import set_eval_frame
from torch.overrides import _get_current_function_mode, _pop_mode
from torch.utils.hooks import RemovableHandle

from resmon.capture.discovery import rule
from resmon.capture.discovery.dataflow import Add, Trace, tensors
from resmon.capture.discovery.sites import is_looking
from resmon.capture.discovery.survey import Hidden, Names, Sighting, Survey, hidden, is_watched
from resmon.capture.forensics.birth import Holder, Sign
from resmon.capture.gradients.backwards import Run
from resmon.capture.host import compiler, pipelines
from resmon.capture.host.fetch import Fetch, is_capturing
from resmon.capture.host.hook import Hook
from resmon.capture.loop.sleepers import Sleepers
from resmon.capture.probes import activations
from resmon.capture.probes.accelerator import Accelerators
from resmon.capture.probes.activations import Activations
from resmon.capture.probes.cells import Cells
from resmon.capture.probes.channel import Channel, begin_step
from resmon.capture.probes.columns import ARRIVED, BACKWARD_NONFINITE, FORWARD_NONFINITE, GRADIENT, SKIP
from resmon.capture.probes.entrance import Entered, Entrance
from resmon.capture.probes.layers import Layer, Looks, last_layer
from resmon.capture.probes.norms import Norms
from resmon.capture.probes.positions import Sampling, channel_axis
from resmon.capture.probes.taps import AddMode, Enter, GradientTap, Habit, Installed, Leave, Plan, Tap, install, plan
from resmon.records import ResidualSite

# What the backward passes of a step have brought: gradients that were given back, or such as `.grad` has.
NOTHING, TAKEN, ACCUMULATED = range(3)
_TRACES_WHILE_ASLEEP = 16
_TRACES = 64  # in all: a model that takes another way every time is not traced for ever
_SERVES_SEVERAL = "not: it lies in a block that is compiled by itself and serves several layers; compile the whole model instead"
_DISAGREEMENTS = 3  # after so many traced passes it is of no use to trace another
_DECLINED = "not observed in compiled code: "
_TRACED = ""  # torch.jit.trace, make_fx, FakeTensorMode: nobody takes that for training, so nothing is to be said
_TRANSFORMED = (
    "passes inside of torch.func's transformations (grad, vmap and others) are not observed: tensors have no values there that "
    "could be read. Passes outside of them are"
)
_AT_ONCE = (
    "another thread called the model with gradients while a training pass was under way. Of passes at the same time only the one "
    "that began first is observed. Where a thread only acts, have it do so under torch.no_grad(), or on a copy of the model"
)
_ANOTHER_WAY = (
    f"after {_TRACES} traced passes the model still takes ways that none of them took. What blocks there give is absent, and so "
    "are, in such passes, blocks whose operands are taken at the call and whose module adds up more or fewer tensors than it did "
    "when it was traced. An addition that is a module of its own, y = self.add(x, branch), is found whatever is added before it"
)
_is_traced, _transformation = torch._C._is_tracing, torch._C._functorch.peek_interpreter_stack
_UNKNOWN = ResidualSite("", "", "identity", (), (), ())


class Owner(Protocol):
    """Who gathers the steps of one or several models."""

    def pass_begun(self) -> None: ...
    def pass_ended(self) -> None: ...
    def passed_over(self, why: str) -> None: ...
    def given(self, watch: ModelWatch, args: Any, kwargs: Any) -> None: ...
    def gave(self, watch: ModelWatch, output: Any) -> None: ...
    def evaluates(self) -> None: ...
    def evaluated(self) -> None: ...
    def sites_changed(self) -> None: ...
    def fault(self, error: Exception) -> None: ...


class ModelWatch:
    """Watches `model`; `key` names it among several."""

    def __init__(
        self,
        owner: Owner,
        key: str,
        model: nn.Module,
        accelerators: Accelerators,
        *,
        include: Sequence[str],
        exclude: Sequence[str],
        sampling: Sampling,
    ) -> None:
        self.model = model
        self.key = key
        self.channels: list[Channel] = []  # in order of execution
        self.active = False
        self.thread = 0  # in which the newest pass was begun
        self.pausing = False
        self.aside = 0  # thread in which a backward pass runs whose gradients are none of the loss's
        self._before: list[Tensor] = []  # what graphs had of gradients when it began
        self._brought = NOTHING  # by the backward passes of this step
        self.compiled = False  # some of its hooks are in graphs
        self.inlined = False  # a pass with gradients has begun inside a graph, in this step
        self._made_around = False  # the pass is part of a function that was compiled before
        self._disagreed: Counter[str] = Counter()  # how often graphs made other adds in a module than the traced pass
        self._failure = ""  # of ours, while a graph was made
        self.outdated = ""  # what is to be said where hooks were put on in this step of which graphs made before know nothing
        self.passes = 0
        self.seconds = 0.0
        self.process = os.getpid()
        self._owner = owner
        self._accelerators = accelerators
        self._include, self._exclude, self._sampling = include, exclude, sampling
        self._names = Names(model, key)
        self._plans: dict[str, Plan] = {}
        self._calls: dict[str, int] = {}  # how often each module ran in a traced pass, at most
        self._mixed: frozenset[str] = frozenset()  # modules that also run without gradients in a pass, which does not count
        self._bare: frozenset[str] = frozenset()  # modules of which that counts
        self._cells: list[Cells] = []  # those of one device each
        self._left: list[tuple[Tensor, Sequence[Channel]]] = []  # what cells held that are no more
        self._entrance: Entrance | None = None  # where graphs note what they are given
        self._installed = Installed()
        self._trace: Trace | None = None
        self._stand_ins: list[tuple[Sighting, Channel, GradientTap]] = []
        self._traces = 0
        self._trace_next = True
        self.stepped_on = False  # this step's gradients were stepped with and cleared
        self._in_pass = False
        self._passes = 0  # with gradients, in this step
        self._handled = 0  # id of the exception that was being handled when the newest pass began
        self._aborted = False  # an exception has ended the newest pass
        self._runner = threading.current_thread()  # that has begun the newest pass
        self._retired = False
        self._sleepers = Sleepers(model, self)
        self._looks = Looks(self, sampling)
        self._layers: dict[str, Layer | None] = {}  # of each site, whose input is looked at
        self._new_modules = False  # since the last traced pass
        self._handles: list[RemovableHandle] = []
        self._samples = 0  # that have gone through in this step
        self._size = 0  # in elements, of the largest batch in this step
        self.summed = 1  # over how many micro-batches a pipeline adds up output gradients whose mean it takes
        self.batch = torch.Size()  # the shape of what the newest pass was given
        self.looked_at = torch.Size()  # that of the pass whose activations were looked at last
        self.kept_outside: int | None = None  # bytes that autograd kept of that pass, besides those of the blocks
        self._looked = -activations.EVERY  # when that was, in observed passes
        self.reached = 1.0  # share of the modules with parameters that ran in the newest traced pass
        self.hidden: tuple[Hidden, ...] = ()  # residual additions of the traced passes that cannot be observed
        self.left_out = 0  # residual adds that the patterns do not let in

    # -- life ----------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        self._sleepers.attach()
        hooks = (Tap, GradientTap, Enter, Leave)
        compiler.leave_alone((AddMode.__torch_function__, *(hook.__call__ for hook in hooks)))
        compiler.leave_alone((_Begin.__call__, _End.__call__), within=False)
        self._handles = [
            self.model.register_forward_pre_hook(_Begin(self), with_kwargs=True),
            self.model.register_forward_hook(_End(self), with_kwargs=True, always_call=True),
        ]

    def detach(self) -> None:
        """Leave no hook behind."""
        self._give_up_pass()
        self._sleepers.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._installed.remove()
        self._installed = Installed()

    def retire(self) -> None:
        """Observe nothing any more, and detach as soon as no pass is under way: hooks that must run yet may not be taken off."""
        self.active = False
        self._retired = True
        if not self._in_pass:
            self.detach()

    def _give_up_pass(self) -> None:
        """Clear away a pass that did not end: an interrupt passes by every hook, and leaves our modes entered."""
        self.active = self._in_pass = False
        self._sampling.activations = None
        self._looks.end_pass()
        for channel in self.channels:
            channel.begin_pass()
        ours = {id(self._trace), *(id(mode) for mode in self._installed.modes)}
        while torch._C._len_torch_function_stack() and id(_get_current_function_mode()) in ours:
            _pop_mode()
        for mode in self._installed.modes:
            mode.abandon()
        if self._trace is not None:
            self._trace.finish(None)
            self._trace = None
            self._stand_ins.clear()

    def _forget_pass(self) -> None:
        """An exception ended the step's only pass so far, and the loop goes on, as with half a batch: it is no part of the step."""
        self._aborted = False
        if self._passes == 1 and all(channel.device.type == "cpu" for channel in self.channels):
            for channel in self.channels:
                begin_step(channel.in_all[None])
            self.take()
            self._passes = self._samples = self._size = 0

    def fault(self, error: Exception) -> None:
        self._owner.fault(error)

    def fault_in_graph(self, error: str) -> None:
        """While a graph is made nothing can be said; `step_over` does."""
        self._failure = error

    def step_over(self) -> str:
        """What came to light in graphs is dealt with between two passes. Returns what is to be said about it."""
        if self._failure:
            self.fault(RuntimeError(f"while torch.compile traced: {self._failure}"))
            self._failure = ""
        said = ""
        for mode in self._installed.modes:
            if mode.disagreed:
                self._disagreed[mode.path] += 1
                self._trace_next |= self._disagreed[mode.path] <= _DISAGREEMENTS
        for channel in self.channels if self.compiled or self._disagreed else ():
            reason = channel.cell.declined if channel.cell else ""
            planned = self._plans.get(channel.site.name)
            if planned and self._disagreed[planned.holder[0]] > _DISAGREEMENTS:
                reason = "its module makes other additions there than in a traced pass"
            if reason and not channel.site.observed.startswith(_DECLINED):
                channel.site = replace(channel.site, observed=_DECLINED + reason)
                said = said or f"block {channel.site.name} is {channel.site.observed} (each site in the flight says its own)"
        if said:
            self._owner.sites_changed()
        return said

    @property
    def traced(self) -> bool:
        return self._traces > 0

    def holders(self) -> list[Holder]:
        """Where the sites' adds are made, in order of execution."""
        sites = [channel.site for channel in self.channels if channel.site.name in self._plans]
        plans = [self._plans[site.name] for site in sites]
        return [
            Holder(compiler.plain(p.holder[0]), p.holder[1], p.ordinal, site.name, (*site.branch, *site.skip))
            for site, p in zip(sites, plans, strict=True)
        ]

    def signs(self) -> list[Sign]:
        """What of each block was not finite so far in the step under way, in order of execution."""
        rows = {each: each.in_all[[FORWARD_NONFINITE, BACKWARD_NONFINITE, SKIP]] for each in self.channels}
        for cells in self._cells if self.compiled else ():
            for channel, row in zip(cells.channels, cells.signs(), strict=True):
                rows[channel] = rows[channel] + row
        return [Sign(each.site, int(forward), int(backward), float(skip)) for each, (forward, backward, skip) in rows.items()]

    def trace_again(self) -> None:
        self._trace_next = True
        if self._traces >= _TRACES and not compiler.traces():
            self._owner.passed_over(_ANOTHER_WAY)

    def rebuilt(self) -> None:
        """Modules have got other parameters than they had, by name: the next pass tells which of them are whose."""
        self._trace_next = self._new_modules = True

    @property
    def wants_pause(self) -> bool:
        """Whether the next pass is to be traced and the compiler would not let us."""
        return self._trace_next and self._traces < _TRACES and (self.compiled or compiler.has_compiled_parts(self.model))

    def take_samples(self) -> int:
        """How many samples have gone through the model; the next step begins."""
        samples, self._samples = self._samples, 0
        self._passes = 0
        self._brought = NOTHING
        return samples

    def take_size(self) -> float:
        """The size in elements of the largest batch in this step; the next step begins."""
        size, self._size = self._size, 0
        return float(size)

    def take_entered(self, by: Fetch) -> list[Entered]:
        """What passes were given that began inside of graphs; the next step begins."""
        found = self._entrance.take(by) if self._entrance is not None else None
        return [found] if found is not None else []

    def take(self) -> list[tuple[Tensor, Sequence[Channel]]]:
        """What graphs have written, [sites, COLUMNS], and whose it is; they begin anew."""
        left, self._left = self._left, []
        return left + [(cells.take(), cells.channels) for cells in self._cells if self.compiled]

    def backward_begun(self, run: Run, *, reaches: bool) -> None:
        """A backward pass begins, which `reaches` parameters of the model: are its gradients those of the loss?

        What `torch.autograd.grad` gives may be: where nothing is accumulated, and no derivative taken of it. A pipeline takes them
        from it that way, those of a stage's inputs before those of its parameters. What comes before the step's first pass through
        the model is another one's.
        """
        if not (self._passes or self.inlined) or pipelines.around() is not pipelines.NONE:
            return
        if reaches and run.accumulates:
            if self._brought == TAKEN:  # what came before was a part of the loss, or weighed it
                self.forget_gradients()
            self._brought = ACCUMULATED
        elif reaches and not run.differentiable and self._brought != ACCUMULATED:
            self._brought = TAKEN
        else:
            self.aside = threading.get_ident()
            self._before = [cells.gradients() for cells in self._cells] if self.compiled else []

    def backward_ended(self, run: Run, *, failed: bool) -> None:
        if self.aside == threading.get_ident():
            self.aside = 0
            for cells, before in zip(self._cells, self._before, strict=False):
                cells.put_back(before)
        elif run.accumulates and failed and not self._in_pass and self.thread == threading.get_ident():
            self._aborted = True  # as where the forward pass has failed

    def forget_gradients(self) -> None:
        """The loop has cleared the gradients that this step's passes have brought so far."""
        self._brought = NOTHING
        for channel in self.channels:
            channel.in_all[GRADIENT] = channel.in_all[ARRIVED] = 0.0
        nobody = Channel(_UNKNOWN, self._sampling, self._accelerators, sums_output=False)
        self._accelerators.forget_gradients(self.channels, nobody)
        for rows, _ in self._left:
            rows[:, [GRADIENT, ARRIVED]] = 0
        if self.compiled:
            for cells in self._cells:
                cells.forget_gradients()

    # -- a pass --------------------------------------------------------------------------------------------------------

    def begin_in_graph(self, args: Any, kwargs: Any) -> None:
        """What a graph is to do where a pass begins inside of it."""
        if _trains():
            self.compiled = self.inlined = True
            if compiler.OBSERVES:
                for cells in self._cells:
                    cells.begin_pass_in_graph()
                if self._entrance is not None and not compiler.compiles_backward():
                    self._entrance.see(args, kwargs)
                self._installed.begin_pass_in_graph()

    def end_in_graph(self) -> None:
        """What a graph is to do where a pass ends inside of it."""
        if _trains() and compiler.OBSERVES:
            for cells in self._cells:
                cells.end_pass_in_graph()

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, compiled: bool) -> None:
        """`compiled` says that the forward, called now, would be compiled."""
        if os.getpid() != self.process or self.pausing or is_looking():
            return
        if not torch.is_grad_enabled():
            self._owner.evaluates()
            return
        if torch._C._current_graph_task_id() != -1 or is_capturing():  # a checkpoint's recomputation; a CUDA graph's recording
            return
        if (why := self._why_not_now()) is not None:
            self._owner.passed_over(why)
            return
        pipeline = pipelines.around()
        if pipeline.tries:
            return
        started = perf_counter()
        try:
            self.summed = pipeline.summed
            if self._in_pass:
                self._give_up_pass()
                self._aborted = True
            if self._aborted:
                self._forget_pass()
            self._in_pass, self.thread, self._runner = True, threading.get_ident(), threading.current_thread()
            self._passes += 1
            self._handled = id(sys.exc_info()[1])
            self._owner.pass_begun()
            if self.stepped_on:
                self.forget_gradients()
                self.stepped_on = False
            self._owner.given(self, args, kwargs)
            self.batch = _batch(args, kwargs)
            if self.batch:
                self._samples += self.batch[0]
                self._size = max(self._size, self.batch.numel())
            if compiled and not self.compiled:
                self.compiled = True
                self._sleepers.set_alarms()
            if self._sleepers.has_new():
                self._trace_next = self._new_modules = True
            asleep = self._sleepers and self._traces < _TRACES_WHILE_ASLEEP and not self.compiled
            wanted = (self._trace_next or asleep) and self._traces < _TRACES
            self._look_at_activations(compiled)
            if wanted and (compiler.PAUSE or not (compiled or compiler.has_compiled_parts(self.model))):
                self._traces += 1
                self._trace_next = False
                self._made_around = compiler.is_around() and compiler.is_anything_made()
                self._trace = Trace(self.model, Survey(self._witness))
                self._trace.begin(args, kwargs)
            else:
                self.passes += 1
                self._installed.begin_pass()
                if not self.compiled:
                    self._looks.begin_pass()
                if self.compiled:
                    self._installed.begin_pass_in_graph()  # what graphs count they count from here, too
                    for cells in self._cells:
                        cells.begin_pass()
                self.active = True
        except Exception as error:
            self.fault(error)
        self.seconds += perf_counter() - started

    def _why_not_now(self) -> str | None:
        """What is to be said where a pass that begins with gradients is not observed; None where it is."""
        if _is_traced() or compiler.is_rehearsed():
            return _TRACED
        if _transformation() is not None:
            return _TRANSFORMED
        if self._in_pass and self.thread != threading.get_ident() and self._runner.is_alive():
            return _AT_ONCE
        return None

    def end(self, output: Any) -> None:
        if self.pausing or is_looking():
            return
        if not self._in_pass or self.thread != threading.get_ident():
            if not torch.is_grad_enabled() and os.getpid() == self.process:
                self._owner.evaluated()
            return
        self._owner.pass_ended()
        started = perf_counter()
        kept, self._sampling.activations = self._sampling.activations, None
        observed, self.active, self._in_pass = self.active, False, False
        error = sys.exc_info()[1]
        self._aborted = error is not None and id(error) != self._handled
        self._looks.end_pass()
        for channel in self.channels:
            channel.begin_pass()
        trace, self._trace = self._trace, None
        try:
            if observed and self.compiled:
                for cells in self._cells:
                    cells.end_pass()
            if kept is not None:
                self.looked_at, self.kept_outside = self.batch, kept.rest(output)
            if trace is not None:
                trace.finish(output)
                self._trace_next |= self._aborted  # it saw a part of the model
                if not self._retired:
                    self._learn(trace)
            self._accelerators.fold()
            self._owner.gave(self, output)
        except Exception as error:
            self.fault(error)
        if self._retired:
            self.detach()
        self.seconds += perf_counter() - started

    def _look_at_activations(self, compiled: bool) -> None:
        """Where it is time, look at what autograd keeps of the pass that begins. What graphs of the compiler keep is not known."""
        since = self.passes - self._looked
        if since < (activations.SOON if self.batch.numel() > self.looked_at.numel() else activations.EVERY):
            return
        self._looked = self.passes
        if not (compiled or self.compiled or compiler.has_compiled_parts(self.model) or compiler.is_around()):
            self._sampling.activations = Activations(self.model)

    def _witness(self, add: Add, residual: rule.Residual) -> Callable[[Tensor, Sighting], None] | None:
        """Takes the operands of a traced add; whose they are is known when the pass is over."""
        if self._retired:
            return None
        started = perf_counter()
        channel = Channel(_UNKNOWN, self._sampling, self._accelerators, sums_output=residual.kind != "marked")
        channel.drops = any(node.drops for node in residual.branch)
        skip, branch = (channel.offer_skip, channel.offer_branch)
        first, second = (skip, branch) if residual.skip_is_first else (branch, skip)
        try:
            first(add.first, add.factors[0])
            second(add.second, add.factors[1])
        except Exception as error:
            self.fault(error)
            return None
        self.seconds += perf_counter() - started

        def output_is_there(output: Tensor, sighting: Sighting) -> None:
            started = perf_counter()
            tap = GradientTap(self, None)
            try:
                if channel.offer_output(output):
                    channel.count()
                if output.requires_grad:
                    output.register_hook(tap)
                self._stand_ins.append((sighting, channel, tap))
            except Exception as error:
                self.fault(error)
            self.seconds += perf_counter() - started

        return output_is_there

    def _learn(self, trace: Trace) -> None:
        """Name the sites of a traced pass, give each its channel, and put hooks where the next pass needs them."""
        stand_ins, self._stand_ins = [each for each in self._stand_ins if each[0].counts], []
        sites = self._names.sites([sighting for sighting, _, _ in stand_ins], rebuilt=self._new_modules)
        known = {channel.site.name: channel for channel in self.channels}
        order = [channel.site.name for channel in self.channels]
        position, other_parameters = 0, False
        modules = {compiler.plain(path): module for path, module in self.model.named_modules()}
        ran = {compiler.plain(path): count for path, count in trace.calls.items()}
        own = [path for path, module in modules.items() if module._parameters]
        self.reached = sum(path in ran for path in own) / len(own) if own else 1.0
        for site, (sighting, stand_in, tap) in zip(sites, stand_ins, strict=True):
            if not is_watched(site, self._include, self._exclude):
                self.left_out += 1
                continue
            if site.name in known:
                channel = known[site.name]
                channel.absorb(stand_in)
                other_parameters |= channel.site.parameters != site.parameters
                position = order.index(site.name) + 1
            else:
                channel = known[site.name] = stand_in
                order.insert(position, site.name)
                position += 1
            tap.belongs_to(channel)
            channel.drops |= stand_in.drops
            branch = [modules[path] for path in site.branch if path in modules]
            channel.axis = channel_axis(
                site.shape, [tuple(p.shape) for m in branch for p in m._parameters.values() if p is not None]
            )
            channel.norms = Norms.of(modules[path] for path in (*site.branch, *site.skip) if path in modules)
            self._layers[site.name] = last_layer([modules[path] for path in site.branch if ran.get(path) == 1], channel)
            planned = plan(sighting, channel)
            # Where a graph serves several layers, only a mode that is entered outside of it can tell them apart.
            if any(compiler.serves_several(self.model, place.path, trace.calls) for place in planned.places or ()):
                planned = replace(planned, places=None)
            if planned.places is None and compiler.serves_several(self.model, planned.holder[0], trace.calls):
                channel.site = replace(site, observed=_SERVES_SEVERAL)
                self._plans.pop(site.name, None)
                continue
            channel.site = replace(site, observed="hooks" if planned.places else "mode")
            self._plans[site.name] = planned
        unseen = [each for each in hidden(trace.fused) if is_watched(each, self._include, self._exclude)]
        self.hidden = tuple(dict.fromkeys((*self.hidden, *unseen)))
        self._looks.layers = [layer for layer in self._layers.values() if layer is not None]
        new = len(order) > len(self.channels)
        self.channels = [known[name] for name in order]
        self._left = self.take()
        devices = dict.fromkeys(channel.device for channel in self.channels)
        self._cells = [Cells(device, [c for c in self.channels if c.device == device], self._sampling.most) for device in devices]
        if self._entrance is None or self._entrance.device not in devices:
            self._entrance = next((Entrance(device, self._sampling.most) for device in devices), None)
        self._installed.remove()
        for path, calls in trace.calls.items():
            self._calls[path] = max(calls, self._calls.get(path, 0))
        self._mixed |= trace.mixed
        self._bare |= trace.bare
        habits = {path: Habit(most, path in self._bare, path in self._mixed) for path, most in self._calls.items()}
        self._installed = install(self, self.model, list(self._plans.values()), habits)
        # Code made before the first traced pass is of a model without hooks; later on it may be another's of the same class.
        if self._traces == 1 and (self.compiled or self._made_around or compiler.is_made(self.model)):
            self.outdated = compiler.TOO_EARLY
        elif self.compiled and not self.outdated:
            self.outdated = compiler.ANEW
        self.compiled |= compiler.has_compiled_parts(self.model)
        self._sleepers.have_run(trace.calls)
        if self._traces >= _TRACES_WHILE_ASLEEP or self.compiled:
            self._sleepers.set_alarms()
        if new or other_parameters or self._new_modules or self._traces == 1:
            self._owner.sites_changed()
        self._new_modules = False


def _trains() -> bool:
    """Whether the graph that is being made is one for training."""
    return torch.is_grad_enabled() and not compiler.exports()


def _batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Size:
    """The shape of the first tensor that a model is given, whose first dimension is that of the samples."""
    first = next((tensor for tensor in tensors(args, kwargs) if tensor.dim()), None)
    if first is None:
        return torch.Size()
    return torch.Size((first.shape[0],)) if first.is_nested else first.shape  # whose other sizes differ from sample to sample


class _Begin(Hook):
    def __init__(self, watch: ModelWatch) -> None:
        self._watch = watch

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if compiler.traces():
            self._watch.begin_in_graph(args, kwargs)
            return
        frames = set_eval_frame(None)
        try:
            self._watch.begin(args, kwargs, compiled=frames not in (None, False))
        finally:
            set_eval_frame(frames)


class _End(Hook):
    def __init__(self, watch: ModelWatch) -> None:
        self._watch = watch

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if compiler.traces():
            self._watch.end_in_graph()
            return
        frames = set_eval_frame(None)
        try:
            self._watch.end(output)
        finally:
            set_eval_frame(frames)
