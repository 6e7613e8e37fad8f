"""The runbooks: pages for the person on call, as they are in every installation.

A runbook (runbooks/<name>.md) reads well by itself: Meaning, Impact, Diagnosis, Mitigation. Its commands stand in ```sh blocks and
can be pasted; a ```text block below one is an example of what it prints. Words in capitals stand for values of a run;
diagnosis.py fills them in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from resmon.errors import ConfigurationError

COMMAND = re.compile(r"^```sh\n(?P<command>.*?)^```\n(?:\n```text\n(?P<prints>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Runbook:
    """One page: Markdown."""

    name: str
    text: str

    @property
    def commands(self) -> dict[str, str]:
        """Every command of the page, as it stands there, and the example of what it prints, empty where there is none."""
        return {block["command"].strip(): block["prints"] or "" for block in COMMAND.finditer(self.text)}


def folder() -> Path:
    """Where the pages are: beside the package in a checkout, inside of it where it is installed."""
    package = Path(__file__).parents[1]
    inside = package / "runbooks"
    return inside if inside.is_dir() else package.parent / "runbooks"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.md"))


def runbook(name: str) -> Runbook:
    """The page of that name. Raises ConfigurationError where there is none."""
    if name not in names():
        raise ConfigurationError(f"there is no runbook {name!r}. There are: {', '.join(names())}.")
    return Runbook(name, (folder() / f"{name}.md").read_text(encoding="utf-8"))
