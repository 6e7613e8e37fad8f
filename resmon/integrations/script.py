"""`resmon run`: a training script as it is, watched from its first step on.

The script runs as it would by `python script.py`: as `__main__`, its folder first on the path, its arguments its own, its traceback
without a line of resmon's and its exit status its own. Children of `multiprocessing` that train are watched too, however they are
started. A script that never trains says so at its end.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from resmon.errors import ConfigurationError
from resmon.integrations.attachment import Attachment
from resmon.integrations.losses import Losses
from resmon.monitor.watch import Monitor, watch

log = logging.getLogger("resmon")

Arguments = Mapping[str, Any]  # of `watch`, but for model and optimizer


def run(target: str, arguments: Sequence[str], settings: Arguments, *, as_module: bool = False) -> None:
    """Run a script, or a module by its name, and watch what it trains. Leaves as the script leaves.

    Raises ConfigurationError where there is no such script or module.
    """
    main, code = _module(target) if as_module else _script(target)
    sys.argv = [(main.__file__ or target) if as_module else target, *arguments]
    sys.path[0] = "" if as_module else str(Path(target).resolve().parent)
    sys.modules["__main__"] = main
    attached = attach(settings)
    try:
        exec(code, main.__dict__)  # noqa: S102 - what the user has asked for
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - told as Python tells it, without the lines that brought it here
        _tell(error)
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    attached.say_if_none()


class Attached:
    """What waits for this process to train."""

    def __init__(self, settings: Arguments) -> None:
        self._settings = dict(settings)
        self._attachment = Attachment(self._watch)
        self._children = False  # were started, and may have trained

    def begin(self) -> None:
        """Wait, here and in children that are started from here on."""
        self._attachment.wait()
        start, settings = BaseProcess.start, self._settings
        if start.__module__ == __name__:  # inherited by a fork
            return

        def started(process: BaseProcess) -> None:
            target = getattr(process, "_target", None)
            if target is not None and getattr(target, "__module__", "") not in NEVER_TRAIN:
                self._children = True
                process._target = partial(in_child, target, settings)  # type: ignore[attr-defined]
            start(process)

        BaseProcess.start = started  # type: ignore[method-assign, assignment]

    def say_if_none(self) -> None:
        """Tell whoever waits for a run why there is none."""
        attachment = self._attachment
        if attachment.monitor is None and not attachment.is_watched_by_others and not self._children:
            made = len(attachment.optimizers)
            why = (
                "no optimizer was made"
                if not made and not attachment.steps
                else "no module whose parameters an optimizer owns was called with gradients"
            )
            log.warning("resmon: nothing was trained, so nothing was recorded: %s", why)
        attachment.leave()

    def _watch(self, models: nn.Module | Mapping[str, nn.Module], optimizers: Sequence[Optimizer], step: int) -> Monitor:
        monitor = watch(models, optimizers, **(self._settings | ({"start_step": step} if step else {})))
        if len(self._attachment.optimizers) == 1:  # of several losses nobody knows which is the run's
            Losses(monitor)
        return monitor


NEVER_TRAIN = frozenset({"torch.utils.data._utils.worker", "multiprocessing.managers", "multiprocessing.resource_sharer"})


def attach(settings: Arguments) -> Attached:
    """Wait for this process to train."""
    attached = Attached(settings)
    attached.begin()
    return attached


def in_child(target: Callable[..., Any], settings: Arguments, *args: Any, **kwargs: Any) -> Any:
    """What a child process runs in the place of `target`."""
    if nn.Module.__call__.__module__ != Attachment.__module__:  # else it was forked from a process that waits, and waits itself
        attach(settings)
    return target(*args, **kwargs)


def _script(path: str) -> tuple[ModuleType, CodeType]:
    main = ModuleType("__main__")
    main.__file__ = str(Path(path).absolute())
    main.__builtins__ = __builtins__  # type: ignore[attr-defined]
    main.__loader__ = None
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}. Name the script that trains: resmon run train.py."
        ) from error
    return main, _compiled(source, main.__file__)


def _module(name: str) -> tuple[ModuleType, CodeType]:
    sys.path[0] = ""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"there is no module {name}: {error}. Name one that Python finds: python -m {name}.") from error
    if spec is None or spec.origin is None or not spec.has_location:
        raise ConfigurationError(f"there is no module {name} that could be run. Name one that Python finds: python -m {name}.")
    main = ModuleType("__main__")
    main.__file__, main.__spec__, main.__package__ = spec.origin, spec, spec.parent
    main.__builtins__ = __builtins__  # type: ignore[attr-defined]
    return main, _compiled(Path(spec.origin).read_bytes(), spec.origin)


def _compiled(source: bytes, path: str) -> CodeType:
    try:
        return compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(f"{path} is no Python: {error}.") from error


def _tell(error: BaseException) -> None:
    """Print the traceback from the script's own first line on, and leave it where the interpreter leaves an uncaught one."""
    traceback: TracebackType | None = error.__traceback__
    error.__traceback__ = traceback.tb_next if traceback is not None else None
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    sys.excepthook(type(error), error, error.__traceback__)
