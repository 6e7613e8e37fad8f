"""`watch`: the one place where capture, flight and agent meet."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import socket
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import resmon
from resmon.agent import find_or_start, register, runtime
from resmon.capture import process
from resmon.capture.session import Session
from resmon.errors import ResmonError
from resmon.flight.layout import boot_id, claim
from resmon.flight.writer import FlightWriter
from resmon.records import Outcome, ResidualSite, RunEnd, RunInfo
from resmon.settings import Settings

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

log = logging.getLogger("resmon")

_monitors: weakref.WeakKeyDictionary[Any, Monitor] = weakref.WeakKeyDictionary()


def watch(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | None = None,
    *,
    run: str | None = None,
    model_name: str | None = None,
    directory: str | Path | None = None,
    listen: str | None = None,
    agent: str | None = None,
    start_step: int | None = None,
    include: str | tuple[str, ...] | None = None,
    exclude: str | tuple[str, ...] | None = None,
    **settings: Any,
) -> Monitor:
    """Watch the residual blocks of `model` from here on, and record every step.

    `model` is the module that the loop calls, or a dict of several. A step ends when `optimizer` steps; without one the loop
    calls `Monitor.step()`. The other arguments are those of `resmon.settings.Settings`, where each is explained; one not given
    comes from its RESMON_* environment variable, then from resmon.toml, then from its default.

    The residual sites are found in the first forward pass that builds a graph; until then `Monitor.sites` is empty. A model that
    is watched already is watched by the new monitor only: the old one is closed.

    Raises ConfigurationError where an argument cannot be used, the optimizer owns none of the model's parameters, or the
    directory cannot be written.
    """
    chosen = Settings.of(
        run=run,
        model_name=model_name,
        directory=directory,
        listen=listen,
        agent=agent,
        start_step=start_step,
        include=include,
        exclude=exclude,
        **settings,
    )
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    return Monitor(models, optimizer, chosen)


class Monitor:
    """What `watch` returns: a handle on one watched run. Also a context manager, which closes it and notes an exception."""

    def __init__(self, models: dict[str, nn.Module], optimizer: Optimizer | None, settings: Settings) -> None:
        self._ended = False
        self._process = os.getpid()
        # First what can refuse its arguments: nothing is on disk, and no other monitor closed, before they are known to do.
        self._session = Session(
            models,
            optimizer,
            start_step=settings.start_step,
            include=settings.include,
            exclude=settings.exclude,
            sample=settings.sample,
        )
        for model in models.values():
            if model in _monitors:
                log.warning("resmon: the model is watched already; that monitor is closed and this one goes on")
                _monitors[model].close()
        rank, world_size = process.rank_and_world()
        run = time.strftime("%Y%m%d-%H%M%S") if settings.run is None else settings.run
        launch = _launch(world_size)
        folder, attempt = claim(settings.directory.absolute(), run, launch, rank)
        info = RunInfo(
            run=run,
            attempt=attempt,
            rank=rank,
            world_size=world_size,
            models={key: _label(settings.model_name, key, model) for key, model in models.items()},
            started=time.time(),
            start_step=settings.start_step,
            launch=launch,
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid=self._process,
            resmon=resmon.__version__,
            python=platform.python_version(),
            torch=process.torch_version(),
            command=tuple(sys.argv),
            working_directory=str(Path.cwd()),
            git_commit=_git_commit(),
            seed=process.seed(),
        )
        self._writer = FlightWriter(folder, info, settings.budget)
        self._directory = folder.parent.parent
        self._session.attach(self._writer)
        for model in models.values():
            _monitors[model] = self
        atexit.register(self._interpreter_exits)
        served = _serve(settings, folder)
        if rank == 0:
            print(f"resmon: run {run!r}, attempt {attempt}, recorded in {self._directory}{served}", file=sys.stderr)

    @property
    def sites(self) -> tuple[ResidualSite, ...]:
        """The residual sites that are watched, in order of execution; empty until the first forward pass."""
        return self._session.sites

    @property
    def directory(self) -> Path:
        """The run's folder: `resmon.load` reads it."""
        return self._directory

    def log(self, **scalars: Any) -> None:
        """Record numbers of the step that is under way or just over: `loss=`, `accuracy=`, any name.

        A value is a number or a tensor of one element. Anything else is ignored with a warning, so that logging never ends a run.
        """
        if self._is_open():
            self._session.log(scalars)

    def step(self) -> None:
        """End a step, where `watch` was given no optimizer. Call it after the backward pass, before gradients are cleared."""
        if self._is_open():
            self._session.before_step()
            self._session.after_step()

    def close(self) -> None:
        """The run is finished: take every hook off the model and write the end mark. Closing twice does nothing."""
        self._end("finished", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end(*_outcome(error))

    def _is_open(self) -> bool:
        return not self._ended and os.getpid() == self._process

    def _interpreter_exits(self) -> None:
        # An exception that nobody caught has been printed by now and stands in sys.last_value. In an interactive session it is
        # just the newest of many; sys.exit(3) leaves no trace there, and only `with` sees it.
        error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
        self._end(*_outcome(error))

    def _end(self, outcome: Outcome, reason: str) -> None:
        if not self._is_open():
            return
        self._ended = True
        atexit.unregister(self._interpreter_exits)
        for model in [model for model, monitor in _monitors.items() if monitor is self]:
            del _monitors[model]
        self._session.finish()
        self._session.detach()
        try:
            self._writer.end(RunEnd(outcome, time.time(), self._session.last_step, reason))
        except OSError as error:
            log.warning("resmon: the end of the run could not be written: %s", error)


def _outcome(error: BaseException | None) -> tuple[Outcome, str]:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished", ""
    reason = f"{type(error).__name__}: {error}"[:1000]
    return ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed"), reason


def _label(model_name: str | None, key: str, model: Any) -> str:
    name = model_name or type(model).__name__
    return f"{name}.{key}" if key and model_name else key or name


def _launch(world_size: int) -> str:
    """What the ranks of one launch share and another launch does not.

    The launcher's own words where there are some, and the address where ranks meet. A single process shares with nobody.
    """
    environment = os.environ
    if world_size == 1:
        return uuid.uuid4().hex
    words = [
        environment.get(name, "")
        for name in (
            "TORCHELASTIC_RUN_ID",
            "TORCHELASTIC_RESTART_COUNT",
            "SLURM_JOB_ID",
            "SLURM_RESTART_COUNT",
            "MASTER_ADDR",
            "MASTER_PORT",
        )
    ]
    return ":".join(words)


def _git_commit() -> str | None:
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=2, check=False)  # noqa: S607, whichever git the user has
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _serve(settings: Settings, folder: Path) -> str:
    """Hand the flight to the agent. What goes wrong here costs the metrics, not the run."""
    if settings.agent == "off":
        return ""
    try:
        register(folder)
        url = find_or_start(settings)
        home = runtime.folder()
        now = runtime.serving(home)
    except (ResmonError, OSError) as error:
        log.warning("resmon: the agent could not be started, so there are no live metrics: %s", error)
        return ""
    if url is None:
        return ""
    if now is not None and now.url:
        return f", served at {url}/metrics"
    return f", to be served at {url}/metrics (or, if another program has that port, where {home / runtime.LOG} says)"
