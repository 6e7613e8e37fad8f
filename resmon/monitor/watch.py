"""`watch`: the one place where capture, flight and agent meet."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import platform
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import resmon
from resmon.agent import Reaction, find_or_start, register, runtime
from resmon.capture.forensics.failures import said
from resmon.capture.host import process
from resmon.capture.host.last_words import LastWords
from resmon.capture.host.placement import class_name, unwrapped
from resmon.capture.loop.session import Session
from resmon.errors import ConfigurationError, ResmonError, remedy
from resmon.flight import journal, layout
from resmon.flight.endings import Remains, conclude, told
from resmon.flight.layout import CHECKPOINTS, END, REACHED, SPANS, STACK, boot_id, claim, reserved, safe_name
from resmon.flight.writer import FlightWriter
from resmon.memory.kills import kills, memory_group
from resmon.monitor import notebook
from resmon.monitor.instruments import Shown, show
from resmon.monitor.tuning import resolved
from resmon.monitor.watchdog import Watchdog
from resmon.page.address import address
from resmon.records import (
    Checkpoint,
    Incident,
    Outcome,
    ResidualSite,
    RunEnd,
    RunInfo,
    ScalarRecord,
    SpanRecord,
    StackDump,
    StepRecord,
)
from resmon.scores.targets import Reached, parse
from resmon.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from torch import nn
    from torch.optim import Optimizer

    from resmon.portrait.picture import Picture

log = logging.getLogger("resmon")

DEEPEST = 40  # calls of a stack
LONGEST_LOCATION = 8192  # characters of a checkpoint's path or URL

_FORGOTTEN = (
    "resmon: another monitor of the run %r is open in this process: it holds its model in memory, and its attempt counts as "
    "running, until it is closed. Call close() when a training is over, or use `with resmon.watch(...)`; several models of one "
    "training are watched together, as a dict"
)

_ANEW = (
    "resmon: the run %r is watched already, with another model; that monitor is closed and this one goes on. Several models of one "
    "training are watched together, as a dict"
)

_monitors: weakref.WeakKeyDictionary[Any, Monitor] = weakref.WeakKeyDictionary()


def newest_run() -> str | None:
    """The run that this process watches, the one that was begun last where there are several; None where it watches none."""
    monitors = [monitor for monitor in _monitors.values() if monitor._is_open()]
    return monitors[-1].run if monitors else None


def is_watched(model: nn.Module) -> bool:
    """Whether a monitor of this process watches the module, or a part of it."""
    return any(part in _monitors for part in unwrapped(model).modules())


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
    meter_provider: MeterProvider | None = None,
    **settings: Any,
) -> Monitor:
    """Watch the residual blocks of `model` from here on, and record every step.

    `model` is the module that the loop calls, or a dict of several. A step ends when `optimizer` steps (or a gradient scaler skips
    it); of several optimizers (generator and critic, actor and critic), when the last one given does. Each parameter's gradient is
    read when its own optimizer steps. Without an optimizer the loop calls `Monitor.step()`, before it clears gradients. The other
    arguments are those of `resmon.settings.Settings`, where each is explained; one not given comes from its RESMON_* environment
    variable, then from resmon.toml, then from its default.

    A step whose gradients are NaN or infinite is an incident, which names where they were born. `on_nonfinite="skip_step"` also
    keeps the optimizer from stepping then, `"raise"` raises NonFiniteError in its place.

    A `meter_provider` of OpenTelemetry's is given observable instruments, whose values are read from the newest step's record when
    its readers collect; `opentelemetry=True` does so with the one that the program has set for all (docs/opentelemetry.md).

    The residual sites are found in the first forward pass that builds a graph; until then `Monitor.sites` is empty. A model that
    is watched already is watched by the new monitor only: the old one is closed.

    Raises ConfigurationError where an argument cannot be used, the optimizer owns none of the model's parameters, or the
    directory cannot be written.
    """
    given = {
        "run": run,
        "model_name": model_name,
        "directory": directory,
        "listen": listen,
        "agent": agent,
        "start_step": start_step,
        "include": include,
        "exclude": exclude,
    }
    chosen = resolved(given | settings).without_nits()
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    return Monitor({key: unwrapped(each) for key, each in models.items()}, optimizer, chosen, meter_provider)


class Monitor:
    """What `watch` returns: a handle on one watched run. Also a context manager, which closes it and notes an exception."""

    def __init__(
        self,
        models: dict[str, nn.Module],
        optimizer: Optimizer | Sequence[Optimizer] | None,
        settings: Settings,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._ended = False
        self._past = _Past((), None)  # what is left of the session when the run is over
        self._process = os.getpid()
        self._said: set[str] = set()
        # First what can refuse its arguments: nothing is on disk, and no other monitor closed, before they are known to do.
        session = Session(
            models,
            optimizer,
            start_step=settings.start_step,
            include=settings.include,
            exclude=settings.exclude,
            sample=settings.sample,
            other_ranks=settings.other_ranks,
            on_nonfinite=settings.on_nonfinite,
        )
        shown = None
        if settings.opentelemetry or meter_provider is not None:
            shown = Shown()
            show(shown, meter_provider)
        self._flight = _Flight(models, settings, self._warn, shown)
        for other in set(_monitors.values()):
            if settings.run is None or other.run != settings.run or not other._is_open() or other._watches(models.values()):
                continue
            if notebook.is_one():  # the cells that make the model and watch it are run again
                log.warning(_ANEW, settings.run)
                other.close()
            else:
                log.warning(_FORGOTTEN, settings.run)
        for model in models.values():
            if model in _monitors:
                log.warning("resmon: the model is watched already; that monitor is closed and this one goes on")
                _monitors[model].close()
        if process.knows_its_rank():
            self._flight.open()
        try:
            session.attach(self._flight)
        except BaseException as error:
            session.detach()
            self._flight.end(RunEnd("failed", time.time(), None, f"watch did not come to its end: {said(error)}"))
            raise
        for model in models.values():
            _monitors[model] = self
        self._about = id(sys.exc_info()[1])  # whoever trains while an exception is handled, does so because of it
        self._thread_error: tuple[str, Outcome, bool, int | None] | None = (
            None  # what, which failure, whether it trained, until when
        )
        self._thread_hook = threading.excepthook
        threading.excepthook = self._thread_fails
        atexit.register(self._interpreter_exits)
        self._session: Session | None = session  # until the run is over
        self._cell = session.last_step  # the newest step when the notebook's cell began
        self._leave_notebook = notebook.follow(self._cell_begins, self._cell_fails)
        # A child of multiprocessing does not leave by the interpreter's usual way out.
        is_child = multiprocessing.parent_process() is not None
        self._child_exits = Finalize(None, self.close, exitpriority=0) if is_child else None
        self._watchdog = self._watch_over(settings.stall_after)

    @property
    def sites(self) -> tuple[ResidualSite, ...]:
        """The residual sites that are watched, in order of execution; empty until the first forward pass."""
        return (self._session or self._past).sites

    @property
    def directory(self) -> Path:
        """The run's folder: `resmon.load` reads it."""
        return self._flight.directory

    @property
    def run(self) -> str | None:
        """The run's name, which is the label `run`; None as long as this process does not know its rank and nobody gave one."""
        return self._flight.run

    @property
    def last_step(self) -> int | None:
        """The newest step that is over; None before the first is."""
        return (self._session or self._past).last_step

    def log(self, /, *unnamed: Any, **scalars: Any) -> None:
        """Record numbers of the step that is under way or just over: `loss=`, `accuracy=`, any name. From any thread.

        A value is a number or a tensor of one element. Anything else, what has no name included, is ignored with a warning, so that
        logging never ends a run.
        """
        if unnamed:
            self._warn(
                "log() takes numbers by their names, and what had none was ignored", "write log(loss=loss), or log(**numbers)"
            )
        if (session := self._watching()) is not None:
            session.log(scalars)
        else:
            self._tell_that_it_is_over()

    def step(self) -> None:
        """End a step, where `watch` was given no optimizer. Call it after the backward pass, before gradients are cleared."""
        if (session := self._watching()) is not None:
            session.step()
        else:
            self._tell_that_it_is_over()

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Note that a checkpoint of the newest step that is over has been written to `path`: a file, a folder or a URL.

        So that whoever looks at the run later finds the last one from before things went wrong. Nothing is read or written there.
        What cannot be noted is ignored with a warning, so that saving a checkpoint never ends a run.
        """
        if (session := self._watching()) is None:
            self._tell_that_it_is_over()
            return
        try:
            self._flight.checkpoint(_location(path), session.last_step)
        except (OSError, ResmonError) as error:
            self._warn("a checkpoint could not be noted", str(error))
        except Exception as error:  # noqa: BLE001 - no path, or one whose own code fails
            self._warn("a checkpoint was ignored", f"{error}; pass the path or URL that it was written to")

    def close(self) -> None:
        """The run is over: take every hook off the model and write the end mark. Closing twice does nothing.

        Where an exception is being handled at that moment (in `finally:`, say), that is how the run ended; else it is finished.
        """
        error = sys.exc_info()[1]
        self._end(None if id(error) == self._about else error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end(error)

    def plot(self, quantity: str = "branch_skip_ratio") -> Picture:
        """The loss so far and a heat map of that quantity of the blocks, read from the flight; Flight.plot is the same.

        Raises ConfigurationError where there is none of it yet, or no such quantity.
        """
        from resmon.portrait.flight import plot

        attempt = self._flight.attempt
        if attempt is None:
            raise ConfigurationError("nothing is recorded yet, so there is nothing to draw: a flight begins with the first step.")
        return plot(attempt, quantity)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """How a notebook shows it: as the flight stands on file, so that looking changes nothing of the training."""
        try:
            from resmon.portrait.flight import bundle

            return bundle(self._flight.attempt)
        except Exception as error:  # noqa: BLE001 - the training goes on
            return {"text/plain": f"resmon: the run in {self.directory} cannot be shown: {error!r}"}

    def _watches(self, models: Iterable[nn.Module]) -> bool:
        return any(_monitors.get(model) is self for model in models)

    def _is_open(self) -> bool:
        return not self._ended and os.getpid() == self._process

    def _watching(self) -> Session | None:
        """The session, as long as it is this process's to speak to."""
        return self._session if self._is_open() else None

    def _tell_that_it_is_over(self) -> None:
        if os.getpid() == self._process:
            self._warn("this monitor is closed, so nothing more is recorded", "call resmon.watch again for what follows")

    def _warn(self, what: str, why: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("resmon: %s: %s. Further ones will not be told", what, why)

    def _interpreter_exits(self) -> None:
        # An exception that nobody caught has been printed by now and stands in sys.last_value. In an interactive session it is
        # just the newest of many.
        error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
        self._end(error, exiting=True)

    def _thread_fails(self, args: threading.ExceptHookArgs) -> None:
        """An exception ends a thread, and perhaps the training with it; the interpreter goes on."""
        try:
            error = args.exc_value
            if (session := self._watching()) is not None and error is not None and not isinstance(error, SystemExit):
                name = args.thread.name if args.thread else "a thread"
                trains = threading.get_ident() == self._flight.thread
                incident = session.failed(error) if trains else None
                kind = incident.kind if incident else "failed"
                self._thread_error = f"{said(error)} in thread {name}", kind, trains, session.last_step
        except Exception as own:  # noqa: BLE001 - the training goes on
            self._warn("an exception of a thread was not noted", repr(own))
        finally:
            self._thread_hook(args)

    def _watch_over(self, stall_after: float) -> Watchdog | None:
        if not stall_after:
            return None
        flight = self._flight
        try:
            return Watchdog(stall_after, lambda: flight.moved, self._look, flight.stack)
        except RuntimeError as error:  # no thread can be started: a limit of the user's or of the control group
            self._warn("where the training is will not be looked at if no step comes", str(error))
            return None

    def _look(self, seconds: float) -> StackDump | None:
        """Where the training is, so long after its newest step; None where that cannot be told."""
        session = self._watching()
        if session is None or self._flight.attempt is None:
            return None
        where, doing, calls = session.running(self._flight.thread)
        if not calls:
            return None
        module, deepest = where.module or "", tuple(calls[-DEEPEST:])
        return StackDump(session.last_step, seconds, seconds, doing, where.line, where.model, module, where.block, deepest)

    def _cell_begins(self) -> None:
        self._cell = self.last_step

    def _cell_fails(self, error: BaseException) -> None:
        """A cell that trained has ended with an exception: something broke, and the run may go on in another cell."""
        try:
            session = self._watching()
            if session is not None and (session.last_step != self._cell or session.is_under_way):
                session.failed(error)
        except Exception as own:  # noqa: BLE001 - the training goes on
            self._warn("an exception of a cell was not noted", repr(own))

    def _end(self, error: BaseException | None, exiting: bool = False) -> None:
        if (session := self._watching()) is None:
            return
        self._ended = True
        atexit.unregister(self._interpreter_exits)
        if self._watchdog is not None:
            self._watchdog.close()
        self._leave_notebook()
        if self._child_exits is not None:
            self._child_exits.cancel()
        if threading.excepthook == self._thread_fails:
            threading.excepthook = self._thread_hook
        for model in [model for model, monitor in _monitors.items() if monitor is self]:
            del _monitors[model]
        if isinstance(error, SystemExit) and error.code not in (None, 0) and isinstance(error.__context__, Exception):
            error = error.__context__  # on which the script left
        outcome, reason = _outcome(error)
        signal = self._flight.signal() if outcome in ("finished", "failed") else None
        if signal is not None:
            outcome, reason, error = "interrupted", signal, None
        incident = session.failed(error) if error is not None and outcome != "finished" else None
        session.finish()
        session.detach()
        step, failed = session.last_step, self._thread_error
        if outcome == "finished" and failed is not None and failed[2:] == (True, step):
            reason, outcome = failed[:2]  # it ended the thread that trained
        self._past = _Past(session.sites, step)
        kind = incident.kind if incident else outcome
        if kind in ("finished", "failed") and session.is_nonfinite:
            kind, reason = "nonfinite", reason or "the last step's gradients or loss were NaN or infinite"
        self._session = None  # and with it the model, whose memory is the user's again
        try:
            if exiting and kind == "finished":
                self._flight.leave(step, f" after {failed[0]}" if failed is not None else "")
            else:
                self._flight.end(RunEnd(kind, time.time(), step, reason))
        except (OSError, ResmonError) as error:
            log.warning(
                "resmon: the end of the run could not be written whole (%s): its last steps may be missing, and it may be told as "
                "killed. %s before the next run begins",
                error,
                remedy(error),
            )


@dataclass(frozen=True, slots=True)
class _Past:
    """What a monitor still tells of a run that is over."""

    sites: tuple[ResidualSite, ...]
    last_step: int | None


class _Flight:
    """This rank's flight, to which the session gives its records.

    Where the process knows its rank it is opened by `watch`. A child of a spawning script that has not joined its process group yet
    learns its rank later; there the flight is opened when the first record comes, which is in the first forward pass.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], settings: Settings, warn: Callable[[str, str], None], shown: Shown | None = None
    ) -> None:
        self._settings = settings
        self._shown = shown  # None unless somebody wants to see it
        self._warn = warn
        self._reaction = Reaction.of(settings)
        self._labels = {key: _label(settings.model_name, key, model) for key, model in models.items()}
        self._run = settings.run
        self._proposed = time.strftime("%Y%m%d-%H%M%S")
        self._started = time.time()
        self._clock = time.monotonic()  # that cannot be set, as the other can
        self._targets = list(parse(settings.targets))
        self._ranks = (0, 1)
        self._writer: FlightWriter | None = None
        self._last_words: LastWords | None = None
        self._folder = Path()  # this rank's, once it is claimed
        self._info: RunInfo | None = None
        self._incidents: dict[str, Incident] = {}  # by id
        self.thread = threading.main_thread().ident or 0  # that trains
        self.moved = self._clock  # when the newest step was over

    @property
    def directory(self) -> Path:
        return self._settings.directory.absolute() / safe_name(self._run or self._proposed)

    @property
    def run(self) -> str | None:
        return self._run

    @property
    def attempt(self) -> Path | None:
        """The folder of this attempt; None before it is claimed."""
        return None if self._info is None else self._folder.parent

    def open(self) -> FlightWriter:
        """Claim this rank's place in the run and begin to write. Raises ConfigurationError where that cannot be."""
        settings = self._settings
        rank, world_size = self._ranks = process.rank_and_world()
        launch, unique = process.launch()
        if self._run is None:
            self._run = self._proposed if world_size == 1 else process.agreed("run", self._proposed) or process.short(launch)
        group = memory_group()
        so_far = kills(group)
        folder, attempt = claim(settings.directory.absolute(), self._run, launch, rank, unique=unique)
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
            stall_after=settings.stall_after,
            memory_group=None if group is None else str(group),
            group_kills=so_far.group,
            machine_kills=so_far.machine,
            detectors=settings.detectors,
        )
        try:
            self._writer = FlightWriter(folder, info, settings.budget)
        except ConfigurationError:
            layout.give_back(folder)
            raise
        self._folder, self._info = folder, info
        if self._shown is not None:
            self._shown.info = info
        try:
            self._last_words = LastWords(reserved(folder / END), folder / END)
        except (ValueError, AttributeError) as error:  # there is no such thing on Windows
            self._warn("a signal that ends this process will not be noted", str(error))
        served = _serve(settings, folder, self._reaction)
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
        if self._shown is not None:
            self._shown.sites(sites, groups)

    def step(self, record: StepRecord) -> None:
        (self._writer or self.open()).step(record)
        if self._shown is not None:
            self._shown.step(record)
        self.thread, self.moved = threading.get_ident(), time.monotonic()
        if self._last_words is not None and record.complete:
            self._last_words.step(record.step)

    def scalars(self, record: ScalarRecord) -> None:
        (self._writer or self.open()).scalars(record)
        if self._shown is not None:
            self._shown.scalars(record)
        for target in [target for target in self._targets if target.is_met(record.values)]:
            self._targets.remove(target)
            steps = record.step - self._settings.start_step + 1
            seconds = time.monotonic() - self._clock
            reached = Reached(str(target), record.step, steps, record.time, seconds, record.values[target.score])
            journal.append(self._folder / REACHED, asdict(reached))
            if self._shown is not None:
                self._shown.reached(reached)

    def incident(self, incident: Incident) -> None:
        whole = (self._writer or self.open()).incident(incident)
        if whole is None or self._info is None:
            return
        self._incidents[whole.id] = whole
        if self._shown is not None:
            self._shown.incident(whole)
        if self._reaction is not None:
            try:
                self._reaction.to(whole, self._info, self._folder)
            except (OSError, ResmonError) as error:
                self._warn("on_incident was not run", str(error))

    def span(self, span: SpanRecord) -> None:
        if self._writer is None:
            self.open()
        try:
            journal.append(self._folder / SPANS, asdict(span))
        except OSError as error:
            self._warn("the span that the loop is in could not be noted", str(error))

    def capsule(self, name: str, data: bytes) -> bool:
        if self._writer is None:
            self.open()
        try:
            layout.write_new(self._folder / name, data)
        except OSError as error:
            log.warning("resmon: the capsule %s could not be written: %s", name, error)
            return False
        return True

    def stopped(self, error: OSError) -> None:
        if self._writer is not None:
            self._writer.stopped(error)

    def stack(self, dump: StackDump) -> None:
        layout.write_json(self._folder / STACK, asdict(dump))

    def checkpoint(self, path: str, step: int | None) -> None:
        if self._writer is None:
            self.open()
        checkpoint = Checkpoint(step, time.time(), path)
        journal.append(self._folder / CHECKPOINTS, asdict(checkpoint))
        if self._shown is not None:
            self._shown.checkpoint(checkpoint)

    def signal(self) -> str | None:
        """The signal that has told the program to end, where the program has taken it itself."""
        return self._last_words.signal() if self._last_words is not None else None

    def end(self, end: RunEnd) -> None:
        writer = self._writer or self.open()
        if self._shown is not None:
            self._shown.end(end)
        try:
            _, incident = conclude(Remains(self._folder, self._info, end, None, tuple(self._incidents.values())), (told,))
            if incident is not None:
                self.incident(incident)
        finally:
            try:
                writer.end(end)
            finally:
                if self._last_words is not None:
                    self._last_words.end()

    def leave(self, step: int | None, reason: str) -> None:
        """The interpreter exits, and the exit status is to say how the run ended."""
        writer = self._writer or self.open()
        if self._last_words is None or not self._last_words.leave(reason):
            self.end(RunEnd("finished", time.time(), step))
            return
        writer.leave()


def _location(path: Any) -> str:
    """A path or URL as text. Raises TypeError or ValueError for what is none."""
    text = os.fsdecode(os.fspath(path))
    if not text or len(text) > LONGEST_LOCATION:
        raise ValueError(f"a path of {len(text)} characters")
    return text


def _outcome(error: BaseException | None) -> tuple[Outcome, str]:
    # The others say that something is over, not that it failed.
    if (isinstance(error, SystemExit) and error.code in (None, 0)) or isinstance(error, GeneratorExit | StopIteration | None):
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


def _own_detectors(settings: Settings) -> dict[str, Any] | None:
    """Their names, and where the agent is to look for them: here, and beside the script that trains."""
    if not settings.own_detectors:
        return None
    folders = [str(Path.cwd()), *(str(Path(each).absolute()) for each in sys.path[:1])]
    return {"names": list(settings.own_detectors), "folders": list(dict.fromkeys(folders))}


def _serve(settings: Settings, folder: Path, reaction: Reaction | None) -> str:
    """Hand the flight to the agent. What goes wrong here costs the metrics, not the run."""
    if settings.agent == "off":
        return ""
    try:
        register(folder, None if reaction is None else asdict(reaction), _own_detectors(settings))
        url = find_or_start(settings) if settings.agent == "auto" else None
        home = runtime.folder()
        now = runtime.serving(home)
    except (ResmonError, OSError) as error:
        log.warning("resmon: the run could not be handed to an agent, so there are no live metrics: %s", error)
        return ""
    if now is not None and now.url:
        return f", seen at {address(now.url, folder.parent.parent)}"
    if settings.agent == "sidecar":
        return f", to be served by the next agent whose runtime folder is {home}"
    if url is None:
        return ""
    if settings.listen.endswith(":0"):
        return f", to be seen where {home / runtime.LOG} says"
    page = address(url, folder.parent.parent)
    return f", to be seen at {page} (or, if another program has that port, where {home / runtime.LOG} says)"
