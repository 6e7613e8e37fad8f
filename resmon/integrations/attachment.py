"""Waits for a training to begin, and watches what it trains, though nobody says which model that is.

The first call of a module from outside of all modules, in which gradients are wanted of parameters that an optimizer owns, begins
it: that module is what the loop calls, and it is watched from that very call on, with all optimizers that own parameters of it.
Where an optimizer owns more than that module has, the loop calls several; which ones is known when the optimizer has stepped, and
from then on they are watched, by name. Evaluating, a teacher, and whatever else comes before is let by.

Until then one function of torch's is wrapped, `nn.Module.__call__`, and only between outermost calls, so that no compiler ever sees
it; besides `Optimizer.__init__`, where optimizers are not given. Nothing that goes wrong in here reaches the script.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from resmon.monitor.watch import Monitor, is_watched

log = logging.getLogger("resmon")

Watch = Callable[[nn.Module | Mapping[str, nn.Module], Sequence[Optimizer], int], Monitor]
"""Watches a module, or several by name, and the optimizers of them, from the step of that number on."""


class Attachment:
    """From `wait` until something is watched, or `leave`. `within` are modules whose names their parts keep."""

    def __init__(self, watch: Watch, optimizers: Iterable[Optimizer] | None = None, within: nn.Module | None = None) -> None:
        self.monitor: Monitor | None = None
        self.is_watched_by_others = False  # the script does so itself
        self.steps = 0  # of optimizers, that were over before
        self._watch = watch
        self._given = None if optimizers is None else list(optimizers)
        self._made: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._within = within
        self._called: dict[int, weakref.ref[nn.Module]] = {}  # that an optimizer owns in part, in the order of their calls
        self._waits = False
        self._call: Any = None
        self._init: Any = None
        self._stepped: Any = None

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """Those that there are, as far as they are known."""
        return list(self._made) if self._given is None else self._given

    def wait(self) -> None:
        """Begin to look."""
        self._waits = True
        self._stepped = register_optimizer_step_post_hook(self._after_step)
        if self._given is None:
            self._init = Optimizer.__init__
            init, made = self._init, self._made

            def noted(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
                init(optimizer, *args, **kwargs)
                made.add(optimizer)

            Optimizer.__init__ = noted  # type: ignore[method-assign, assignment]
        self._look()

    def leave(self) -> None:
        """Look no more; what is watched stays so."""
        self._waits = False
        self._look_away()
        if self._stepped is not None:
            self._stepped.remove()
            self._stepped = None
        if self._init is not None:
            Optimizer.__init__ = self._init  # type: ignore[method-assign]
            self._init = None

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._call = call = nn.Module.__call__

        def outermost(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self._waits:  # wrapped by others meanwhile, so that it could not be taken away
                return call(module, *args, **kwargs)
            self._look_away()
            self._safely(self._is_called, module)
            try:
                return call(module, *args, **kwargs)
            finally:
                if self._waits:
                    self._look()

        nn.Module.__call__ = self._wrapper = outermost  # type: ignore[method-assign]

    def _look_away(self) -> None:
        if self._call is not None and nn.Module.__call__ is self._wrapper:
            nn.Module.__call__ = self._call  # type: ignore[method-assign]
        self._call = None

    def _is_called(self, module: nn.Module) -> None:
        if not torch.is_grad_enabled():
            return
        if is_watched(module):
            self.is_watched_by_others = True
            self.leave()
            log.warning("resmon: the model is watched already; that monitor goes on, and no other is begun")
            return
        own = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
        owners = [each for each in self.optimizers if not own.isdisjoint(_parameters(each))]
        if not owners:
            return
        if all(own.issuperset(_parameters(each)) for each in owners):
            self._attach(module, owners)
        else:
            self._called.setdefault(id(module), weakref.ref(module))

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.steps += 1
        if self._waits:
            self._safely(self._is_stepped, optimizer)

    def _is_stepped(self, optimizer: Optimizer) -> None:
        modules = [module for each in self._called.values() if (module := each()) is not None]
        owned = _parameters(optimizer)
        named = dict(self._named([each for each in modules if not owned.isdisjoint(map(id, each.parameters()))]))
        if named:
            self._attach(named, [optimizer])

    def _attach(self, models: nn.Module | Mapping[str, nn.Module], optimizers: Sequence[Optimizer]) -> None:
        self.leave()
        self.monitor = self._watch(models, optimizers, self.steps)

    def _named(self, modules: Sequence[nn.Module]) -> Iterable[tuple[str, nn.Module]]:
        names = {id(module): name for name, module in self._within.named_modules()} if self._within is not None else {}
        seen: dict[str, int] = {}
        for module in modules:
            name = names.get(id(module)) or type(module).__name__
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), module

    def _safely(self, do: Callable[..., None], *arguments: Any) -> None:
        try:
            do(*arguments)
        except Exception as error:  # noqa: BLE001 - the training goes on, unwatched
            log.warning("resmon: the training is not watched: %s", error)
            self.leave()


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(each) for group in optimizer.param_groups for each in group["params"] if each.requires_grad}
