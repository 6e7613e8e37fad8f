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
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from resmon.capture.channel import BRANCH, ELEMENTS, IN_ALL, MAGNITUDES, OUTPUT, SKIP, Channel, board
from resmon.capture.compiler import Compiler
from resmon.capture.gradients import Gradients
from resmon.capture.model import ModelWatch
from resmon.capture.optimizers import Optimizers
from resmon.capture.placement import OtherRanks, Placement, named_parameters
from resmon.errors import ConfigurationError, UnobservableError
from resmon.records import (
    BLOCK_COUNTS,
    BLOCK_VALUES,
    DURATION_COLUMNS,
    DURATION_EDGES,
    RUN_VALUES,
    Bools,
    Floats,
    Ints,
    ResidualSite,
    ScalarRecord,
    StepRecord,
)

log = logging.getLogger("resmon")


class Sink(Protocol):
    """Whom the records are given to. OSError from it ends the recording."""

    def sites(self, sites: Sequence[ResidualSite]) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def scalars(self, record: ScalarRecord) -> None: ...


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
    ) -> None:
        optimizers = _checked(models, optimizer)
        self._process = os.getpid()  # children that are forked from it inherit the hooks, and stay silent
        self._sink: Sink | None = None
        self._watches = [
            ModelWatch(self, key, model, include=include, exclude=exclude, sample=sample) for key, model in models.items()
        ]
        self._compiler = Compiler(self._watches)
        self._placement = Placement(models.values(), other_ranks)
        self._gradients = Gradients(models, self._placement)
        self._optimizers = Optimizers(self, optimizers, self._gradients)
        self._step = start_step
        self._under_way = False
        self._stepped_aside = False  # after a fault: steps are recorded, their blocks are not
        self._boundary = perf_counter()
        self._seconds = 0.0  # of this step, outside of the models' hooks
        self._passes = 0  # with gradients, since the last step
        self._most_passes = 0  # of one step so far
        self._steps_total = self._skipped_total = self._clipped_total = 0
        self._errors_total = 0
        self._duration_total = 0.0
        self._duration_buckets = np.zeros(DURATION_COLUMNS, np.int64)
        self._channels: list[Channel] = []
        self._board = board(0)
        self._told: set[str] = set()

    # -- life ----------------------------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Put the hooks on, and give the records to `sink` from here on."""
        self._sink = sink
        for watch in self._watches:
            watch.attach()
        self._optimizers.attach()
        self._compiler.attach()

    def detach(self) -> None:
        """Leave no hook behind."""
        for watch in self._watches:
            watch.detach()
        self._optimizers.detach()
        self._compiler.detach()

    def finish(self) -> None:
        """The run is over: write down a step that was begun and not ended."""
        if self._under_way:
            self._end_step(complete=False)

    @property
    def sites(self) -> tuple[ResidualSite, ...]:
        return tuple(channel.site for channel in self._channels)

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
        self._placement.pass_begun()
        self._passes += 1
        if self._passes == (max(FEW_PASSES, 8 * self._most_passes) if self._most_passes else MANY_PASSES):
            self._say(
                f"{self._passes} forward passes with gradients since the last step ended. If the loop now steps another optimizer "
                "than the one watched, close this monitor and watch the model with the new one; if the loop evaluates, do so under "
                "torch.no_grad(), for these passes count as training; if it accumulates gradients over so many, all is well"
            )

    def sites_changed(self) -> None:
        self._channels = [channel for watch in self._watches for channel in watch.channels]
        self._board = board(len(self._channels))
        for row, channel in zip(self._board, self._channels, strict=True):
            channel.move(row)
        self._gradients.group([[(c.site.model, name) for name in c.site.parameters] for c in self._channels])
        if not self._channels and all(w.traced for w in self._watches):
            self._say("no residual add was found in the traced forward pass: the run is recorded without blocks")
        self._write(lambda sink: sink.sites(self.sites))

    def fault(self, error: Exception) -> None:
        """Something went wrong inside the loop that is no business of the loop's: say so once, count it, step aside."""
        self._stepped_aside = True
        if isinstance(error, UnobservableError):
            self._say(f"the blocks are observed no longer; training and the record of its steps go on. {error}")
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
        self._optimizers.read_the_rest()
        try:
            self._end_step(complete=True)
        except Exception as error:
            self.fault(error)

    def log(self, values: Mapping[str, Any]) -> None:
        """Numbers that the loop knows; what is no number is refused with a message, and the rest is taken."""
        numbers = {}
        for name, value in values.items():
            number = _number(value)
            if number is None:
                self._say(
                    f"log({name}=...) got {type(value).__name__}, which is no single number, and was ignored; "
                    "pass a float or a tensor of one element"
                )
            else:
                numbers[name] = number
        if numbers:
            step = self._step if self._under_way or not self._steps_total else self._step - 1
            record = ScalarRecord(step, time.time(), numbers)
            self._write(lambda sink: sink.scalars(record))

    # -- a step's record -----------------------------------------------------------------------------------------------

    def _end_step(self, *, complete: bool) -> None:
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
        if duration is not None and complete:
            self._duration_total += duration
            self._duration_buckets[int(np.searchsorted(DURATION_EDGES, duration))] += 1
        self._steps_total += complete
        record = self._record(complete, duration, seconds, now)
        self._write(lambda sink: sink.step(record))
        self._step += 1
        self._under_way = False
        if complete:
            self._most_passes = max(self._most_passes, self._passes)
        self._passes = 0
        self._optimizers.clear()
        for channel in self._channels:
            channel.clear()
        for watch in self._watches:
            watch.seconds = 0.0
        self._seconds = perf_counter() - now - (record.run[_MONITOR] - seconds)  # writing is paid for in the next row

    def _record(self, complete: bool, duration: float | None, seconds: float, started: float) -> StepRecord:
        channels = self._channels
        sites = len(channels)
        values = np.zeros((len(BLOCK_VALUES), sites))
        present = np.zeros((len(BLOCK_VALUES), sites), np.bool_)
        counts = np.zeros((len(BLOCK_COUNTS), sites), np.int64)
        if sites and not self._stepped_aside:
            try:
                self._gather(values, present, counts)
            except Exception as error:
                self.fault(error)
                present[:], counts[:] = False, 0
        gradient, stepped = (None, None) if self._stepped_aside else self._gradients.total()
        skipped = self._optimizers.skipped
        if complete:
            self._skipped_total += skipped
            self._clipped_total += gradient is not None and stepped is not None and stepped < gradient
        run = [
            duration,
            self._optimizers.learning_rate,
            gradient,
            stepped,
            self._optimizers.loss_scale,
            seconds + perf_counter() - started,
            float(self._gradients.unknown),
            float(self._gradients.replicas),
        ]
        return StepRecord(
            step=self._step,
            time=time.time(),
            complete=complete,
            skipped=skipped,
            run=np.array([math.nan if v is None else v for v in run]),
            run_present=np.array([v is not None for v in run]),
            blocks=values,
            blocks_present=present,
            counts=counts,
            steps_total=self._steps_total,
            skipped_total=self._skipped_total,
            clipped_total=self._clipped_total,
            errors_total=self._errors_total,
            duration_total=self._duration_total,
            duration_buckets=self._duration_buckets.copy(),
            nonfinite_steps=np.array([c.nonfinite_steps for c in channels], np.int64),
            magnitude_buckets=self._board[:, IN_ALL, MAGNITUDES + 1 :].astype(np.int64),
            magnitude_sum=self._board[:, IN_ALL, MAGNITUDES].copy(),
        )

    def _gather(self, values: Floats, present: Bools, counts: Ints) -> None:
        """Fill a record's arrays from the channels."""
        channels = self._channels
        for watch in self._watches:
            watch.settle()
        values[:3] = self._board[:, IN_ALL, (SKIP, BRANCH, OUTPUT)].T
        counts[0] = self._board[:, IN_ALL, ELEMENTS]
        present[:3] = counts[0] > 0
        values[3], present[3] = self._gradients.by_group()
        values[4] = [c.output_gradient_square for c in channels]
        if self._optimizers.scales:  # they are of the scaled loss
            values[4] /= np.square([self._optimizers.scale_of(c.site.model) for c in channels])
        present[4] = [c.gradient_arrived for c in channels]
        if self._placement.world > 1:
            self._take_shares(values[4], present[4])
        counts[1] = [c.nonfinite_forward for c in channels]
        counts[2] = [c.nonfinite_backward for c in channels]
        for i in np.flatnonzero(counts[1:].any(axis=0)):
            channels[i].nonfinite_steps += 1

    def _take_shares(self, squares: Floats, present: Bools) -> None:
        """Make the output gradients' squares this rank's share, and say in the sites what cannot be known of them, and why."""
        models = {watch.key: watch.model for watch in self._watches}
        news: tuple[str, ...] = ()
        for i, (channel, reason) in enumerate(zip(self._channels, self._gradients.reasons(), strict=True)):
            share = self._placement.output(models[channel.site.model], channel.distributed)
            why_not = channel.gradient_unknown or share.reason
            squares[i] *= share.factor
            present[i] &= not why_not
            reasons = (
                ("skip_rms, branch_rms", channel.operands_unknown),
                ("gradient_norm", reason),
                ("output_gradient_norm", why_not),
            )
            known = channel.site.absent
            if fresh := tuple(said for name, why in reasons if why and (said := f"{name}: {why}") not in known):
                channel.site = replace(channel.site, absent=known + fresh)
                news += fresh
        if news:
            self._say(f"some values are absent. {news[0]} (each site in the flight says its own)")
            self._write(lambda sink: sink.sites(self.sites))

    # -- saying and writing --------------------------------------------------------------------------------------------

    def _write(self, what: Any) -> None:
        if self._sink is None:
            return
        try:
            what(self._sink)
        except OSError as error:
            self._sink = None
            self._errors_total += 1
            self._say(
                f"the flight can no longer be written ({error}); recording stops here, training goes on. Free space and start again"
            )
        except Exception as error:
            self._sink = None
            self.fault(error)

    def _say(self, message: str, error: Exception | None = None) -> None:
        if message not in self._told:
            self._told.add(message)
            log.warning("resmon: %s", message, exc_info=error)


_MONITOR = RUN_VALUES.index("monitor_seconds")

# Forward passes without a step after which it is worth saying so: once the usual number is known (at most an eighth), and before.
FEW_PASSES, MANY_PASSES = 64, 1024


def _checked(models: Mapping[str, Any], given: Any) -> tuple[Optimizer, ...]:
    """The optimizers given, none twice. Raises ConfigurationError for what cannot be watched."""
    for key, model in models.items():
        if not isinstance(model, nn.Module):
            what = f"model {key!r} is" if key else "the model is"
            raise ConfigurationError(f"{what} a {type(model).__name__}, not a torch.nn.Module; pass the module that you call.")
    several = isinstance(given, Sequence) and not isinstance(given, str)
    optimizers = tuple(given) if several else () if given is None else (given,)
    watched = {id(parameter) for model in models.values() for _, parameter in named_parameters(model)}
    for i, optimizer in enumerate(optimizers):
        which = f"optimizer {i + 1} of {len(optimizers)}" if several else "the optimizer"
        if not isinstance(optimizer, Optimizer):
            raise ConfigurationError(
                f"{which} is a {type(optimizer).__name__}, not a torch.optim.Optimizer; pass the optimizers whose step() the loop "
                "calls, or none and call monitor.step() after each step."
            )
        if watched.isdisjoint(id(parameter) for group in optimizer.param_groups for parameter in group["params"]):
            raise ConfigurationError(
                f"{which} owns none of the model's parameters, so that its steps say nothing of the model. Pass the optimizer "
                "that was made from this model's parameters(); one made before the model was replaced or converted owns the old "
                "ones."
            )
    return tuple(dict.fromkeys(optimizers))


def _number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value.detach()) if value.numel() == 1 and not value.is_complex() else None
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
