"""`maintenance`: what is planned in a training is silenced while it lasts.

The silence begins and ends with the window, never lasts longer than was planned, and ends within seconds when the process is
killed. It is kept by a process of its own (servers/alertmanager/keeper.py), so that neither an Alertmanager that is down or slow
nor HTTP itself takes time from the training. Whatever goes wrong costs the silence, never the training: it is logged, once.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from resmon import interpreter

log = logging.getLogger("resmon")

_RANKS = ("RANK", "SLURM_PROCID")

_said: set[str] = set()


def maintenance(
    comment: str,
    *,
    run: str | None = None,
    model: str | None = None,
    block: str | None = None,
    alert: str | None = None,
    for_: str | float = "1h",
    alertmanager: str | None = None,
) -> Window:
    """Silence alerts while a planned change is under way, for `for_` (2h, or seconds) at the longest.

        with resmon.maintenance("replanned learning rate", for_="2h"):
            ...

    What is named of run, model, block and alert must all fit; where neither run nor model is, it is the run that is watched.
    `alertmanager` is its address, by default the settings'. Of several ranks the first one alone does it. Nothing is waited for,
    and nothing is raised: what cannot be done is logged once, and the alerts then fire as ever.
    """
    names = {"run": run, "model": model, "block": block, "alertname": alert}
    return Window(comment, {name: value for name, value in names.items() if value}, for_, alertmanager)


class Window:
    """A planned window; a context manager."""

    def __init__(self, comment: str, labels: Mapping[str, str], lasts: str | float, alertmanager: str | None) -> None:
        self._comment = comment if isinstance(comment, str) else ""  # which is refused, in words
        self._labels = labels
        self._lasts = lasts
        self._alertmanager = alertmanager
        self._pid = 0
        self._is_over = threading.Event()
        self._pipe = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._silence: str | None = None

    @property
    def silence(self) -> str | None:
        """The id of the silence, once there is one."""
        return self._silence

    def __enter__(self) -> Self:
        try:
            if self._pid:
                _warn(
                    "again", "a planned window is entered a second time, which silences nothing; call resmon.maintenance for each"
                )
            if self._pid or _rank() != 0:
                return self
            self._pid = os.getpid()
            labels = dict(self._labels)
            if "run" not in labels and "model" not in labels and (run := _watched_run()) is not None:
                labels["run"] = run
            arguments = (labels, time.monotonic())
            threading.Thread(target=self._keep, args=arguments, name="resmon-maintenance", daemon=True).start()
        except Exception as error:  # noqa: BLE001 - the training goes on
            _warn("begun", f"the planned window could not be begun: {error!r}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._pid != os.getpid():  # a forked child has a copy of this, and no part in it
            return
        self._is_over.set()
        # Where the thread is just starting the keeper it will see that the window is over.
        if self._pipe.acquire(blocking=False):
            try:
                self._say_over()
            finally:
                self._pipe.release()

    def _say_over(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(b"over\n")
                self._process.stdin.close()
            except (OSError, ValueError):
                pass  # it has ended, or knows already

    # -- in the thread --------------------------------------------------------------------------------------------------------

    def _keep(self, labels: Mapping[str, str], began: float) -> None:
        """Start the keeper and hear what it says; it waits in system calls, without the interpreter's lock."""
        from resmon.errors import ResmonError

        try:
            line = self._plan(labels, began)
            if line is None or self._is_over.is_set():
                return
            with self._pipe:
                self._process = process = _start()
                if process.stdin is not None:
                    process.stdin.write(line)
                    process.stdin.flush()
                if self._is_over.is_set():
                    self._say_over()
            if self._is_over.is_set():  # and nobody could say so while the lock was held
                with self._pipe:
                    self._say_over()
            last, told = "", False
            for said in process.stdout or ():
                try:
                    event = json.loads(said)
                    self._hear(event["event"], event)
                    told = True
                except (ValueError, TypeError, KeyError):
                    last = said.decode("utf-8", "replace").strip() or last
            if process.wait() != 0:
                then = "its silence ends by itself within minutes" if told else "nothing is silenced"
                why = last or f"status {process.returncode}"
                _warn("keeper", f"the process that keeps a planned window's silence ended ({why}); {then}")
        except ResmonError as error:
            _warn("refused", f"a planned window is not silenced: {error}")
        except Exception as error:  # noqa: BLE001 - the training goes on
            _warn("kept", f"a planned window is not silenced: {error!r}")

    def _plan(self, labels: Mapping[str, str], began: float) -> bytes | None:
        """The keeper's orders; None where no Alertmanager is named. Raises ConfigurationError where they cannot be carried out."""
        from resmon.servers.alertmanager import Matcher, checked, default_author, length
        from resmon.servers.alertmanager.keeper import BEAT, LIFE, Plan
        from resmon.settings import Settings

        urls = Settings.of(alertmanager=self._alertmanager).alertmanager
        matchers = tuple(Matcher(name, value) for name, value in labels.items())
        comment = f"{self._comment.strip()} [resmon.maintenance {uuid.uuid4().hex[:8]}]" if self._comment.strip() else ""
        checked(matchers, comment)
        deadline = began + length(self._lasts)
        if not urls:
            _warn(
                "unnamed", "no Alertmanager is named, so a planned window is not silenced; set RESMON_ALERTMANAGER to its address"
            )
            return None
        author = default_author()
        return Plan(urls, tuple(map(str, matchers)), comment, author, deadline, os.getpid(), LIFE, BEAT).as_line()

    def _hear(self, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "silenced":
            self._silence = str(event["id"])
            log.info("resmon: planned window: silence %s", self._silence)
        elif kind == "failed":
            again = "" if event.get("final") else " It is tried again while the window lasts."
            _warn("failed", f"a planned window is not silenced for now: {event['why']}{again}")
        elif kind == "by_hand":
            _warn("by_hand", f"the silence of a planned window was changed by hand, to end at {event['ends']}, and is left so")
        elif kind == "over":
            log.warning("resmon: a planned window has lasted longer than planned (%s): alerts notify again", self._lasts)
        elif kind == "left":
            _warn("left", f"the silence of a planned window could not be ended, and ends by itself in minutes: {event['why']}")


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        interpreter.program("resmon.servers.alertmanager.keeper"),
        env=os.environ | interpreter.BESIDE | interpreter.finding(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a signal to the training's process group is not for the keeper
    )


def _rank() -> int:
    """This process' rank, without importing torch where it is not there."""
    process = sys.modules.get("resmon.capture.host.process")
    if process is not None:
        return int(process.rank_and_world()[0])
    return next((int(value) for name in _RANKS if (value := os.environ.get(name, "")).isdecimal()), 0)


def _watched_run() -> str | None:
    """The run that this process watches, if it watches one."""
    monitor = sys.modules.get("resmon.monitor.watch")
    found = monitor.newest_run() if monitor is not None else None
    return str(found) if found is not None else None


def _warn(what: str, text: str) -> None:
    """Of each kind of trouble the first is told."""
    if what not in _said:
        _said.add(what)
        log.warning("resmon: %s", text)
