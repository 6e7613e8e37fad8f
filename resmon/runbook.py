"""Runbooks: pages for the person on call, and the same pages with a run's own values and what their commands print for it.

A runbook (runbooks/<name>.md) reads well by itself: Meaning, Impact, Diagnosis, Mitigation. Its commands stand in ```sh blocks and
can be pasted. Words in capitals (VALUES) stand for values of the run; filled in, they are escaped for where they stand, since the
names in a run are anybody's.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from resmon.errors import ConfigurationError
from resmon.flight import layout
from resmon.flight.frames import Flight
from resmon.flight.incidents import of_attempt
from resmon.records import Incident

VALUES = {
    "RUN": "path of the run's folder",
    "CHECKPOINT": "the last checkpoint that was named from before the trouble",
    "CAPSULE": "file with what the failing module was given",
    "MODEL": "package.module:name of a function that makes the model",
}
LONGEST = 20_000  # characters of a command's output that a page takes
PATIENCE = 300.0  # seconds that a command may take

_BLOCK = re.compile(r"^```sh\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_VALUE = re.compile(rf"\b({'|'.join(VALUES)})\b")
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|~-])")


@dataclass(frozen=True, slots=True)
class Runbook:
    """One page: Markdown."""

    name: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Every command of the page, as it stands there."""
        return [line for block in _BLOCK.findall(self.text) for line in block.splitlines() if line]


def folder() -> Path:
    """Where the pages are: beside the package in a checkout, inside of it where it is installed."""
    inside = Path(__file__).parent / "runbooks"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "runbooks"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.md"))


def runbook(name: str) -> Runbook:
    """The page of that name. Raises ConfigurationError where there is none."""
    if name not in names():
        raise ConfigurationError(f"there is no runbook {name!r}. There are: {', '.join(names())}.")
    return Runbook(name, (folder() / f"{name}.md").read_text(encoding="utf-8"))


def of_run(flight: Flight) -> str | None:
    """The runbook that a run asks for: its newest incident's, else its newest finding's; None where nothing is wrong."""
    asked_for = [*flight.findings()["runbook"].tolist(), *(incident.runbook for incident in of_attempt(flight.folder))]
    return next((name for name in reversed(asked_for) if name in names()), None)


def values(flight: Flight, name: str) -> dict[str, str]:
    """What the run knows of VALUES: by its newest incident that has this runbook."""
    found = {"RUN": str(flight.folder)}
    if (incident := _incident(flight, name)) is not None:
        if incident.checkpoint:
            found["CHECKPOINT"] = incident.checkpoint
        if incident.capsule:
            found["CAPSULE"] = str(layout.ranks(flight.folder)[incident.rank] / incident.capsule)
    return found


def page(book: Runbook, flight: Flight, more: Mapping[str, str] | None = None) -> Iterator[str]:
    """The page for one run, part by part as they come: its values filled in, and below each command what it prints.

    A command that needs a value which the run does not have stands as it is, with what is missing said.
    """
    known = values(flight, book.name) | dict(more or {})
    title, rest = book.text.split("\n", 1)
    yield f"{title}\n\n{_this_run(flight, book.name)}"
    position = 0
    for block in _BLOCK.finditer(rest):
        yield _fill(rest[position : block.start()], known)
        for command in filter(None, block[1].splitlines()):
            yield _answered(command, known)
        position = block.end()
    yield _fill(rest[position:], known)


def run(command: str, known: Mapping[str, str]) -> tuple[str, str, int]:
    """Run one of a runbook's commands with the values filled in: the command as it was run, what it printed, its exit status.

    Raises KeyError for a value that is not known.
    """
    words = [_VALUE.sub(lambda value: known[value[0]], word) for word in shlex.split(command)]
    if words[0] != "resmon":
        raise ConfigurationError(f"{command!r} is no command of resmon's, and is not run.")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "resmon", *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return shlex.join(words), f"(it took longer than {PATIENCE:.0f} seconds and was ended)\n", 124
    return shlex.join(words), done.stdout, done.returncode


def _answered(command: str, known: Mapping[str, str]) -> str:
    missing = [value for value in _VALUE.findall(command) if value not in known]
    if missing:
        lacking = "; ".join(f"{value}: {VALUES[value]}" for value in dict.fromkeys(missing))
        return f"```sh\n{command}\n```\n\n(not run, for this run does not say {lacking})\n"
    shown, output, status = run(command, known)
    kept = output if len(output) <= LONGEST else f"{output[:LONGEST]}\n... and {len(output) - LONGEST:,} characters more\n"
    ended = f"\n(exit status {status})\n" if status else ""
    return f"```sh\n{shown}\n```\n\n{_fenced(kept)}{ended}"


def _this_run(flight: Flight, name: str) -> str:
    """What the run itself says about the trouble."""
    run = escaped(str(flight.info["run"]))
    incident = _incident(flight, name)
    if incident is not None:
        step = "" if incident.step is None else f" at step {incident.step:,}"
        lines = [f"Run {run}, rank {incident.rank}{step}: {escaped(incident.summary)}", escaped(incident.advice)]
        return "\n\n".join(["## This run", *filter(None, lines)]) + "\n"
    findings = [row for row in flight.findings().to_dict("records") if row["runbook"] == name]
    if findings:
        return f"## This run\n\nRun {run}: {escaped(findings[-1]['summary'])}\n"
    return f"## This run\n\nRun {run} is {flight.outcome} and has no incident that this page is about.\n"


def _incident(flight: Flight, name: str) -> Incident | None:
    return next((each for each in reversed(of_attempt(flight.folder)) if each.runbook == name), None)


def _fill(text: str, known: Mapping[str, str]) -> str:
    return _VALUE.sub(lambda value: escaped(known[value[0]]) if value[0] in known else value[0], text)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """A block that no text can end from within."""
    ticks = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}\n"
