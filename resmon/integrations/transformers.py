"""transformers' `Trainer`: `Trainer(..., callbacks=[ResmonCallback()])` watches what it trains.

What it logs, the scores of its evaluations, the epoch and checkpoints come along. A score that is `eval_loss` there is `val_loss`
here, so that its gap to `loss` is told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from resmon.monitor.watch import Monitor, is_watched, watch

log = logging.getLogger("resmon")

# What a flight has by itself: at every step, before clipping, of each parameter group.
OWN = frozenset({"learning_rate", "grad_norm"})


class ResmonCallback(TrainerCallback):
    """Watches from the beginning of `train` to its end, under the Trainer's `run_name`. A watched model is left alone.

    The arguments are those of `resmon.watch`, but for model and optimizer. Training that is resumed from a checkpoint goes on with
    its step.
    """

    def __init__(self, **settings: Any) -> None:
        self.monitor: Monitor | None = None
        self._settings = settings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if is_watched(kwargs["model"]):
            log.warning("resmon: the Trainer's model is watched already; that monitor goes on, and no other is begun")
            return
        run = {"run": args.run_name} if args.run_name and args.run_name != args.output_dir else {}
        settings = {**run, "start_step": state.global_step, **self._settings}
        self.monitor = watch(kwargs["model"], kwargs["optimizer"], **settings)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if self.monitor is not None:
            values = {name: value for name, value in (logs or {}).items() if name not in OWN and isinstance(value, (int, float))}
            self.monitor.log(**{_named(name): value for name, value in values.items()})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.monitor is not None:
            self.monitor.checkpoint(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.monitor is not None:
            self.monitor.close()
            self.monitor = None


def _named(name: str) -> str:
    """A score's name in a flight."""
    return f"val_{name.removeprefix('eval_')}" if name.startswith("eval_") else name
