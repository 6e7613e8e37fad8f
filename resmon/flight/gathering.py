"""One run that was recorded on several machines, as one folder like any other.

Every machine has the folders of its own ranks; together they are an attempt. A folder is made in which each rank's folder is a link
to where it lies, and what the machines' agents have found stands in one file, in the order of time. What lies in an object store is
copied, the chosen attempt only. So whoever reads a run reads such a one too. The folder lasts as long as the Gathered does.

Parts belong together by the launch that they share, which the ranks agree on over their process group. Of several launches the one
that began last is chosen, or the one that a number names in the first place that has it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow.fs

from resmon.errors import ConfigurationError, FlightError
from resmon.flight import layout
from resmon.quantities import listed

Source = str | os.PathLike[str]

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """A run's folder, made of several; gone when nobody holds this any more."""

    folder: Path  # of the run
    notes: tuple[str, ...]  # what was left out, and why
    _life: Any = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder, here or in an object store."""

    said: str  # as it was named
    system: pyarrow.fs.FileSystem
    path: str

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    def folders(self) -> dict[str, _Place]:
        return {
            entry.base_name: _Place(f"{self.said.rstrip('/')}/{entry.base_name}", self.system, entry.path)
            for entry in self._entries()
            if entry.type == pyarrow.fs.FileType.Directory
        }

    def json(self, name: str) -> dict[str, Any]:
        """What a file holds; empty where it is missing or none."""
        try:
            with self.system.open_input_stream(f"{self.path}/{name}") as file:
                found = json.loads(file.read())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def lines(self, name: str) -> list[bytes]:
        try:
            with self.system.open_input_stream(f"{self.path}/{name}") as file:
                return bytes(file.read()).splitlines()
        except OSError:
            return []

    def size(self) -> int:
        return sum(entry.size or 0 for entry in self._entries())

    def put(self, here: Path) -> None:
        """A link to it, or a copy of what is not here."""
        if isinstance(self.system, pyarrow.fs.LocalFileSystem):
            here.symlink_to(Path(self.path).absolute(), target_is_directory=True)
        else:
            here.mkdir()
            pyarrow.fs.copy_files(
                self.path, str(here), source_filesystem=self.system, destination_filesystem=pyarrow.fs.LocalFileSystem()
            )

    def _entries(self) -> Sequence[pyarrow.fs.FileInfo]:
        found: Sequence[pyarrow.fs.FileInfo] = self.system.get_file_info(pyarrow.fs.FileSelector(self.path, allow_not_found=True))
        return found


def is_several(source: Source | Iterable[Source]) -> bool:
    """Whether it may name more than one folder, or one that is not here."""
    if not isinstance(source, (str, os.PathLike)):
        return True
    text = os.fspath(source)
    return bool(_URL.match(text)) or (any(sign in text for sign in "*?[") and not Path(text).exists())


def named(source: object) -> str:
    """The path, glob or URL as text. Raises ConfigurationError for what names nothing."""
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigurationError(
            f"a run is named by its folder, not by {said(source)}. Pass its path, such as resmon.load('runs/digits'), a list of "
            "paths, or a URL; `resmon ls` lists the runs."
        )
    text = os.fsdecode(source)
    if not text:
        raise ConfigurationError("the path of the run is empty. Pass its folder, such as resmon.load('runs/digits').")
    return text


def said(value: object) -> str:
    """A value that is of the wrong kind, short enough for a sentence."""
    text = repr(value)
    if value is None:
        return text
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def gather(sources: Source | Iterable[Source], attempt: int | None = None) -> Gathered:
    """A run of the ranks that lie in `sources`: folders of the run, or of attempts; paths, globs and URLs that pyarrow can open.

    Raises FlightError where there is none.
    """
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    if not given:
        raise FlightError("no folder is named: the list of them is empty. Name the run's folder on each machine.")
    places = [place for source in given for place in _reachable(named(source))]
    if not places:
        raise FlightError(f"no folder is called {', '.join(map(str, given))}. Name the run's folder on each machine.")
    notes: list[str] = []
    try:
        parts = [part for place in places for part in _attempts(place)]
    except Exception as error:
        raise _unreachable(listed(place.said for place in places), error) from error
    if not parts:
        raise FlightError(f"there is no flight in {listed(place.said for place in places)}. Name the run's folder on each machine.")
    chosen = _chosen(parts, attempt, notes)
    ranks: dict[int, _Place] = {}
    for number, place in ((number, place) for part in chosen for number, place in part.ranks.items()):
        if number in ranks and (ranks[number].said == place.said or ranks[number].size() >= place.size()):
            notes.append(
                f"rank {number} is in {ranks[number].said} and in {place.said}: the first is read, which has as much or more"
            )
        else:
            if number in ranks:
                notes.append(f"rank {number} is in {place.said} and in {ranks[number].said}: the first is read, which has more")
            ranks[number] = place
    holder = Path(tempfile.mkdtemp(prefix="resmon-gathered-"))
    life = _Life(holder)
    folder = holder / (chosen[0].run or "run")
    into = folder / f"attempt-{chosen[0].number:04d}"
    into.mkdir(parents=True)
    try:
        layout.write_json(into / layout.LAUNCH, {"launch": chosen[0].launch})
        for number, place in sorted(ranks.items()):
            place.put(into / f"rank-{number:05d}")
    except OSError as error:
        raise FlightError(
            f"{error.filename or place.said} cannot be read: {error}. See that it is there and may be read."
        ) from error
    findings = sorted({line for part in chosen for line in part.place.lines(layout.FINDINGS)}, key=_time)
    if findings:
        (into / layout.FINDINGS).write_bytes(b"\n".join(findings) + b"\n")
    return Gathered(folder, tuple(notes), life)


class _Life:
    """Removes the folder when it is gone itself, or with the process."""

    def __init__(self, folder: Path) -> None:
        self._end = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Part:
    """An attempt as one machine has it."""

    place: _Place
    run: str
    number: int
    launch: str
    started: float
    ranks: dict[int, _Place]


def _attempts(place: _Place) -> Iterator[_Part]:
    named = [place] if layout.attempt_number(Path(place.name)) is not None else list(place.folders().values())
    for folder in named:
        number = layout.attempt_number(Path(folder.name))
        if number is None:
            continue
        ranks = {rank: inside for name, inside in folder.folders().items() if (rank := layout.rank_number(Path(name))) is not None}
        if ranks:
            infos = [info for each in ranks.values() if (info := each.json(layout.INFO))]
            started = max((info["started"] for info in infos if isinstance(info.get("started"), float)), default=0.0)
            run = next((info["run"] for info in infos if isinstance(info.get("run"), str) and info["run"]), "")
            yield _Part(
                folder,
                layout.safe_name(run) if run else "",
                number,
                str(folder.json(layout.LAUNCH).get("launch", "")),
                started,
                ranks,
            )


def _chosen(parts: Sequence[_Part], attempt: int | None, notes: list[str]) -> list[_Part]:
    """Those of one launch."""
    if attempt is not None:
        numbered = [part for part in parts if part.number == attempt]
        if not numbered:
            there = sorted({part.number for part in parts})
            raise FlightError(f"none of the folders has an attempt {attempt}; they have {listed(there)}.")
        launch = numbered[0].launch
    else:
        launch = max(parts, key=lambda part: part.started).launch
    chosen = [part for part in parts if part.launch == launch]
    homes = {_home(part.place) for part in chosen}
    if left := sorted({_home(part.place) for part in parts} - homes):
        notes.append(f"{listed(left)} has no part of this launch; it has others")
    return chosen


def _home(attempt: _Place) -> str:
    return attempt.said.rstrip("/").rpartition("/")[0]


def _reachable(source: str) -> list[_Place]:
    try:
        return list(_places(source))
    except FlightError:
        raise
    except Exception as error:  # what a file system of somebody else's raises is of all kinds
        raise _unreachable(source, error) from error


def _unreachable(source: str, error: Exception) -> FlightError:
    short = source if len(source) <= 200 else f"{source[:200]}…"
    return FlightError(f"{short} cannot be listed: {error}. See that it is written right, is there, and may be read from here.")


def _places(source: str) -> Iterator[_Place]:
    if not _URL.match(source):
        paths = sorted(glob(source)) if is_several(source) else [source]  # noqa: PTH207 - it may be absolute
        yield from (_Place(path, pyarrow.fs.LocalFileSystem(), path) for path in paths if Path(path).is_dir())
        return
    head, *pattern = re.split(r"(?=/[^/]*[*?\[])", source, maxsplit=1)
    found = [_Place(head, *_opened(head))]
    for part in pattern[0].strip("/").split("/") if pattern else ():
        found = [inside for place in found for name, inside in sorted(place.folders().items()) if fnmatchcase(name, part)]
    yield from found


def _opened(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a URL, pyarrow's own or one that fsspec has, and the path in it."""
    try:
        return pyarrow.fs.FileSystem.from_uri(url)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        try:
            from fsspec.core import url_to_fs

            system, path = url_to_fs(url)
        except (ImportError, OSError, ValueError):
            raise FlightError(f"{url} cannot be opened: {error}. Name a folder, or a URL of a store that pyarrow knows.") from error
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(system)), path


def _time(line: bytes) -> float:
    try:
        return float(json.loads(line)["time"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0.0
