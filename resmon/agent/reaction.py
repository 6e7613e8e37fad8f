"""on_incident: the user's command, started by whoever writes an incident down, training process or agent, and not waited for.

It is started once for each incident of a rank, whoever comes after: what was started stands in reactions.jsonl before it is. A
flood of incidents starts it MOST times. Which command it is stands in the runtime folder, which is the user's alone, and never in
a flight, which may come from anywhere.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resmon.agent import attendant
from resmon.errors import AgentError, ConfigurationError
from resmon.flight import journal, layout
from resmon.flight.journal import Lines
from resmon.records import Incident, RunInfo
from resmon.settings import Settings

MOST = 10  # times for a rank's attempt
STARTED = 2.0  # seconds that the start may take; a few milliseconds are usual

# Started in the background by a shell that ends at once, it is nobody's child, so that nobody needs to wait for it. What runs in
# the background has no standard input unless it is given one.
IN_BACKGROUND = 'exec 3<&0; "$@" <&3 3<&- >>"$0" 2>&1 &'

REPLACED = "RESMON_REPLACED"


@dataclass(frozen=True, slots=True)
class Reaction:
    """What is done about an incident."""

    command: tuple[str, ...]
    timeout: float
    working_directory: str

    @classmethod
    def of(cls, settings: Settings) -> Reaction | None:
        """What the settings say. Raises ConfigurationError where that is no command."""
        if not settings.on_incident:
            return None
        program = shutil.which(settings.on_incident[0])
        if program is None:
            raise ConfigurationError(
                f"on_incident: {settings.on_incident[0]!r} is no command that can be run. Name one on PATH, or the path of a file "
                "that is executable. There is no shell around it; for one write: sh -c '...'"
            )
        return cls((str(Path(program).absolute()), *settings.on_incident[1:]), settings.on_incident_timeout, str(Path.cwd()))

    @classmethod
    def of_json(cls, values: Any) -> Reaction | None:
        """From a registration; None where there is none."""
        try:
            return cls(tuple(map(str, values["command"])), float(values["timeout"]), str(values["working_directory"]))
        except (TypeError, KeyError, ValueError):
            return None

    def to(self, incident: Incident, info: RunInfo, rank_folder: Path) -> None:
        """Start the command, unless that has been done. Raises AgentError or OSError where it cannot be started."""
        lines = Lines(rank_folder / layout.REACTIONS, lambda values: str(values["incident"]), "a reaction")
        before = lines.poll(ended=True)
        if incident.id in before or len(before) >= MOST:
            return
        journal.append(rank_folder / layout.REACTIONS, {"incident": incident.id, "time": time.time()})
        if not sys.executable:
            raise AgentError("on_incident's command cannot be started: this interpreter does not know its own executable")
        environment = _environment() | {
            "RESMON_RUN": info.run,
            "RESMON_DIRECTORY": str(rank_folder.parent.parent.parent),
            "RESMON_ATTEMPT": str(info.attempt),
            "RESMON_RANK": str(info.rank),
            "RESMON_INCIDENT": incident.kind,
        }
        attending = [sys.executable, "-I", str(Path(attendant.__file__)), str(self.timeout), incident.id]
        try:
            with tempfile.TemporaryFile() as content:
                content.write(json.dumps(_strict(asdict(incident) | {"run": info.run, "attempt": info.attempt})).encode() + b"\n")
                content.seek(0)
                subprocess.run(
                    ["/bin/sh", "-c", IN_BACKGROUND, str(rank_folder.parent / layout.REACTIONS_LOG), *attending, *self.command],
                    stdin=content,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    cwd=self.working_directory if Path(self.working_directory).is_dir() else "/",
                    start_new_session=True,  # a signal to the training's process group is not for it
                    umask=0o077,
                    timeout=STARTED,
                    check=True,
                )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise AgentError(f"on_incident's command cannot be started: {error}") from error


def _environment() -> dict[str, str]:
    """This process's, where it is the agent's, as it was before it was changed for the agent."""
    made = dict(os.environ)
    try:
        replaced: Mapping[str, Any] = json.loads(made.pop(REPLACED, "{}"))
        for name, value in replaced.items():
            made.pop(name, None)
            if value is not None:
                made[name] = str(value)
    except (ValueError, AttributeError):
        pass  # somebody else's variable
    return made


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
