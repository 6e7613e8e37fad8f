"""Hears when any module of this process is given a submodule or a parameter: a watched model that changes is looked at again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook, register_module_parameter_registration_hook
from torch.utils.hooks import RemovableHandle

from resmon.capture.host import compiler

Listener = Callable[[nn.Module], None]


class Registrations:
    """Calls its listeners at every registration. torch hears nothing of us while there is none."""

    def __init__(self, register: Callable[[Callable[[nn.Module, str, Any], None]], RemovableHandle]) -> None:
        self._register = register  # torch's way to hear of them
        self._listeners: tuple[Listener, ...] = ()
        self._handle: RemovableHandle | None = None

    def listen(self, listener: Listener) -> None:
        if self._handle is None:
            self._handle = self._register(compiler.apart(self._heard))  # where code that is compiled makes modules
        self._listeners += (listener,)

    def leave(self, listener: Listener) -> None:
        """`listener` hears nothing any more; it need not have listened."""
        self._listeners = tuple(other for other in self._listeners if other != listener)
        if not self._listeners and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _heard(self, module: nn.Module, name: str, given: Any) -> None:
        for listener in self._listeners:
            listener(module)


# One of each for the process: torch's hooks are, too.
REGISTRATIONS = Registrations(register_module_module_registration_hook)
PARAMETERS = Registrations(register_module_parameter_registration_hook)
