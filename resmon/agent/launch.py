"""Finding the agent, or starting one, from inside a training process: quickly, and without leaving anything behind in it."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from resmon import interpreter
from resmon.agent import runtime
from resmon.agent.reaction import REPLACED
from resmon.errors import AgentError
from resmon.settings import Settings

log = logging.getLogger("resmon")

# How long a training process may be held up here, in seconds, for what usually takes 5 ms: by others who look, by the start.
PATIENCE = 0.05
STARTED = 0.15
# How long an agent that was started may take until it holds its lock, before the next training process tries again.
STARTING = 20.0

LARGEST_LOG = 1 << 20

# A web configuration that has a certificate.
ENCRYPTS = re.compile(rb"(?m)^[\s\"'{]*tls_server_config[\s\"']*:")

# The shell starts the agent in the background and ends at once. So the agent is nobody's child here: no zombie when it leaves,
# nothing to wait for, no thread.
IN_BACKGROUND = '"$@" </dev/null >>"$0" 2>&1 & echo $!'


def find_or_start(settings: Settings) -> str | None:
    """The address of this user's agent, which is started where none runs; it may need a second until it answers.

    None where there is no way to start one (an interpreter that does not know its own executable). Raises AgentError where the
    runtime folder or the web configuration cannot be used, or the start failed.
    """
    expected = f"{_scheme(settings)}://{settings.listen}"
    folder = runtime.folder()
    with runtime.gate(folder, PATIENCE) as descriptor:
        now = runtime.serving(folder)
        if now is not None and not now.leaving:
            if now.url:
                _compare(now, settings)
            return now.url or expected
        if descriptor is None or _is_starting(descriptor):  # another training process is at it
            return expected
        if not sys.executable:
            return None
        _note_started(descriptor, _start(folder, settings))
    return expected


def _scheme(settings: Settings) -> str:
    """What an agent with these settings will speak. The web configuration is for the agent to read; here nothing knows YAML."""
    if settings.web_config is None:
        return "http"
    try:
        content = settings.web_config.read_bytes()
    except OSError as error:
        raise AgentError(
            f"the web configuration {settings.web_config} cannot be read ({error.strerror}), and without it no agent is started. "
            "Correct the setting web_config."
        ) from error
    return "https" if ENCRYPTS.search(content) else "http"


def _compare(now: runtime.Serving, settings: Settings) -> None:
    """Say it where the agent that serves already is not as closed as it is to be."""
    wanted = settings.web_config
    if wanted is not None and os.path.realpath(now.web_config) != os.path.realpath(wanted):
        log.warning(
            "resmon: the agent that serves already (process %d, %s) does so under %s, and not under %s. To have the next one "
            "started with that, end it: kill %d",
            now.pid,
            now.url,
            f"the web configuration {now.web_config}" if now.web_config else "no web configuration, to whoever can reach it",
            wanted.absolute(),
            now.pid,
        )
    if settings.otlp and now.otlp != settings.otlp:
        log.warning(
            "resmon: the agent that serves already (process %d, %s) pushes to %s, and not to the OTLP receiver %s. To have the "
            "next one started with that, end it: kill %d",
            now.pid,
            now.url,
            now.otlp or "no OTLP receiver",
            settings.otlp,
            now.pid,
        )


def _start(folder: Path, settings: Settings) -> int:
    """Start an agent, detached, and give its process id."""
    log = folder / runtime.LOG
    try:
        if log.stat().st_size > LARGEST_LOG:
            log.replace(log.with_suffix(".log.1"))
    except OSError:
        pass  # there is none yet
    changes = interpreter.BESIDE | {"PYTHONUNBUFFERED": "1"} | interpreter.finding()
    # What on_incident starts is not meant to have them.
    replaced = json.dumps({name: os.environ.get(name) for name in changes})
    environment = os.environ | changes | {"RESMON_RUNTIME_DIR": str(folder), REPLACED: replaced}
    arguments = ["--listen", settings.listen, "--max-series", str(settings.max_series)]
    if settings.web_config is not None:
        arguments += ["--web-config", str(settings.web_config.absolute())]
    for name in settings.served_names:
        arguments += ["--served-name", name]
    arguments += _pushing(settings)
    try:
        shell = subprocess.run(
            ["/bin/sh", "-c", IN_BACKGROUND, str(log), *interpreter.program("resmon", "agent", *arguments)],
            env=environment,
            cwd="/",  # so that no folder is kept from being unmounted
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the training's process group is not for the agent
            close_fds=True,
            umask=0o077,
            timeout=STARTED,
            check=True,
        )
        return int(shell.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise AgentError(f"the agent could not be started: {error}. Start it by hand to see why: resmon agent") from error


def _pushing(settings: Settings) -> list[str]:
    """Where to the agent is to push. One that only serves is better than none."""
    if settings.otlp is None:
        return []
    if not runtime.can_push():
        log.warning("resmon: nothing is pushed to the OTLP receiver %s, for %s", settings.otlp, runtime.NO_OTEL)
        return []
    return ["--otlp", settings.otlp, "--otlp-interval", str(settings.otlp_interval)]


def _is_starting(descriptor: int) -> bool:
    """Whether an agent that was started a moment ago is still on its way to the lock."""
    try:
        pid, started = os.pread(descriptor, 100, 0).split()
        os.kill(int(pid), 0)
        return 0 <= time.time() - float(started) < STARTING
    except (ValueError, OSError, OverflowError):
        return False


def _note_started(descriptor: int, pid: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid} {time.time()}".encode(), 0)
