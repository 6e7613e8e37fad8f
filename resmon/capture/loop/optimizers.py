"""The optimizers of a run: whose gradients are read when, and when a step is over.

Each parameter's gradient is read just before its own optimizer steps, that of a parameter which no given optimizer owns when the
step ends. A step ends when the last of the optimizers, in the order given, has stepped, or when a gradient scaler has skipped it.
Where none is given the loop says when, and a scaler's step tells when gradients are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from resmon.capture.gradients import clipping, scaler
from resmon.capture.gradients.clearing import CLEARINGS, Parameters
from resmon.capture.gradients.reader import Gradients, Selection
from resmon.capture.host.fetch import held, is_capturing
from resmon.capture.loop.clock import OPTIMIZER, Clock
from resmon.errors import NonFiniteError


class Owner(Protocol):
    """Whose steps they end."""

    def step_over(self) -> None: ...

    def look(self, selection: Selection, scale: float | Tensor | None, *, updated: bool = False) -> bool:
        """Whether gradients that were just read are not finite; `updated` says that the optimizer has stepped already."""

    def raise_if_asked(self) -> None:
        """Raise NonFiniteError where the user wants that of such a step."""

    @property
    def withholds(self) -> bool:
        """Whether an optimizer with such gradients is to be kept from stepping."""

    def cleared(self, parameters: Parameters) -> None: ...

    def tell(self, message: str) -> None: ...

    def another_stepped(self, message: str) -> None: ...

    def fault(self, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class Stepping:
    """How a step was made."""

    learning_rates: Sequence[float | Tensor | None]  # of each parameter group
    main: int | None  # the group whose rate is the step's: the first of the optimizer whose step ends a step
    scales: Mapping[str, float | Tensor]  # what the loss was multiplied with, by model
    nonfinite: Sequence[Tensor]  # what gradient scalers found: one that is not 0 kept an optimizer from stepping
    not_called: bool  # a scaler did not call an optimizer that was given


class Optimizers:
    """Hears when `optimizers` step, when their gradients are clipped and unscaled, and reads `gradients` in time."""

    def __init__(self, owner: Owner, optimizers: tuple[Optimizer, ...], gradients: Gradients, clock: Clock) -> None:
        self.seconds = 0.0  # what it has cost in this step
        self.scales: dict[str, float | Tensor] = {}  # what the loss was multiplied with in this step, by model
        self.active = True
        self._owner = owner
        self._optimizers = optimizers
        self._gradients = gradients
        self._clock = clock
        self._process = os.getpid()  # children that are forked from it inherit the hooks, and stay silent
        self._known: WeakKeyDictionary[Optimizer, tuple[tuple[int, ...], Selection]] = WeakKeyDictionary()
        self.groups: tuple[str, ...] = ()  # names of the parameter groups
        self._grouped: tuple[int, ...] = ()  # how many parameters each had when they were named
        self._rest: tuple[list[Selection], Selection] | None = None  # what none of these selections holds
        self._clipping: Selection | None = None  # between the two calls that tell of a clipping
        self._unscaling: tuple[Selection, float | Tensor] | None = None  # likewise
        self._begun: Optimizer | None = None  # that has begun a step and not ended it
        self._held: dict[Optimizer, Optimizer] = {}  # optimizers that another one holds and steps, by whom
        self._begun_by: Optimizer | None = None  # itself, or the one that it holds
        self._unread = True  # whose gradients are yet to be read: a closure computes them
        self._unheard: set[Optimizer] = set()  # that have begun none yet: where watching begins inside of a step's closure
        self._scaling: Optimizer | None = None  # inside of a scaler's step
        self._nonfinite: list[Tensor] = []  # what scalers found
        self._not_called = False  # a scaler did not call an optimizer of ours
        self._withheld: list[tuple[Tensor, Tensor]] = []  # gradients that an optimizer is not to see, of which parameters
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        # A compiled step leaves its graph for these: gradients are read from memory. A copy of an optimizer has no hooks.
        before, after = torch.compiler.disable(self._before_step), torch.compiler.disable(self._after_step)
        self._unheard.update(self._optimizers)
        inner = {each: optimizer for optimizer in self._optimizers for each in _held(optimizer)}
        self._held = {each: optimizer for each, optimizer in inner.items() if each not in self._optimizers}
        for optimizer in (*self._optimizers, *self._held):
            self._handles += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        if self._optimizers:
            self._handles.append(register_optimizer_step_post_hook(torch.compiler.disable(self._any_has_stepped)))
        clipping.BY_NORM.listen(self)
        clipping.BY_VALUE.listen(self)
        scaler.STEPS.listen(self)
        scaler.UNSCALES.listen(self)
        CLEARINGS.listen(self)

    def detach(self) -> None:
        """Leave no hook and no wrapped function behind."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        clipping.BY_NORM.leave(self)
        clipping.BY_VALUE.leave(self)
        scaler.STEPS.leave(self)
        scaler.UNSCALES.leave(self)
        CLEARINGS.leave(self)

    # -- what the step was ---------------------------------------------------------------------------------------------

    def read_the_rest(self) -> None:
        """The step ends: read what no given optimizer owns."""
        self._safely(self._read_the_rest)
        if not self._optimizers:
            self._look(self._gradients.everything, next(iter(self.scales.values()), None))

    def look_at_everything(self) -> None:
        """The loop has failed before an optimizer could step: see whether the gradients are why."""
        self._safely(self._gradients.read, self._gradients.everything)
        self._safely(self._owner.look, self._gradients.everything, None)

    def end_step(self) -> Stepping:
        """How the step was made; the next one begins."""
        self._guarded(self._regroup)
        rates = [_rate(group) for optimizer in self._optimizers for group in optimizer.param_groups]
        rates = (rates + [None] * len(self.groups))[: len(self.groups)]  # after a fault, groups are as they were then
        main = sum(len(optimizer.param_groups) for optimizer in self._optimizers[:-1]) if self._optimizers else None
        stepping = Stepping(rates, main, self.scales, self._nonfinite, self._not_called)
        self.seconds = 0.0
        self.scales, self._nonfinite, self._not_called = {}, [], False
        return stepping

    def _regroup(self) -> None:
        """Learn of new parameter groups, and of new parameters in old ones."""
        now = (self._gradients.generation, *(len(group["params"]) for o in self._optimizers for group in o.param_groups))
        if now == self._grouped:
            return
        self._grouped = now
        several = len(self._optimizers) > 1
        self.groups = tuple(
            f"{i}/{name}" if several else name
            for i, optimizer in enumerate(self._optimizers)
            for name in _names(optimizer.param_groups)
        )
        self._gradients.group_parameters([group["params"] for o in self._optimizers for group in o.param_groups])

    # -- optimizers ----------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._withheld:  # its base class's step, inside of its own
            return
        begun, optimizer = optimizer, self._held.get(optimizer, optimizer)
        within = begun is not optimizer and self._begun is self._begun_by is optimizer
        if within:
            if not self._unread:
                return
            self._unread = False  # its closure has been called: these are the gradients that it steps with
        else:
            self._begun, self._begun_by = optimizer, begun
            self._unheard.discard(optimizer)
            self._unread = _has_closure(args, kwargs)
        if self._scaling is not optimizer and not self._unread:
            self._safely(self._read, optimizer)
            if self._look(self._owned(optimizer), None) and self._owner.withholds:
                self._withhold(optimizer)
        if not within:
            self._clock.begin(OPTIMIZER)

    def _withhold(self, optimizer: Optimizer) -> None:
        """Let the optimizer find no gradients in this step: one without them changes neither parameters nor state."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._withheld.append((parameter, parameter.grad))
                    parameter.grad = None
        self._not_called = True

    def _give_back(self) -> None:
        for parameter, gradient in self._withheld:
            parameter.grad = gradient
        self._withheld.clear()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._give_back()
        if (holder := self._held.get(optimizer)) is not None:
            if self._begun_by is not optimizer:  # the holder's own step goes on
                return
            optimizer = holder
        self._clock.end(OPTIMIZER)
        if self._scaling is optimizer:  # it ends when the scaler has done with it
            return
        if self._begun is not optimizer and optimizer not in self._unheard:
            return  # it called its base class's step, which torch hooks too, and that one has been heard
        self._begun = None
        self._unheard.discard(optimizer)
        if _has_closure(args, kwargs) and self._unread:
            self._safely(self._read, optimizer)
            self._look(self._owned(optimizer), None, updated=True)
        self._stepped(optimizer)

    def _read(self, optimizer: Optimizer) -> None:
        selection = self._owned(optimizer)
        self._gradients.read(selection)
        # A loop may do without a scaler object what torch's does with an optimizer that unscales inside its step.
        scale, found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        if isinstance(scale, Tensor):
            self._scaled(selection, held(scale), unscaled=False)
        if isinstance(found, Tensor):
            self._nonfinite.append(found)

    def _stepped(self, optimizer: Optimizer) -> None:
        if self._optimizers and optimizer is self._optimizers[-1] and os.getpid() == self._process:
            self._owner.step_over()

    def _any_has_stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Any optimizer of the process has: one that was exchanged for ours, and nobody told us?"""
        if optimizer not in self._optimizers and optimizer not in self._held and self._begun is None:
            self._guarded(self._another_has_stepped, optimizer)

    def _another_has_stepped(self, other: Optimizer) -> None:
        places = self._owned(other).places
        for optimizer in self._optimizers if len(places) else ():
            if np.isin(places, self._owned(optimizer).places).any():
                self._owner.another_stepped(_ANOTHER.format(other=type(other).__name__, ours=type(optimizer).__name__))

    # -- scalers -------------------------------------------------------------------------------------------------------

    def before_scaler_steps(self, optimizer: Optimizer, scale: float | Tensor, *, unscaled: bool) -> None:
        optimizer = self._held.get(optimizer, optimizer)
        self._scaling, self._begun = optimizer, None
        self._safely(self._read_scaled, optimizer, scale, unscaled)
        if not self._optimizers or optimizer in self._optimizers:
            try:
                self._look(self._owned(optimizer), scale)
            except NonFiniteError:
                self._scaling = None
                raise

    def _read_scaled(self, optimizer: Optimizer, scale: float | Tensor, unscaled: bool) -> None:
        selection = self._owned(optimizer)
        if not self._optimizers or optimizer in self._optimizers:
            self._gradients.read(selection)
            own = getattr(optimizer, "grad_scale", None)  # that the loop has set, to be multiplied with the scaler's
            if isinstance(own, Tensor) and not unscaled:
                scale = scale * held(own)
        self._scaled(selection, scale, unscaled=unscaled)

    def after_scaler_stepped(self, optimizer: Optimizer, nonfinite: Sequence[Tensor]) -> None:
        optimizer = self._held.get(optimizer, optimizer)
        called = self._begun is optimizer
        self._scaling = self._begun = None
        self._guarded(self._note_outcome, optimizer, nonfinite, called)
        self._stepped(optimizer)

    def _note_outcome(self, optimizer: Optimizer, nonfinite: Sequence[Tensor], called: bool) -> None:
        if self._owned(optimizer).parameters:
            self._nonfinite += nonfinite
            self._not_called |= optimizer in self._optimizers and not called

    def scaler_failed(self) -> None:
        self._scaling = None

    def before_unscaling(self, optimizer: Optimizer, scale: float | Tensor) -> None:
        if self._scaling is not self._held.get(optimizer, optimizer):  # inside of the scaler's step they have been read already
            self._safely(self._note_unscaling, optimizer, scale)

    def _note_unscaling(self, optimizer: Optimizer, scale: float | Tensor) -> None:
        selection = self._owned(optimizer)
        self._scaled(selection, scale, unscaled=True)
        self._unscaling = (self._gradients.as_clipped(selection), scale)

    def after_unscaling(self) -> None:
        unscaling, self._unscaling = self._unscaling, None
        if unscaling is not None:
            self._safely(self._unscaled, *unscaling)

    def _unscaled(self, selection: Selection, scale: float | Tensor) -> None:
        self._gradients.unscale(selection, scale)
        self._gradients.mark(selection)

    def _scaled(self, selection: Selection, scale: float | Tensor, *, unscaled: bool) -> None:
        """The loss was multiplied with `scale`, and so were, unless `unscaled`, the gradients that were read."""
        for model in selection.models:
            self.scales[model] = scale
        if not unscaled:
            self._gradients.unscale(selection, scale)

    # -- clipping ------------------------------------------------------------------------------------------------------

    def before_clipping(self, parameters: Sequence[Tensor]) -> None:
        self._safely(self._before_clipping, parameters)

    def _before_clipping(self, parameters: Sequence[Tensor]) -> None:
        selection = self._gradients.selection(parameters)
        if selection.parameters:
            self._gradients.before_clipping(selection)
            self._clipping = selection
            # What clipping makes of them can be compared with nothing any more.
            self._owner.look(selection, next((self.scales[model] for model in selection.models if model in self.scales), None))

    def after_clipping(self, coefficient: Tensor | None) -> None:
        selection, self._clipping = self._clipping, None
        if selection is not None:
            self._safely(self._gradients.after_clipping, selection, coefficient)

    def cleared(self, parameters: Parameters) -> None:
        self._safely(self._owner.cleared, parameters)

    # -- whose gradients -----------------------------------------------------------------------------------------------

    def _owned(self, optimizer: Optimizer) -> Selection:
        """The watched parameters that an optimizer owns; it may be given more of them while training goes on."""
        lists = [group["params"] for group in optimizer.param_groups]
        now = (self._gradients.generation, sum(map(len, lists)), *map(id, lists))
        known = self._known.get(optimizer)
        if known is None or known[0] != now:
            selection = self._gradients.selection(parameter for parameters in lists for parameter in parameters)
            if known is not None and known[1].parameters and not selection.parameters:
                self._owner.tell(_LOST.format(optimizer=type(optimizer).__name__))
            known = self._known[optimizer] = (now, selection)
        return known[1]

    def _read_the_rest(self) -> None:
        selections = [self._owned(optimizer) for optimizer in self._optimizers]
        if self._rest is None or any(old is not new for old, new in zip(self._rest[0], selections, strict=True)):
            self._rest = (selections, self._gradients.without(selections))
        if self._rest[1].parameters:
            self._gradients.read_undue(self._rest[1])

    def _look(self, selection: Selection, scale: float | Tensor | None, *, updated: bool = False) -> bool:
        """Whether these gradients are not finite. Raises NonFiniteError where the user wants that, and nothing else."""
        if not self.active or os.getpid() != self._process or is_capturing():
            return False
        started = perf_counter()
        try:
            bad = self._owner.look(selection, scale, updated=updated)
        except Exception as error:
            self._owner.fault(error)
            return False
        self.seconds += perf_counter() - started
        if bad:
            self._owner.raise_if_asked()
        return bad

    def _safely(self, act: Callable[..., object], *arguments: Any) -> None:
        """Read or note something of the gradients, unless a fault has ended that."""
        if self.active:
            self._guarded(act, *arguments)

    def _guarded(self, act: Callable[..., object], *arguments: Any) -> None:
        if os.getpid() != self._process or is_capturing():
            return
        started = perf_counter()
        try:
            act(*arguments)
        except Exception as error:
            self._owner.fault(error)
        self.seconds += perf_counter() - started


_ANOTHER = (
    "an optimizer that was not given to watch, {other}, has stepped parameters of the watched {ours}, and the next forward pass "
    "has begun before the watched one stepped. If the loop has exchanged its optimizer no step ends any more, nothing is recorded: "
    "close this monitor and watch the model with the new one. If both are in use, give watch both, last the one that ends a step"
)

_LOST = (
    "the {optimizer} owns none of the model's parameters any more: they were replaced, as load_state_dict(assign=True) does, and "
    "its steps no longer train the model. Make an optimizer from the new parameters() and watch the model with that"
)


def _held(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer that this one holds and steps, as sharpness-aware minimisation does; a loop may step it without its holder."""
    found = [each for each in vars(optimizer).values() if isinstance(each, Optimizer) and each is not optimizer]
    found = [each for each in found if hasattr(each, "_optimizer_step_pre_hooks")]
    return found if len(found) == 1 else []


def _rate(group: Mapping[str, Any]) -> float | Tensor | None:
    rate = group.get("lr")
    if isinstance(rate, Tensor):  # a capturable optimizer keeps it on the GPU
        return held(rate)
    return float(rate) if isinstance(rate, (int, float)) else None


def _names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the groups of an optimizer are called: by the name that they were given under the key "name", else by their number."""
    names: list[str] = []
    for i, group in enumerate(groups):
        given = group.get("name")
        name = given if isinstance(given, str) and given and given not in names else str(i)
        names.append(name if name not in names else f"#{i}")
    return names


def _has_closure(args: Any, kwargs: Any) -> bool:
    return kwargs.get("closure", args[1] if len(args) > 1 else None) is not None
