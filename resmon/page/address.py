"""Where a run is found on the page of an agent: what `watch`, `resmon tail` and the demonstration say."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import quote


def identity(folder: Path) -> str:
    """The id of a run: the same as long as its folder is called the same, for links that people keep."""
    return f"{folder.name}~{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:8]}"


def of_attempt(run: str, number: int) -> str:
    """The id of one attempt of a run, which stays with it when others follow."""
    return f"{run}@{number}"


def address(agent: str, folder: Path) -> str:
    """The page of the run in that folder, of the agent that serves under that URL."""
    return f"{agent}/?run={quote(identity(folder))}"
