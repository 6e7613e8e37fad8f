"""Lightning: `Trainer(..., callbacks=[ResmonCallback()])` watches what `training_step` calls.

The loss of every step, what `self.log` gives to loggers, and checkpoints come along.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.optim import Optimizer

from resmon.integrations.attachment import Attachment
from resmon.monitor.watch import Monitor, watch

log = logging.getLogger("resmon")


class ResmonCallback(pl.Callback):
    """Watches from the first training step of `fit` to its end; a model that is watched already is left alone.

    The arguments are those of `resmon.watch`, but for model and optimizer; the label `model` is the LightningModule's class. Where
    `training_step` calls several parts of that, each is a model of its own, by its name, from the second step on.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._attachment: Attachment | None = None
        self._put_back: Callable[[], None] | None = None

    @property
    def monitor(self) -> Monitor | None:
        """From the first training step on."""
        return None if self._attachment is None else self._attachment.monitor

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if any(isinstance(each, ResmonCallback) and each._attachment is not None for each in trainer.callbacks):  # type: ignore[attr-defined]
            log.warning("resmon: the Trainer has two callbacks of resmon; the second one does nothing")
            return

        def begin(models: nn.Module | Mapping[str, nn.Module], optimizers: Sequence[Optimizer], after: int) -> Monitor:
            name = {"model_name": type(pl_module).__name__} if isinstance(models, nn.Module) else {}
            return watch(models, optimizers, **{**name, "start_step": trainer.global_step + after, **self._settings})

        self._attachment = Attachment(begin, trainer.optimizers, within=pl_module)
        self._attachment.wait()
        self._listen(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self.monitor is not None and isinstance(loss, Tensor) and loss.numel() == 1:
            self.monitor.log(loss=loss.detach())

    def on_fit_end(self, *_: Any) -> None:
        self._end()

    def on_exception(self, *_: Any) -> None:
        self._end()

    def _listen(self, trainer: pl.Trainer) -> None:
        """Hear of what is logged and saved, until `_end`."""
        loggers, save = list(trainer.loggers), trainer.strategy.save_checkpoint

        def saved(checkpoint: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
            result = save(checkpoint, filepath, *args, **kwargs)
            if self.monitor is not None:
                self.monitor.checkpoint(filepath)
            return result

        def put_back() -> None:
            trainer.loggers = [each for each in trainer.loggers if not isinstance(each, _Scores)]
            trainer.strategy.__dict__.pop("save_checkpoint", None)  # the class has its own

        trainer.loggers = [*loggers, _Scores(self)]
        trainer.strategy.save_checkpoint = saved  # type: ignore[method-assign]
        self._put_back = put_back

    def _end(self) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None
        if self._attachment is not None:
            self._attachment.leave()
            if self._attachment.monitor is not None:
                self._attachment.monitor.close()
            self._attachment = None


class _Scores(Logger):
    """Lightning tells its loggers what was logged, each number once."""

    def __init__(self, callback: ResmonCallback) -> None:
        super().__init__()
        self._callback = callback

    @property
    def name(self) -> str:
        return "resmon"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._callback.monitor is not None:
            self._callback.monitor.log(**metrics)
