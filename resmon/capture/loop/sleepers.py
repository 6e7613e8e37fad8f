"""The modules of a model that have not run yet, such as blocks that stochastic depth has skipped, or that are new.

A pass in which one of them runs has to be traced. While there are few traced passes every pass is; later an alarm on each sleeper
says when it wakes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from threading import get_ident
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from resmon.capture.discovery.registration import REGISTRATIONS
from resmon.capture.host import compiler
from resmon.capture.host.hook import Hook
from resmon.capture.probes.taps import Watcher, to_be_traced


class Sleepers:
    """Those of `model` with parameters of their own. `watcher` is asked to trace again when one wakes."""

    def __init__(self, model: nn.Module, watcher: Watcher) -> None:
        self._model = model
        self._watcher = watcher
        self._modules: dict[str, weakref.ref[nn.Module]] = {}
        self._asleep: dict[str, nn.Module] = {}
        self._alarms: dict[str, RemovableHandle] = {}
        self._rebuilt = False  # some module, perhaps of this model, was given another submodule

    def __bool__(self) -> bool:
        return bool(self._asleep)

    def attach(self) -> None:
        compiler.leave_alone((_Alarm.__call__,))
        self._look()
        REGISTRATIONS.listen(self._has_been_rebuilt)

    def detach(self) -> None:
        """Leave no hook behind."""
        REGISTRATIONS.leave(self._has_been_rebuilt)
        for handle in self._alarms.values():
            handle.remove()
        self._alarms.clear()

    def has_new(self) -> bool:
        """Whether the model has been given modules since this was asked last."""
        return self._rebuilt and self._look()

    def have_run(self, paths: Iterable[str]) -> None:
        for path in {compiler.plain(path) for path in paths} & self._asleep.keys():
            self._forget(path)

    def set_alarms(self) -> None:
        """From here on passes are no longer traced to see whether one wakes."""
        for path in self._asleep.keys() - self._alarms.keys():
            self._alarms[path] = self._asleep[path].register_forward_pre_hook(_Alarm(self._watcher), with_kwargs=True)

    def _has_been_rebuilt(self, module: nn.Module) -> None:
        self._rebuilt = True

    def _look(self) -> bool:
        """Take the model's modules as they are now; whether there are new ones."""
        self._rebuilt = False
        modules = {compiler.plain(path): module for path, module in self._model.named_modules()}
        new = {
            path: module for path, module in modules.items() if (known := self._modules.get(path)) is None or known() is not module
        }
        self._modules = {path: weakref.ref(module) for path, module in modules.items()}
        for path in [path for path, module in self._asleep.items() if modules.get(path) is not module]:
            self._forget(path)
        self._asleep |= {path: module for path, module in new.items() if next(module.parameters(recurse=False), None) is not None}
        return bool(new)

    def _forget(self, path: str) -> None:
        del self._asleep[path]
        if path in self._alarms:
            self._alarms.pop(path).remove()


class _Alarm(Hook):
    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if compiler.traces():
            if to_be_traced(self._watcher):
                compiler.freely(self._watcher.trace_again)
        elif self._watcher.active and self._watcher.thread == get_ident():
            self._watcher.trace_again()
