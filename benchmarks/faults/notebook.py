"""What has been measured so far, so that a bench that was stopped goes on where it was.

Two files of JSON lines that are only ever appended to, by several processes: one line for each trial, and one for each time that a
healthy training told how far it is, of which the newest counts. A line that was cut short is passed over. What stands in it was all
measured on one machine with the same versions, and once the page was made of the whole the next bench begins with an empty one.
Sources may change in between: each line says which commit was tried.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.faults.comparison import Cost
from benchmarks.faults.healthy import Quiet
from benchmarks.faults.outcome import Outcome


class Notebook:
    """In a folder, which is made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._trials, self._healthy = folder / "trials.jsonl", folder / "healthy.jsonl"
        self._about, self._costs = folder / "about.json", folder / "costs.json"

    def begin(self, machine: Mapping[str, object], *, anew: bool) -> bool:
        """Go on with what is known where that was measured on this machine, or begin anew; whether there was something."""
        about = next(_lines(self._about), {})
        goes_on = about.get("machine") == machine and not anew
        if not goes_on:
            for path in (self._trials, self._healthy, self._costs):
                path.unlink(missing_ok=True)
        self._about.write_text(json.dumps({"machine": machine, "whole": goes_on and about["whole"]}), encoding="utf-8")
        return goes_on and self._trials.exists()

    @property
    def is_whole(self) -> bool:
        """Whether a page was made of all of it."""
        return bool(next(_lines(self._about), {}).get("whole"))

    def finish(self) -> None:
        about = next(_lines(self._about), {})
        self._about.write_text(json.dumps({**about, "whole": True}), encoding="utf-8")

    def costs(self) -> list[Cost]:
        return [Cost(**values) for values in _lines(self._costs)]

    def add_cost(self, cost: Cost) -> None:
        _append(self._costs, asdict(cost))

    def add(self, outcome: Outcome) -> None:
        _append(self._trials, asdict(outcome) | {"commit": commit()})

    def add_quiet(self, quiet: Quiet) -> None:
        _append(self._healthy, asdict(quiet) | {"commit": commit()})

    def outcomes(self) -> list[Outcome]:
        """One for each kind and number, the newest, sorted."""
        found = {(values["kind"], values["trial"]): Outcome(**values) for values in _lines(self._trials)}
        return [found[key] for key in sorted(found)]

    def quiets(self) -> list[Quiet]:
        """One for each healthy training: its newest word, or that of when it was done."""
        found: dict[str, Quiet] = {}
        for values in _lines(self._healthy):
            quiet = Quiet(**values)
            if quiet.name not in found or quiet.done or not found[quiet.name].done:
                found[quiet.name] = quiet
        return [found[name] for name in sorted(found)]

    def forget(self, kind: str) -> None:
        """Of the trials of a kind, for they are to be done anew."""
        kept = [line for line in _lines(self._trials) if line["kind"] != kind]
        self._trials.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


@cache
def commit() -> str:
    """Of the sources in this process, with a + where they were changed since; "" outside of a repository."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "describe", "--always", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()


def _append(path: Path, values: dict[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(values) + "\n").encode())  # in one piece, so that lines of two processes do not mix
    finally:
        os.close(descriptor)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # what stopped the bench stopped it in the middle of a line
            continue
