"""Environments that hold one wheel and what it says it needs, and nothing else.

`environment` makes one in a second, without a network: its packages are this environment's own, linked one by one, those that the
wheel's requirements lead to and no others. What resmon imports and does not declare is therefore missing there, as it would be at a
user's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class Environment:
    """A virtual environment in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, symlinks=True, with_pip=False)
        self.python = folder / "bin" / "python"
        self.packages = next((folder / "lib").glob("python3*/site-packages"))

    def run(self, *command: str | Path, cwd: Path, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        """A command, the first word one of this environment's programs. Of the environment variables it sees next to none."""
        given = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "NO_COLOR": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        words = [str(self.folder / "bin" / command[0]), *map(str, command[1:])]
        return subprocess.run(words, cwd=cwd, env=given | more, capture_output=True, text=True, timeout=timeout, check=False)


def environment(folder: Path, wheel: Path, extras: Iterable[str] = (), besides: Iterable[str] = ()) -> Environment:
    """With the wheel installed by pip, what it requires with these extras, and what is named besides."""
    made = Environment(folder)
    needed = requirements(wheel, frozenset(extras))
    for found in closure([*needed, *map(Requirement, besides)]):
        _link(found, made.packages)
    # This environment's pip, at work on that one.
    command = [sys.executable, "-m", "pip", "--python", str(made.python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


def requirements(wheel: Path, extras: frozenset[str] = frozenset()) -> list[Requirement]:
    """What a wheel requires with these extras, by its own metadata; its extras that name other extras are followed."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    own = canonicalize_name(metadata["Name"])
    every = [Requirement(each) for each in metadata.get_all("Requires-Dist", [])]
    while True:
        found = [each for each in every if _applies(each, extras)]
        more = extras.union(*(each.extras for each in found if canonicalize_name(each.name) == own))
        if more == extras:
            return [each for each in found if canonicalize_name(each.name) != own]
        extras = more


def closure(wanted: Iterable[Requirement]) -> list[Distribution]:
    """The distributions of this environment that requirements lead to. One that is missing here fails the test that asks."""
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, frozenset[str]]] = set()
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in asked:
            continue
        asked.add((name, extras))
        found[name] = distribution(name)
        waiting += (each for each in map(Requirement, found[name].requires or ()) if _applies(each, extras))
    return list(found.values())


def names(distributions: Iterable[Distribution]) -> set[str]:
    return {canonicalize_name(each.metadata["Name"]) for each in distributions}


def modules(found: Distribution) -> set[str]:
    """The names under which a distribution is imported: those at its top, or below a namespace that it shares."""
    tops = {path.parts[0] for path in found.files or () if path.suffix == ".py" and path.parts[0] != ".."}
    return {top.removesuffix(".py") for top in tops if not top.endswith(".dist-info")}


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""}))


def _link(found: Distribution, packages: Path) -> None:
    for entry in _entries(found):
        link = packages / entry
        if not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(str(found.locate_file(entry))))


def _entries(found: Distribution) -> Iterator[Path]:
    """The folders and files that make up a distribution; of a folder that several may share, a namespace, what lies in it."""
    seen: set[Path] = set()
    for file in found.files or ():
        parts = file.parts
        if parts[0] in ("..", "__pycache__") or file.is_absolute():
            continue  # programs, whose first line names another environment
        depth = 1
        while depth < len(parts) and not parts[0].endswith((".dist-info", ".libs")):
            if Path(str(found.locate_file(Path(*parts[:depth], "__init__.py")))).exists():
                break
            depth += 1
        entry = Path(*parts[:depth])
        if entry not in seen:
            seen.add(entry)
            yield entry
