"""Gathers what one training loop says, step by step, and hands it on as records.

A step begins with the first forward pass after the last boundary and ends when the last of the optimizers given has stepped, was
skipped by a gradient scaler, or the loop says so. What is logged belongs to the step under way or, between a boundary and the
next forward pass, to the step that is just over.

Nothing that goes wrong in here reaches the loop: a fault is counted, logged once, and the blocks are no longer observed; what can
no longer be written is no longer written.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resmon.capture.discovery.registration import PARAMETERS
from resmon.capture.discovery.survey import tell
from resmon.capture.forensics.diagnoses import diagnose
from resmon.capture.forensics.failures import Scene
from resmon.capture.forensics.nonfinite import NonFinite, Policy
from resmon.capture.forensics.out_of_memory import ran_out
from resmon.capture.gradients.backwards import BACKWARDS, Run
from resmon.capture.gradients.clearing import Parameters
from resmon.capture.gradients.reader import Gradients, Selection
from resmon.capture.host.compiler import Compiler, is_rehearsed
from resmon.capture.host.fetch import Fetch, held, is_capturing, number
from resmon.capture.host.memory import Memory, device_memory, main_memory
from resmon.capture.host.placement import OtherRanks, Placement, class_name, named_parameters
from resmon.capture.host.spans import Spans
from resmon.capture.host.stack import Whereabouts, running
from resmon.capture.loop.clock import FORWARD, Clock
from resmon.capture.loop.drafts import Draft, Part, Totals, parts
from resmon.capture.loop.model import ModelWatch
from resmon.capture.loop.optimizers import Optimizers
from resmon.capture.loop.outbox import PATIENCE, Outbox, Sink
from resmon.capture.probes.accelerator import Accelerators
from resmon.capture.probes.channel import IN_ALL, Channel, begin_step, board
from resmon.capture.probes.columns import ARRIVED, ELEMENTS
from resmon.capture.probes.inputs import Inputs
from resmon.capture.probes.positions import Sampling
from resmon.errors import ConfigurationError, NonFiniteError, UnobservableError, remedy
from resmon.memory.footprint import Footprint, Held, Trail
from resmon.records import Bools, Doing, Floats, Incident, ResidualSite, ScalarRecord

log = logging.getLogger("resmon")


class Session:
    """Watches `models` (by key) and the optimizers, the last of which ends the run's steps; without any the loop calls `step`."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizer: Optimizer | Sequence[Optimizer] | None,
        *,
        start_step: int = 0,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        sample: int = 1024,
        other_ranks: OtherRanks | None = None,
        on_nonfinite: Policy = "record",
    ) -> None:
        optimizers = _checked(models, optimizer)
        self._process = os.getpid()  # children that are forked from it inherit the hooks, and stay silent
        self._outbox = Outbox(self)
        self._totals = Totals()
        self._accelerators = Accelerators()
        self._sampling = Sampling(sample)
        self._sampling.step = start_step
        self._inputs = Inputs(sample)
        self._watches = [
            ModelWatch(self, key, model, self._accelerators, include=include, exclude=exclude, sampling=self._sampling)
            for key, model in models.items()
        ]
        self._compiler = Compiler(self._watches)
        self._placement = Placement(models.values(), other_ranks)
        self._gradients = Gradients(models, self._placement)
        self._nonfinite = NonFinite(self, self._watches, self._gradients, on_nonfinite)
        self._clock = Clock()
        self._memory = Memory(self._devices)
        self._trail = Trail()
        self._spans = Spans()
        self._optimizers = Optimizers(self, optimizers, self._gradients, self._clock)
        self._step = start_step
        self._under_way = False
        self._another = ""  # said where an optimizer that was not given has ended this step
        self._stepped_aside = False  # after a fault: steps are recorded, their blocks are not
        self._boundary = perf_counter()
        self._seconds = 0.0  # of this step, outside of the models' hooks
        self._passes = 0  # with gradients, since the last step
        self._most_passes = 0  # of one step so far
        self._steps_total = 0
        self._errors_total = 0
        self._channels: Sequence[Channel] = ()
        self._board = board(0)
        self._spare: Floats | None = None  # an array that a step's numbers may be copied to
        self._groups_told: tuple[str, ...] = ()
        self._told: set[str] = set()

    # -- life ----------------------------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Put the hooks on, and give the records to `sink` from here on."""
        self._outbox.open(sink)
        self._trail = Trail(self._memory.figures())
        for watch in self._watches:
            watch.attach()
        self._optimizers.attach()
        self._clock.attach()
        self._compiler.attach()
        BACKWARDS.listen(self)
        PARAMETERS.listen(self._gradients.given)

    def detach(self) -> None:
        """Leave no hook behind."""
        for watch in self._watches:
            watch.detach()
        self._optimizers.detach()
        self._clock.detach()
        self._compiler.detach()
        BACKWARDS.leave(self)
        PARAMETERS.leave(self._gradients.given)

    def failed(self, error: BaseException) -> Incident | None:
        """Say what an exception that ends the run is; None where even that goes wrong."""
        if "non-finite" in str(error):  # clip_grad_norm_(error_if_nonfinite=True)
            self._optimizers.look_at_everything()
        if (known := self._nonfinite.incident) is not None and (isinstance(error, NonFiniteError) or "non-finite" in str(error)):
            return known
        step = self._step if self._under_way else self.last_step
        self._see_span(self._step if step is None else step)
        models = {watch.key: watch.model for watch in self._watches}
        # Where memory has run out there may be none to look around with; then the exception itself must do.
        for scene in (Scene(models, self.sites, step, self._footprint), Scene({}, (), step)):
            try:
                incident = diagnose(error, scene)
            except Exception as own:
                self.fault(own)
                continue
            self._outbox.put(partial(_hand_incident, incident))
            return incident
        return None

    def _footprint(self) -> Footprint:
        largest = max(self._watches, key=lambda watch: watch.looked_at.numel())
        outside = [watch.kept_outside for watch in self._watches if watch.kept_outside is not None]
        arrived: Floats = self._board[:, IN_ALL][:, ARRIVED]
        # The backward pass goes from the last block to the first: it is in the first whose output's gradient is there.
        under_way = self._channels[int(arrived.argmax())].site.name if arrived.any() else ""
        parameters = [each for watch in self._watches for each in watch.model.parameters() if each.requires_grad]
        return Footprint(
            trail=self._trail,
            now={**main_memory(), **device_memory(self._devices())},
            blocks=[Held(c.site.model, c.site.name, *c.kept) for c in self._channels if c.kept is not None],
            outside=sum(outside) if outside else None,
            size=float(largest.looked_at.numel()) if largest.looked_at else 0.0,
            samples=largest.batch[0] if largest.batch else 0,
            batch=float(largest.batch.numel()) if largest.batch else 0.0,
            parameters=sum(each.numel() * each.element_size() for each in parameters),
            backward=under_way,
            reached=largest.reached,
            unknown=_COMPILED if any(watch.compiled for watch in self._watches) else "",
        )

    def _devices(self) -> set[torch.device]:
        return {parameter.device for watch in self._watches for parameter in islice(watch.model.parameters(), 1)}

    def finish(self) -> None:
        """The run is over: write down a step that was begun and not ended."""
        if self._under_way:
            self._end_step(complete=False)
        self._nonfinite.ended()
        self._outbox.look(PATIENCE)

    @property
    def sites(self) -> tuple[ResidualSite, ...]:
        return tuple(channel.site for channel in self._channels)

    @property
    def is_nonfinite(self) -> bool:
        """Whether the newest step that is over had gradients, or a loss, that were NaN or infinite."""
        return self._nonfinite.lasts

    def running(self, thread: int) -> tuple[Whereabouts, Doing, list[str]]:
        """Where that thread is now; from any other."""
        return running(thread, {watch.key: watch.model for watch in self._watches}, self.sites)

    @property
    def step_under_way(self) -> int:
        return self._step

    @property
    def is_under_way(self) -> bool:
        """Whether a step has begun that is not over."""
        return self._under_way

    @property
    def last_step(self) -> int | None:
        """The newest step that is over, None before the first is."""
        return self._step - 1 if self._steps_total else None

    # -- what the models tell ------------------------------------------------------------------------------------------

    def pass_begun(self) -> None:
        if not self._under_way:
            self._under_way = True
            if not self._steps_total:
                self._boundary = perf_counter()
            self._outbox.look()
        elif self._another:
            self._say(self._another)
        self._placement.pass_begun()
        if self._gradients.outdated:
            renamed = self._group()
            for watch in self._watches:
                if watch.key in renamed:
                    watch.rebuilt()
        self._clock.begin(FORWARD)
        self._passes += 1
        many = max(FEW_PASSES, 8 * self._most_passes) if self._most_passes else MANY_PASSES
        if self._passes == many and not self._another:
            self._say(
                f"{self._passes} forward passes with gradients since the last step ended. If the loop now steps another optimizer "
                "than the one watched, close this monitor and watch the model with the new one; if the loop evaluates, do so under "
                "torch.no_grad(), for these passes count as training; if it accumulates gradients over so many, all is well"
            )

    def pass_ended(self) -> None:
        self._clock.end(FORWARD)

    def passed_over(self, why: str) -> None:
        if why:
            self._say(why)

    def given(self, watch: ModelWatch, args: Any, kwargs: Any) -> None:
        self._placement.entered(watch.model)
        self._nonfinite.pass_begun(watch, args, kwargs)
        self._inputs.see(watch, args, kwargs)

    def gave(self, watch: ModelWatch, output: Any) -> None:
        self._nonfinite.pass_ended(watch, output)

    def look(self, selection: Selection, scale: float | Tensor | None, *, updated: bool = False) -> bool:
        return self._nonfinite.look(selection, scale, updated=updated)

    def raise_if_asked(self) -> None:
        self._nonfinite.raise_if_asked()

    @property
    def withholds(self) -> bool:
        return self._nonfinite.withholds

    def cleared(self, parameters: Parameters) -> None:
        """The loop has cleared gradients. Those that this step's passes had brought so far are not stepped with."""
        if not self._under_way or not self._passes:
            return
        arrived = self._board[:, IN_ALL][:, ARRIVED].any()
        for watch in self._watches:
            if (arrived or watch.compiled) and self._gradients.covers(watch.key, parameters()):
                if self._gradients.has_stepped(watch.key):  # with them; another pass may follow in this step, which begins anew
                    watch.stepped_on = True
                else:
                    watch.forget_gradients()

    def backward_begun(self, run: Run) -> None:
        if not self._hears():
            return
        try:
            for watch in self._watches:
                watch.backward_begun(run, reaches=not run.inputs or self._gradients.reaches(watch.key, run.inputs))
            self._nonfinite.look_away(all(watch.aside for watch in self._watches), differentiated=run.differentiable)
        except Exception as error:
            self.fault(error)

    def backward_ended(self, run: Run, *, failed: bool) -> None:
        if not self._hears():
            return
        try:
            self._nonfinite.look_away(False)
            for watch in self._watches:
                watch.backward_ended(run, failed=failed)
        except Exception as error:
            self.fault(error)

    def _hears(self) -> bool:
        """Whether what is computed now may be a part of the training."""
        here = not self._stepped_aside and os.getpid() == self._process
        return here and not is_rehearsed() and torch._C._functorch.peek_interpreter_stack() is None

    def incident(self, incident: Incident, capsule: bytes) -> None:
        """Something broke, and what `capsule` holds, if anything, repeats it elsewhere."""

        self._see_span(self._step)

        def hand_on(sink: Sink) -> None:
            whole = not capsule or sink.capsule(incident.capsule, capsule)
            sink.incident(incident if whole else replace(incident, capsule=""))

        self._outbox.put(hand_on)

    def _see_span(self, step: int) -> None:
        if (span := self._spans.look(step)) is not None:
            self._outbox.put(lambda sink: sink.span(span))

    def tell(self, message: str) -> None:
        """An optimizer has something to say, once."""
        self._say(message)

    def another_stepped(self, message: str) -> None:
        """An optimizer that was not given has stepped what a given one owns: what to say if a pass begins before that one has."""
        self._another = message

    def evaluates(self) -> None:
        """A forward pass without gradients begins."""
        self._clock.evaluates()

    def evaluated(self) -> None:
        self._clock.waits()

    def sites_changed(self) -> None:
        self._channels = tuple(channel for watch in self._watches for channel in watch.channels)
        self._board = board(len(self._channels))
        for turn, (row, channel) in enumerate(zip(self._board, self._channels, strict=True)):
            channel.move(row)
            channel.turn = turn
        self._group()
        for watch in self._watches:
            for sentence in tell(watch.hidden, class_name(watch.model)):
                self._say(sentence)
        if not self._channels and all(w.traced for w in self._watches):
            left_out = sum(watch.left_out for watch in self._watches)
            self._say(
                f"{left_out} residual adds were found in the traced forward pass, and include= and exclude= let none of them in: "
                "the run is recorded without blocks"
                if left_out
                else "no residual add was found in the traced forward pass: the run is recorded without blocks. One "
                "that is none by resmon's rule (its skip is gated by the data, say) becomes a block where it is written as "
                "resmon.residual_add(skip, branch)"
            )
        self._tell_columns()

    def _group(self) -> set[str]:
        return self._gradients.group([[(c.site.model, name) for name in c.site.parameters] for c in self._channels])

    def _tell_columns(self) -> None:
        sites, self._groups_told = self.sites, self._optimizers.groups
        groups = self._groups_told
        self._outbox.put(lambda sink: sink.sites(sites, groups))

    def fault(self, error: Exception) -> None:
        """Something went wrong inside the loop that is no business of the loop's: say so once, count it, step aside."""
        self._stepped_aside = True
        if torch._C._functorch.peek_interpreter_stack() is not None:
            error = UnobservableError(_TRANSFORMED)
        if isinstance(error, UnobservableError):
            self._say(f"the blocks are observed no longer; training and the record of its steps go on. {error}")
        elif ran_out(error):
            self._errors_total += 1
            self._say(f"there was no memory left for resmon's own numbers, so the blocks are observed no longer: {error}")
        else:
            self._errors_total += 1
            self._say(
                f"resmon met an error of its own and observes the blocks no longer; training is not affected. "
                f"Please report it: {type(error).__name__}: {error}",
                error,
            )
        self._optimizers.active = False
        for watch in self._watches:
            watch.retire()

    # -- what the loop does --------------------------------------------------------------------------------------------

    def step(self) -> None:
        """The loop says that the step is over, before gradients are cleared."""
        if os.getpid() == self._process:
            self.step_over()

    def step_over(self) -> None:
        """An optimizer, or the loop, has ended the step."""
        if is_capturing():
            self._say(_CAPTURING)
            return
        if torch._C._current_graph_task_id() != -1:
            self._say(_INSIDE)
        self._optimizers.read_the_rest()
        try:
            self._end_step(complete=True)
        except Exception as error:
            self.fault(error)

    def log(self, values: Mapping[str, Any]) -> None:
        """Numbers that the loop knows; what is no number is refused with a message, and the rest is taken."""
        if not is_capturing():
            try:
                self._log(values)
            except Exception as error:
                self.fault(error)

    def _log(self, values: Mapping[str, Any]) -> None:
        fetch = Fetch()
        found = {}
        for name, value in values.items():
            try:
                taken = _number(value)
            except Exception as error:  # what is no number may raise anything, and the others are logged all the same
                self._say(
                    f"log({name}=...) got {type(value).__name__}, whose number cannot be had ({type(error).__name__}), and was "
                    "ignored; pass a float or a tensor of one element"
                )
                continue
            if taken is None:
                self._say(
                    f"log({name}=...) got {type(value).__name__}, which is no single number, and was ignored; "
                    "pass a float or a tensor of one element"
                )
            else:
                found[name] = fetch.number(taken)
        if not found:
            return
        step = self._step if self._under_way or not self._steps_total else self._step - 1
        now = time.time()
        fetch.send()
        if isinstance(loss := found.get("loss"), float):
            self._nonfinite.logged(step, loss)

        def hand_on(sink: Sink) -> None:
            if not fetch.failed:
                sink.scalars(ScalarRecord(step, now, {name: number(each) for name, each in found.items()}))

        self._outbox.put(hand_on, fetch)

    # -- a step's record -----------------------------------------------------------------------------------------------

    def _end_step(self, *, complete: bool) -> None:
        # The gradients of outputs may be large, and to give their memory back takes the loop as long without a monitor.
        self._nonfinite.let_go()
        now = perf_counter()
        if not self._under_way and any(watch.inlined for watch in self._watches):
            self.pass_begun()
        if complete and (news := self._compiler.step_over(seen=self._under_way)):
            self._say(news)
        duration = now - self._boundary if self._under_way or self._steps_total else None
        self._boundary = now
        seconds = self._seconds + self._optimizers.seconds + sum(watch.seconds for watch in self._watches)
        if complete and not self._under_way and not any(watch.traced for watch in self._watches):
            self._say(
                "a step has ended, but no forward pass with gradients was seen, so no block can be observed. "
                "Call the watched model itself, model(...), not model.forward(...) or its parts; or watch the part that is called"
            )
        self._steps_total += complete
        self._nonfinite.step_over(complete=complete)
        self._see_span(self._step)
        draft = self._draft(complete, duration, seconds, now)
        if complete and self._steps_total <= TELLING:
            self._tell_what_has_not_come(draft)
        self._outbox.put(partial(self._hand_on, draft), draft.fetch)
        self._step = self._sampling.step = self._step + 1
        self._under_way, self._another = False, ""
        if complete:
            self._most_passes = max(self._most_passes, self._passes)
        self._passes = 0
        for watch in self._watches:
            watch.seconds, watch.stepped_on = 0.0, False
        self._clock.waits()
        self._seconds = perf_counter() - now - (draft.seconds - seconds)  # what follows is paid for in the next row

    def _draft(self, complete: bool, duration: float | None, seconds: float, started: float) -> Draft:
        fetch = Fetch()
        stepping = self._optimizers.end_step()
        gradients = self._gradients.end_step()
        scales = {model: fetch.number(scale) for model, scale in stepping.scales.items()}
        nonfinite = [fetch.number(found) for found in stepping.nonfinite]
        rates = [None if rate is None else fetch.number(rate) for rate in stepping.learning_rates]
        if self._optimizers.groups != self._groups_told:
            self._tell_columns()
        numbers, shares = self._board[:0, IN_ALL], None
        inputs = self._inputs.take(fetch, [each for watch in self._watches for each in watch.take_entered(fetch)])
        arriving: Sequence[Part] = ()
        if not self._stepped_aside:
            try:
                gradients.send(fetch)
                self._look_at_norms()
                rows = (each for watch in self._watches for each in watch.take())
                arriving = parts(fetch, self._channels, rows, self._accelerators.take())
                numbers = self._snapshot()
                if self._placement.world > 1:
                    shares = self._shares(gradients.reasons)
            except Exception as error:
                self.fault(error)
        try:
            fetch.send()
        except Exception as error:
            fetch.failed = True
            self.fault(error)
        size = max(watch.take_size() for watch in self._watches) if complete else 0.0
        figures = self._memory.figures(size)
        if complete:
            self._trail.add(self._step, size, figures)
        return Draft(
            fetch=fetch,
            step=self._step,
            time=time.time(),
            complete=complete,
            duration=duration,
            seconds=seconds + perf_counter() - started,
            phases=self._clock.take(),
            samples=max((watch.take_samples() for watch in self._watches), default=0),
            inputs=inputs,
            memory=figures,
            channels=self._channels,
            numbers=numbers,
            parts=arriving,
            suspect=np.array([channel.suspect for channel in self._channels], np.bool_) if arriving else _NOBODY,
            blocks=not self._stepped_aside,
            gradients=gradients,
            learning_rates=rates,
            main=stepping.main,
            scales=scales,
            summed={watch.key: watch.summed for watch in self._watches if watch.summed > 1},
            nonfinite=nonfinite,
            not_called=stepping.not_called,
            shares=shares,
            errors_total=self._errors_total,
        )

    def _snapshot(self) -> Floats:
        """What the sites have counted in this step; the next one begins. To ask for fresh memory has malloc tidy the loop's."""
        counted = self._board[:, IN_ALL]
        spare, self._spare = self._spare, None
        numbers = spare if spare is not None and spare.shape == counted.shape else np.empty(counted.shape)
        numbers[:] = counted
        begin_step(counted)
        return numbers

    def _tell_what_has_not_come(self, draft: Draft) -> None:
        """Say of which gradients there should be some and are none."""
        if self._stepped_aside:
            return
        arrived = draft.numbers[:, ARRIVED] > 0
        if not draft.gradients.present.any():
            if arrived.any() and any(each.requires_grad for each in self._gradients.everything.parameters):
                self._say(_NO_GRADIENTS)
            return
        _, theirs = draft.gradients.of(draft.gradients.groups)
        missing = (draft.numbers[:, ELEMENTS] > 0) & theirs & ~arrived
        compiled = {watch.key for watch in self._watches if watch.compiled}
        news = ""
        for i in np.flatnonzero(missing).tolist():
            channel = self._channels[i]
            if channel.site.model not in compiled and _NOT_COME not in channel.site.absent:
                channel.site = replace(channel.site, absent=(*channel.site.absent, _NOT_COME))
                news = news or f"block {channel.site.name}: {_NOT_COME} (each site in the flight says its own)"
        if news:
            self._say(f"some values are absent. {news}")
            self._tell_columns()

    def _look_at_norms(self) -> None:
        for channel in self._channels[self._sampling.turns()]:
            channel.look_at_norms()
        for channel in self._channels[self._sampling.turns(1)]:
            if channel.norms is not None:
                channel.norms.remember()

    def _shares(self, reasons: Sequence[str]) -> Floats:
        """What makes each site's output gradient this rank's share, NaN where that cannot be known, which the sites then say."""
        models = {watch.key: watch.model for watch in self._watches}
        shares = np.empty(len(self._channels))
        news: tuple[str, ...] = ()
        for i, (channel, reason) in enumerate(zip(self._channels, reasons, strict=True)):
            share = self._placement.output(models[channel.site.model], channel.distributed)
            why_not = channel.gradient_unknown or share.reason
            shares[i] = math.nan if why_not else share.factor
            absent = (
                ("skip_rms, branch_rms", channel.operands_unknown),
                ("gradient_norm", reason),
                ("output_gradient_norm", why_not),
            )
            known = channel.site.absent
            if fresh := tuple(said for name, why in absent if why and (said := f"{name}: {why}") not in known):
                channel.site = replace(channel.site, absent=known + fresh)
                news += fresh
        if news:
            self._say(f"some values are absent. {news[0]} (each site in the flight says its own)")
            self._tell_columns()
        return shares

    # -- handing on and saying -----------------------------------------------------------------------------------------

    def _hand_on(self, draft: Draft, sink: Sink) -> None:
        try:
            record = self._totals.record(draft)
        except Exception as error:
            self.fault(error)
            draft.blocks = False
            record = self._totals.record(draft)
        self._spare = draft.numbers  # they are in the record now
        sink.step(record)
        self._nonfinite.recorded(record, tuple(channel.site for channel in draft.channels))

    def cannot_write(self, error: OSError) -> None:
        self._errors_total += 1
        self._say(
            f"the flight can no longer be written ({error}); recording stops, training goes on. {remedy(error)}, and start again"
        )

    def _say(self, message: str, error: Exception | None = None) -> None:
        if message not in self._told:
            self._told.add(message)
            log.warning("resmon: %s", message, exc_info=error)


def _hand_incident(incident: Incident, sink: Sink) -> None:
    sink.incident(incident)


_NOBODY: Bools = np.zeros(0, np.bool_)

_COMPILED = "what the graphs of a compiled model keep is not known"

_CAPTURING = (
    "a CUDA graph is being captured around the training step: what is captured is repeated without any Python, so neither its "
    "blocks nor its steps are seen. torch.compile(model, mode='reduce-overhead') captures graphs that resmon is part of"
)

TELLING = 3  # steps, at first, in which it is seen what does not come

_NO_GRADIENTS = (
    "a step has ended and no watched parameter had a gradient, so there are no gradient norms. If optimizers step inside of the "
    "backward pass, or the loop clears gradients before it says that the step is over, they are gone by then: call monitor.step() "
    "before they are cleared. Those that torch.autograd.grad gives are not seen"
)

_NOT_COME = (
    "output_gradient_norm: no gradient came to its sum, though its parameters have theirs: the sum was made in place in a view, or "
    "by a module that a reentrant checkpoint runs several times, or the loss is made of its derivatives alone, or the parameters "
    "have theirs from elsewhere"
)

_INSIDE = (
    "the optimizer whose step ends a step has stepped inside of the backward pass, so that output gradients which came after it "
    "count for the next step. Give watch no optimizer, and call monitor.step() after the backward pass"
)

_TRANSFORMED = (
    "Inside of torch.func's transformations (grad, vmap and others) tensors have no values that could be read. Watch a model that "
    "is called outside of them."
)

# Forward passes without a step after which it is worth saying so: once the usual number is known (at most an eighth), and before.
FEW_PASSES, MANY_PASSES = 64, 1024


def _checked(models: Mapping[str, Any], given: Any) -> tuple[Optimizer, ...]:
    """The optimizers given, none twice. Raises ConfigurationError for what cannot be watched."""
    if not models:
        raise ConfigurationError("there is no model to watch: the dict of models is empty. Pass the model that the loop calls.")
    for key, model in models.items():
        what = f"model {key!r} is" if key else "the model is"
        if isinstance(model, torch.jit.ScriptModule):
            raise ConfigurationError(f"{what} TorchScript, which takes no hooks; watch the module that it was made from.")
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"{what} a {type(model).__name__}, not a torch.nn.Module; pass the module that you call.")
    several = isinstance(given, Sequence) and not isinstance(given, str)
    optimizers = tuple(map(_that_steps, given)) if several else () if given is None else (_that_steps(given),)
    watched = {id(parameter) for model in models.values() for _, parameter in named_parameters(model)}
    for i, optimizer in enumerate(optimizers):
        which = f"optimizer {i + 1} of {len(optimizers)}" if several else "the optimizer"
        if not isinstance(optimizer, Optimizer):
            raise ConfigurationError(
                f"{which} is a {type(optimizer).__name__}, not a torch.optim.Optimizer; pass the optimizers whose step() the loop, "
                "or this one, calls, or none and call monitor.step() after each step."
            )
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise ConfigurationError(
                f"{which} is a {type(optimizer).__name__} that has not called torch.optim.Optimizer's __init__, so that nobody can "
                "hear its steps. Have it call super().__init__(params, defaults), or pass none and call monitor.step() after each "
                "step, before gradients are cleared."
            )
        if watched.isdisjoint(id(parameter) for group in optimizer.param_groups for parameter in group["params"]):
            raise ConfigurationError(
                f"{which} owns none of the model's parameters, so that its steps say nothing of the model. Pass the optimizer "
                "that was made from this model's parameters(); one made before the model was replaced or converted owns the old "
                "ones. Where it steps copies of them (master weights), pass none and call monitor.step() before gradients are "
                "cleared."
            )
    return tuple(dict.fromkeys(optimizers))


def _that_steps(optimizer: Any) -> Any:
    """The optimizer that steps where this one only calls it: Lookahead, and those that Accelerate and Lightning give back."""
    while isinstance(optimizer, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        held = {id(each): each for each in vars(optimizer).values() if isinstance(each, Optimizer) and each is not optimizer}
        if len(held) != 1:
            break
        (optimizer,) = held.values()
    return optimizer


def _number(value: Any) -> float | Tensor | None:
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            return None
        return held(value)
    if isinstance(value, (str, bytes, np.complexfloating)):  # numpy's would give its real part
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
