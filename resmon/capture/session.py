"""Gathers what one training loop says, step by step, and hands it on as records.

A step begins with the first forward pass after the last boundary and ends when the optimizer has stepped (or the loop says so).
Gradients are read just before the optimizer steps. What is logged belongs to the step under way or, between a boundary and the
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
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from resmon.capture.channel import BRANCH, ELEMENTS, IN_ALL, MAGNITUDES, OUTPUT, SKIP, Channel, board
from resmon.capture.gradients import Gradients
from resmon.capture.model import ModelWatch
from resmon.capture.taps import Hook
from resmon.errors import ConfigurationError
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
    """Watches `models` (by key) and, if there is one, the optimizer whose steps are the run's steps."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizer: Optimizer | None,
        *,
        start_step: int = 0,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        sample: int = 1024,
    ) -> None:
        _check(models, optimizer)
        self._process = os.getpid()  # children that are forked from it inherit the hooks, and stay silent
        self._optimizer = optimizer
        self._sink: Sink | None = None
        self._watches = [
            ModelWatch(self, key, model, include=include, exclude=exclude, sample=sample) for key, model in models.items()
        ]
        self._gradients = Gradients(_parameters(models))
        self._gradients_read = False
        self._step = start_step
        self._under_way = False
        self._stepped_aside = False  # after a fault: steps are recorded, their blocks are not
        self._boundary = perf_counter()
        self._learning_rate: float | None = None
        self._seconds = 0.0  # of this step, outside of the models' hooks
        self._steps_total = 0
        self._errors_total = 0
        self._duration_total = 0.0
        self._duration_buckets = np.zeros(DURATION_COLUMNS, np.int64)
        self._channels: list[Channel] = []
        self._board = board(0)
        self._handles: list[RemovableHandle] = []
        self._told: set[str] = set()

    # -- life ----------------------------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Put the hooks on, and give the records to `sink` from here on."""
        self._sink = sink
        for watch in self._watches:
            watch.attach()
        if self._optimizer is not None:
            self._handles = [
                self._optimizer.register_step_pre_hook(_BeforeStep(self)),
                self._optimizer.register_step_post_hook(_AfterStep(self)),
            ]

    def detach(self) -> None:
        """Leave no hook behind."""
        for watch in self._watches:
            watch.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

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

    def sites_changed(self) -> None:
        self._channels = [channel for watch in self._watches for channel in watch.channels]
        self._board = board(len(self._channels))
        for row, channel in zip(self._board, self._channels, strict=True):
            channel.move(row)
        self._gradients.group([[_key(c.site.model, name) for name in c.site.parameters] for c in self._channels])
        if not self._channels and all(w.traced for w in self._watches):
            self._say("no residual add was found in the traced forward pass: the run is recorded without blocks")
        self._write(lambda sink: sink.sites(self.sites))

    def fault(self, error: Exception) -> None:
        """Something of resmon's own went wrong inside the loop: count it, say so once, step aside."""
        self._errors_total += 1
        self._stepped_aside = True
        self._say(
            f"resmon met an error of its own and observes the blocks no longer; training is not affected. "
            f"Please report it: {type(error).__name__}: {error}",
            error,
        )
        for watch in self._watches:
            watch.retire()

    # -- what the loop does --------------------------------------------------------------------------------------------

    def before_step(self, has_closure: bool = False) -> None:
        """The optimizer is about to step; with a closure the gradients are not there yet."""
        if os.getpid() != self._process:
            return
        started = perf_counter()
        if not has_closure:
            self._read_gradients()
        if self._optimizer is not None:
            rate = self._optimizer.param_groups[0]["lr"]
            # A capturable optimizer keeps it on the GPU; reading it there would wait for the device.
            self._learning_rate = None if isinstance(rate, torch.Tensor) and rate.device.type != "cpu" else float(rate)
        self._seconds += perf_counter() - started

    def after_step(self) -> None:
        """The optimizer has stepped: the step is over."""
        if os.getpid() != self._process:
            return
        if not self._gradients_read:
            started = perf_counter()
            self._read_gradients()
            self._seconds += perf_counter() - started
        try:
            self._end_step(complete=True)
        except Exception as error:
            self.fault(error)

    def _read_gradients(self) -> None:
        self._gradients_read = True
        if self._stepped_aside:
            return
        try:
            self._gradients.read()
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
        duration = now - self._boundary if self._under_way or self._steps_total else None
        self._boundary = now
        seconds = self._seconds + sum(watch.seconds for watch in self._watches)
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
        self._gradients_read = False
        self._gradients.clear()
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
        gradient, has_gradient = self._gradients.total() if not self._stepped_aside else (0.0, False)
        run = [duration, self._learning_rate, gradient if has_gradient else None, seconds + perf_counter() - started]
        return StepRecord(
            step=self._step,
            time=time.time(),
            complete=complete,
            run=np.array([math.nan if v is None else v for v in run]),
            run_present=np.array([v is not None for v in run]),
            blocks=values,
            blocks_present=present,
            counts=counts,
            steps_total=self._steps_total,
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
        values[:3] = self._board[:, IN_ALL, (SKIP, BRANCH, OUTPUT)].T
        counts[0] = self._board[:, IN_ALL, ELEMENTS]
        present[:3] = counts[0] > 0
        values[3], present[3] = self._gradients.by_group()
        values[4] = [c.output_gradient_square for c in channels]
        present[4] = [c.gradient_arrived for c in channels]
        counts[1] = [c.nonfinite_forward for c in channels]
        counts[2] = [c.nonfinite_backward for c in channels]
        for i in np.flatnonzero(counts[1:].any(axis=0)):
            channels[i].nonfinite_steps += 1

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


class _BeforeStep(Hook):
    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        self._session.before_step(has_closure=closure is not None)


class _AfterStep(Hook):
    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._session.after_step()


def _key(model: str, parameter: str) -> str:
    return f"{model}:{parameter}"


def _parameters(models: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    return [(_key(key, name), parameter) for key, model in models.items() for name, parameter in model.named_parameters()]


def _check(models: Mapping[str, Any], optimizer: Any) -> None:
    for key, model in models.items():
        if not isinstance(model, nn.Module):
            what = f"model {key!r} is" if key else "the model is"
            raise ConfigurationError(f"{what} a {type(model).__name__}, not a torch.nn.Module; pass the module that you call.")
    if optimizer is None:
        return
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(
            f"the optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer; pass the optimizer whose step() the loop "
            "calls, or none and call monitor.step() after each step."
        )
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if owned.isdisjoint(id(parameter) for model in models.values() for parameter in model.parameters()):
        raise ConfigurationError(
            "the optimizer owns none of the model's parameters, so that its steps say nothing of the model. Pass the optimizer "
            "that was made from this model's parameters(); one made before the model was replaced or converted owns the old ones."
        )


def _number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value.detach()) if value.numel() == 1 and not value.is_complex() else None
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
