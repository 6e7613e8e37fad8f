"""Accelerate: `monitor = watch(accelerator)`, after `prepare`, watches what was prepared.

What `accelerator.log` is given and what `accelerator.save_state` saves come along; `accelerator.end_training` closes the monitor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import nn

import resmon
from resmon.errors import ConfigurationError
from resmon.monitor.watch import Monitor


def watch(accelerator: Accelerator, **settings: Any) -> Monitor:
    """Watch the models that `accelerator` has prepared, with all optimizers that it has.

    The other arguments are those of `resmon.watch`. Raises ConfigurationError where nothing was prepared.
    """
    models, optimizers = list(accelerator._models), list(accelerator._optimizers)
    if not models or not optimizers:
        raise ConfigurationError(
            "the accelerator has prepared no model with an optimizer; call accelerator.prepare(model, optimizer, ...) before watch."
        )
    monitor = resmon.watch(models[0] if len(models) == 1 else _by_name(models), optimizers, **settings)
    tracker = _Tracker(monitor)
    accelerator.trackers.append(tracker)
    accelerator.log_with.append(tracker)  # init_trackers makes the list anew, of these
    save = accelerator.save_state

    def saved(*arguments: Any, **options: Any) -> Any:
        folder = save(*arguments, **options)
        monitor.checkpoint(folder)
        return folder

    accelerator.save_state = saved
    return monitor


def _by_name(models: list[nn.Module]) -> Mapping[str, nn.Module]:
    named: dict[str, nn.Module] = {}
    for model in models:
        name = again = type(model).__name__
        number = 2
        while again in named:
            again, number = f"{name}#{number}", number + 1
        named[again] = model
    return named


class _Tracker(GeneralTracker):  # type: ignore[misc]
    """Accelerate tells its trackers what was logged."""

    name = "resmon"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, monitor: Monitor) -> None:
        super().__init__(_blank=True)
        self._monitor = monitor

    @property
    def tracker(self) -> Monitor:
        return self._monitor

    def store_init_configuration(self, values: Mapping[str, Any]) -> None: ...

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        self._monitor.log(**{name: value for name, value in values.items() if not isinstance(value, str)})

    def finish(self) -> None:
        self._monitor.close()
