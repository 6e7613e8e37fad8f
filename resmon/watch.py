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
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import resmon
from resmon.agent import find_or_start, register, runtime
from resmon.capture import process
from resmon.capture.placement import class_name, unwrapped
from resmon.capture.session import Session
from resmon.errors import ResmonError
from resmon.flight import journal
from resmon.flight.layout import CHECKPOINTS, REACHED, boot_id, claim, safe_name
from resmon.flight.writer import FlightWriter
from resmon.records import Checkpoint, Outcome, ResidualSite, RunEnd, RunInfo, ScalarRecord, StepRecord
from resmon.settings import Settings
from resmon.targets import Reached, parse

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

log = logging.getLogger("resmon")

LONGEST_LOCATION = 8192  # characters of a checkpoint's path or URL

_monitors: weakref.WeakKeyDictionary[Any, Monitor] = weakref.WeakKeyDictionary()


def watch(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
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

    `model` is the module that the loop calls, or a dict of several. A step ends when `optimizer` steps (or a gradient scaler skips
    it); of several optimizers (generator and critic, actor and critic), when the last one given does. Each parameter's gradient is
    read when its own optimizer steps. Without an optimizer the loop calls `Monitor.step()`, before it clears gradients. The other
    arguments are those of `resmon.settings.Settings`, where each is explained; one not given comes from its RESMON_* environment
    variable, then from resmon.toml, then from its default.

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
    return Monitor({key: unwrapped(each) for key, each in models.items()}, optimizer, chosen)


class Monitor:
    """What `watch` returns: a handle on one watched run. Also a context manager, which closes it and notes an exception."""

    def __init__(self, models: dict[str, nn.Module], optimizer: Optimizer | Sequence[Optimizer] | None, settings: Settings) -> None:
        self._ended = False
        self._process = os.getpid()
        self._said: set[str] = set()
        # First what can refuse its arguments: nothing is on disk, and no other monitor closed, before they are known to do.
        self._session = Session(
            models,
            optimizer,
            start_step=settings.start_step,
            include=settings.include,
            exclude=settings.exclude,
            sample=settings.sample,
            other_ranks=settings.other_ranks,
        )
        self._flight = _Flight(models, settings)
        for model in models.values():
            if model in _monitors:
                log.warning("resmon: the model is watched already; that monitor is closed and this one goes on")
                _monitors[model].close()
        if process.knows_its_rank():
            self._flight.open()
        self._session.attach(self._flight)
        for model in models.values():
            _monitors[model] = self
        atexit.register(self._interpreter_exits)

    @property
    def sites(self) -> tuple[ResidualSite, ...]:
        """The residual sites that are watched, in order of execution; empty until the first forward pass."""
        return self._session.sites

    @property
    def directory(self) -> Path:
        """The run's folder: `resmon.load` reads it."""
        return self._flight.directory

    def log(self, **scalars: Any) -> None:
        """Record numbers of the step that is under way or just over: `loss=`, `accuracy=`, any name.

        A value is a number or a tensor of one element. Anything else is ignored with a warning, so that logging never ends a run.
        """
        if self._is_open():
            self._session.log(scalars)

    def step(self) -> None:
        """End a step, where `watch` was given no optimizer. Call it after the backward pass, before gradients are cleared."""
        if self._is_open():
            self._session.step()

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Note that a checkpoint of the newest step that is over has been written to `path`: a file, a folder or a URL.

        So that whoever looks at the run later finds the last one from before things went wrong. Nothing is read or written there.
        What cannot be noted is ignored with a warning, so that saving a checkpoint never ends a run.
        """
        if not self._is_open():
            return
        try:
            self._flight.checkpoint(_location(path), self._session.last_step)
        except (OSError, ResmonError) as error:
            self._warn("a checkpoint could not be noted", str(error))
        except Exception as error:  # noqa: BLE001 - no path, or one whose own code fails
            self._warn("a checkpoint was ignored", f"{error}; pass the path or URL that it was written to")

    def close(self) -> None:
        """The run is finished: take every hook off the model and write the end mark. Closing twice does nothing."""
        self._end("finished", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end(*_outcome(error))

    def _is_open(self) -> bool:
        return not self._ended and os.getpid() == self._process

    def _warn(self, what: str, why: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("resmon: %s: %s. Further ones will not be told", what, why)

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
            self._flight.end(RunEnd(outcome, time.time(), self._session.last_step, reason))
        except (OSError, ResmonError) as error:
            log.warning("resmon: the end of the run could not be written whole: %s", error)


class _Flight:
    """This rank's flight, to which the session gives its records.

    Where the process knows its rank it is opened by `watch`. A child of a spawning script that has not joined its process group yet
    learns its rank later; there the flight is opened when the first record comes, which is in the first forward pass.
    """

    def __init__(self, models: Mapping[str, nn.Module], settings: Settings) -> None:
        self._settings = settings
        self._labels = {key: _label(settings.model_name, key, model) for key, model in models.items()}
        self._run = settings.run
        self._proposed = time.strftime("%Y%m%d-%H%M%S")
        self._started = time.time()
        self._clock = time.monotonic()  # that cannot be set, as the other can
        self._targets = list(parse(settings.targets))
        self._ranks = (0, 1)
        self._writer: FlightWriter | None = None
        self._folder = Path()  # this rank's, once it is claimed

    @property
    def directory(self) -> Path:
        return self._settings.directory.absolute() / safe_name(self._run or self._proposed)

    def open(self) -> FlightWriter:
        """Claim this rank's place in the run and begin to write. Raises ConfigurationError where that cannot be."""
        settings = self._settings
        rank, world_size = self._ranks = process.rank_and_world()
        launch = process.launch()
        if self._run is None:
            self._run = self._proposed if world_size == 1 else process.agreed("run", self._proposed) or process.short(launch)
        folder, attempt = claim(settings.directory.absolute(), self._run, launch, rank)
        info = RunInfo(
            run=self._run,
            attempt=attempt,
            rank=rank,
            world_size=world_size,
            models=self._labels,
            started=self._started,
            start_step=settings.start_step,
            launch=launch,
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid=os.getpid(),
            resmon=resmon.__version__,
            python=platform.python_version(),
            torch=process.torch_version(),
            command=tuple(sys.argv),
            working_directory=str(Path.cwd()),
            git_commit=_git_commit(),
            seed=process.seed(),
            local_world_size=process.local_world(),
            targets=tuple(map(str, self._targets)),
        )
        self._folder = folder
        self._writer = FlightWriter(folder, info, settings.budget)
        served = _serve(settings, folder)
        if rank == 0:
            name = self._run if len(self._run) <= 80 else f"{self._run[:80]}…"
            print(f"resmon: run {name!r}, attempt {attempt}, recorded in {self.directory}{served}", file=sys.stderr)
        return self._writer

    def sites(self, sites: Sequence[ResidualSite], groups: Sequence[str]) -> None:
        writer = self._writer or self.open()
        if self._ranks[1] == 1 and process.rank_and_world()[1] > 1:
            log.warning(
                "resmon: torch.distributed was initialised after watch, so every rank is recorded as an attempt of its own and "
                "nothing is merged; call init_process_group before resmon.watch"
            )
        writer.sites(sites, groups)

    def step(self, record: StepRecord) -> None:
        (self._writer or self.open()).step(record)

    def scalars(self, record: ScalarRecord) -> None:
        (self._writer or self.open()).scalars(record)
        for target in [target for target in self._targets if target.is_met(record.values)]:
            self._targets.remove(target)
            steps = record.step - self._settings.start_step + 1
            seconds = time.monotonic() - self._clock
            reached = Reached(str(target), record.step, steps, record.time, seconds, record.values[target.score])
            journal.append(self._folder / REACHED, asdict(reached))

    def checkpoint(self, path: str, step: int | None) -> None:
        if self._writer is None:
            self.open()
        journal.append(self._folder / CHECKPOINTS, asdict(Checkpoint(step, time.time(), path)))

    def end(self, end: RunEnd) -> None:
        (self._writer or self.open()).end(end)


def _location(path: Any) -> str:
    """A path or URL as text. Raises TypeError or ValueError for what is none."""
    text = os.fsdecode(os.fspath(path))
    if not text or len(text) > LONGEST_LOCATION:
        raise ValueError(f"a path of {len(text)} characters")
    return text


def _outcome(error: BaseException | None) -> tuple[Outcome, str]:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished", ""
    reason = f"{type(error).__name__}: {error}"[:1000]
    return ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed"), reason


def _label(model_name: str | None, key: str, model: Any) -> str:
    name = model_name or class_name(model)
    return f"{name}.{key}" if key and model_name else key or name


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
