"""A runbook for one run: the page with the run's own values and what its commands print for it.

What a runbook's commands print for the run stands in the place of its examples. Words in capitals (VALUES) stand for values of the
run; filled in, they are escaped for where they stand, since the names in a run are anybody's.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from resmon.errors import ConfigurationError
from resmon.flight import layout
from resmon.flight.endings import of_attempt
from resmon.flight.frames import Flight
from resmon.flight.incidents import last_checkpoint
from resmon.handbook.pages import COMMAND, Runbook, names
from resmon.interpreter import printed
from resmon.records import Finding, Incident
from resmon.terminal.tail import Tail

VALUES = {
    "RUN": "path of the run's folder",
    "RUNS": "path of the folder that holds it",
    "CHECKPOINT": "the last checkpoint that was named from before the trouble (--checkpoint names one)",
    "CAPSULE": "file with what the failing module was given",
    "MODEL": "package.module:name of a function that makes the model (--model names it)",
}
LONGEST = 20_000  # characters of a command's output that a page takes
PATIENCE = 300.0  # seconds that a command may take

_VALUE = re.compile(rf"\b({'|'.join(VALUES)})\b")
# What CommonMark reads as a mark anywhere in a line, and what it does at its beginning; _ inside a word is none.
_MARKS = re.compile(r"([\\`*\[\]<&~]|(?<![^\W_])_|_(?![^\W_]))")
_BEGINNINGS = re.compile(r"^(?:(?=[-+=#>])|(\d+)(?=[.)]))")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a run, in the order in which it came; of incidents and findings the newest events."""

    flight: Flight
    incidents: tuple[Incident, ...]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, flight: Flight) -> Trouble:
        """Raises FlightVersionError where a newer resmon wrote the flight."""
        known = names()
        of_kinds = (  # a newer resmon's, or nobody's, may name a page that is not there; each kind has one
            each if each.runbook in known else replace(each, runbook=each.kind.replace("_", "-"))
            for each in of_attempt(flight.folder)
        )
        return cls(flight, tuple(of_kinds), tuple(Tail(flight.folder).poll().findings.values()))

    @property
    def runbook(self) -> str | None:
        """The one that the run asks for: its newest incident's, else its newest page's, else its newest ticket's.

        None where nothing is wrong.
        """
        findings = sorted(self.findings, key=lambda finding: finding.severity == "page")
        asked_for = [*(finding.runbook for finding in findings), *(incident.runbook for incident in self.incidents)]
        return next((name for name in reversed(asked_for) if name in names()), None)

    def incident(self, name: str) -> Incident | None:
        """The newest that has this runbook."""
        return next((each for each in reversed(self.incidents) if each.runbook == name), None)

    def finding(self, name: str) -> Finding | None:
        return next((each for each in reversed(self.findings) if each.runbook == name), None)

    def values(self, name: str) -> dict[str, str]:
        """What the run knows of VALUES, for this runbook."""
        folder = self.flight.folder.absolute()  # a command is pasted anywhere, and a name may look like an option
        found = {"RUN": str(folder), "RUNS": str(folder.parent.parent)}
        if (incident := self.incident(name)) is not None:
            found |= {"CHECKPOINT": incident.checkpoint} if incident.checkpoint else {}
            found |= {"CAPSULE": str(layout.ranks(folder)[incident.rank] / incident.capsule)} if incident.capsule else {}
        elif (finding := self.finding(name)) is not None:
            since, best = finding.evidence.get("since"), finding.evidence.get("best_step")
            first = since if type(since) is int else best + 1 if type(best) is int else finding.opened_step
            checkpoint = last_checkpoint(folder, first)
            found |= {"CHECKPOINT": checkpoint.path} if checkpoint is not None else {}
        return found


def page(book: Runbook, trouble: Trouble, more: Mapping[str, str] | None = None, width: int = 80) -> Iterator[str]:
    """The page for one run, part by part as they come: its values filled in, and below each command what it prints.

    A command that needs a value which the run does not have stands as it is, with what is missing said. Commands print as in a
    terminal of so many columns.
    """
    known = trouble.values(book.name) | dict(more or {})
    title, rest = book.text.split("\n", 1)
    yield f"{title}\n\n{_this_run(trouble, book.name)}"
    position = 0
    for block in COMMAND.finditer(rest):
        yield _fill(rest[position : block.start()], known)
        yield _answered(block["command"].strip(), known, width)
        position = block.end()
    yield _fill(rest[position:], known)


def run(command: str, known: Mapping[str, str], width: int = 80) -> tuple[str, str, int]:
    """Run one of a runbook's commands with the values filled in: the command as it was run, what it printed, its exit status.

    Raises KeyError for a value that is not known.
    """
    words = [_VALUE.sub(lambda value: known[value[0]], word) for word in shlex.split(command)]
    if words[0] != "resmon":
        raise ConfigurationError(f"{command!r} is no command of resmon's, and is not run. Run it by hand.")
    try:
        done = printed(*words[1:], columns=width, seconds=PATIENCE)
    except subprocess.TimeoutExpired:
        return shlex.join(words), f"(it took longer than {PATIENCE:.0f} seconds and was ended)\n", 124
    return shlex.join(words), done.stdout, done.returncode


def _answered(command: str, known: Mapping[str, str], width: int) -> str:
    missing = [value for value in _VALUE.findall(command) if value not in known]
    if missing:
        lacking = "; ".join(f"{value}: {VALUES[value]}" for value in dict.fromkeys(missing))
        return f"```sh\n{command}\n```\n\n(not run, for this run does not say {lacking})\n"
    shown, output, status = run(command, known, width)
    kept = output if len(output) <= LONGEST else f"{output[:LONGEST]}\n... and {len(output) - LONGEST:,} characters more\n"
    ended = f"\n(exit status {status})\n" if status else ""
    return f"```sh\n{shown}\n```\n\n{_fenced(kept)}{ended}"


def _this_run(trouble: Trouble, name: str) -> str:
    """What the run itself says about the trouble."""
    run = escaped(str(trouble.flight.info["run"]))
    if (incident := trouble.incident(name)) is not None:
        said = incident.step is None or incident.summary.startswith("Step ")
        step = "" if said else f" at step {incident.step:,}"
        lines = [f"Run {run}, rank {incident.rank}{step}: {escaped(incident.summary)}", escaped(incident.advice)]
        return "\n\n".join(["## This run", *filter(None, lines)]) + "\n"
    if (finding := trouble.finding(name)) is not None:
        return f"## This run\n\nRun {run}: {escaped(finding.summary)}\n"
    return f"## This run\n\nRun {run} is {trouble.flight.outcome} and has no incident that this page is about.\n"


def _fill(text: str, known: Mapping[str, str]) -> str:
    return _VALUE.sub(lambda value: escaped(known[value[0]]) if value[0] in known else value[0], text)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    marked = _MARKS.sub(r"\\\1", plain)
    return _BEGINNINGS.sub(r"\1\\", marked)


def _fenced(text: str) -> str:
    """A block that no text can end from within."""
    ticks = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}\n"
