"""The runtime folder: where training processes and the one agent of a user and machine find each other.

    agent.lock     held (fcntl.lockf) by the agent while it serves; says its pid, url and version as JSON
    start.lock     held for moments, by who starts an agent and by an agent that makes up its mind to leave; names the process that
                   was started and has not taken agent.lock yet
    runs/          registrations, one small JSON file per rank's folder, written by the training process
    bookmarks/     of each registration, under its name, what an agent that comes next goes on from (bookmark.py)
    directories.json  the folders of runs that were registered, newest last: the page lists what stands in them
    state.json     counters that survive a restart of the agent
    targets.json   the agent's address for Prometheus' file_sd; [] when no agent serves
    agent.log      what the agent says, where a training process started it

It is on a local disk, never shared between machines: a lock must tell the truth about processes here. It is the user's alone, and
one that is not is refused, as others could make the agent read and write where they please.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from resmon.errors import AgentError, ConfigurationError
from resmon.flight import layout

log = logging.getLogger("resmon.agent")

LOCK = "agent.lock"
GATE = "start.lock"
RUNS = "runs"
BOOKMARKS = "bookmarks"
DIRECTORIES = "directories.json"
STATE = "state.json"
TARGETS = "targets.json"
LOG = "agent.log"

REMEMBERED = 64  # folders of runs

CHANGE_IT = "Set RESMON_RUNTIME_DIR to a folder on a local disk that only you may write to."


def folder() -> Path:
    """The runtime folder, made where it is missing. Raises AgentError where it cannot be trusted or made."""
    given, session = os.environ.get("RESMON_RUNTIME_DIR"), os.environ.get("XDG_RUNTIME_DIR")
    if given:
        path = Path(given).absolute()
    elif session and Path(session).is_dir():
        path = Path(session) / "resmon"
    else:
        path = Path(tempfile.gettempdir()) / f"resmon-{os.getuid()}"
    return _made(path, parents=bool(given))


def _made(path: Path, *, parents: bool) -> Path:
    try:
        path.mkdir(mode=0o700, parents=parents, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise AgentError(
                f"the runtime folder {path} is not a folder that is yours alone (owner {found.st_uid}, mode "
                f"{stat.filemode(found.st_mode)}) and is not used. Remove it, or take away the others' right to write. {CHANGE_IT}"
            )
        for name in (RUNS, BOOKMARKS):
            (path / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise AgentError(f"the runtime folder {path} cannot be made: {error.strerror or error}. {CHANGE_IT}") from error
    return path


def register(
    rank_folder: Path, on_incident: Mapping[str, Any] | None = None, own_detectors: Mapping[str, Any] | None = None
) -> None:
    """Ask the agent to follow a rank's flight, to react to incidents and to run detectors of the user's own. The folder holds its
    info.json already, by which one that was deleted and made again is told from what was there before."""
    target = os.path.realpath(rank_folder)
    try:
        info = (rank_folder / layout.INFO).read_bytes()
    except OSError:
        info = b""
    name = hashlib.sha256(os.fsencode(target) + b"\0" + info).hexdigest()[:24]
    layout.write_json(
        folder() / RUNS / f"{name}.json", {"rank_folder": target, "on_incident": on_incident, "own_detectors": own_detectors}
    )


def registrations(runtime: Path) -> dict[Path, Path | None]:
    """Each registration's file and the rank's folder that it names; None where it cannot be read."""
    found: dict[Path, Path | None] = {}
    try:
        with os.scandir(runtime / RUNS) as entries:
            files = sorted(Path(entry.path) for entry in entries if entry.name.endswith(".json") and not entry.name.startswith("."))
    except OSError:
        return found
    for file in files:
        content = _read_object(file)
        rank_folder = content.get("rank_folder")
        if isinstance(rank_folder, str) and rank_folder.startswith("/") and "\0" not in rank_folder:
            found[file] = Path(rank_folder)
        else:
            found[file] = None
    return found


def directories(runtime: Path) -> list[Path]:
    """The folders of runs that training processes here have registered, and that are there still."""
    content = _read_object(runtime / DIRECTORIES).get("directories")
    found = [Path(each) for each in content if isinstance(each, str) and each.startswith("/")] if isinstance(content, list) else []
    return [path for path in found if path.is_dir()]


def remember(runtime: Path, directory: Path) -> None:
    """Note a folder of runs, for this agent's page and that of those that come after it."""
    known = directories(runtime)
    if directory not in known:
        paths = [str(path) for path in (*known, directory)][-REMEMBERED:]
        layout.write_json(runtime / DIRECTORIES, {"directories": paths})


@dataclass(frozen=True, slots=True)
class Registration:
    """What a training process wrote into one."""

    content: Mapping[str, Any]

    @property
    def on_incident(self) -> Any:
        """What is to be done about incidents."""
        return self.content.get("on_incident")

    @property
    def own_detectors(self) -> tuple[list[str], list[str]]:
        """Which detectors of the user's own are to run, and the folders that they may be imported from."""
        named = self.content.get("own_detectors")
        if not isinstance(named, dict):
            return [], []
        names, folders = named.get("names"), named.get("folders")
        return [str(each) for each in names or ()], [str(each) for each in folders or ()]

    def write(self, file: Path) -> None:
        layout.write_json(file, self.content)


def registration(file: Path) -> Registration:
    """What stands in a registration; empty where it cannot be read."""
    return Registration(_read_object(file))


def bookmark(registration: Path) -> Path:
    """The file of a registration's bookmark."""
    return registration.parent.parent / BOOKMARKS / registration.name


def put_away_bookmarks(runtime: Path) -> None:
    """Those whose registration is gone."""
    try:
        with os.scandir(runtime / BOOKMARKS) as entries:
            for entry in entries:
                if not (runtime / RUNS / entry.name).exists():
                    Path(entry.path).unlink(missing_ok=True)
    except OSError:
        pass  # a file more


@dataclass(frozen=True, slots=True)
class Serving:
    """What a running agent says of itself. `url` is empty while it is still starting."""

    pid: int = 0
    url: str = ""
    version: str = ""
    leaving: bool = False
    web_config: str = ""  # the path of the one that it serves under
    otlp: str = ""  # where it pushes to


def can_push() -> bool:
    """Whether what an agent needs to push to an OTLP receiver is installed."""
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ImportError:  # not even opentelemetry is
        return False


NO_OTEL = "opentelemetry-exporter-otlp-proto-http is not installed; install it with pip install 'resmon[otel]'"


def serving(runtime: Path) -> Serving | None:
    """The agent that holds the lock; None where none does."""
    lock = runtime / LOCK
    if not layout.is_held(lock):
        return None
    content = _read_object(lock)
    try:
        return Serving(
            int(content["pid"]),
            str(content["url"]),
            str(content["version"]),
            bool(content["leaving"]),
            str(content["web_config"]),
            str(content.get("otlp", "")),
        )
    except (KeyError, TypeError, ValueError):
        return Serving()


class Seat:
    """The one place of the agent: the lock that it holds. Only `take` makes one."""

    def __init__(self, runtime: Path, descriptor: int) -> None:
        self._runtime = runtime
        self._descriptor = descriptor
        self._said = Serving()

    @classmethod
    def take(cls, runtime: Path, patience: float) -> Seat | None:
        """The seat, or None where another agent keeps it for `patience` seconds.

        Patience is needed because whoever asks whether the lock is held takes a shared lock for a moment, and because an agent that
        leaves needs a moment to be gone.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                descriptor = layout.hold(runtime / LOCK)
                # Nobody is on the way to the lock any more: were this agent killed now, the next one may be started at once.
                (runtime / GATE).write_bytes(b"")
                return cls(runtime, descriptor)
            except ConfigurationError:
                now = serving(runtime)
                if time.monotonic() > deadline or (now is not None and now.url and not now.leaving):
                    return None
                time.sleep(0.02)
            except OSError as error:
                raise AgentError(f"{runtime / LOCK} cannot be opened: {error.strerror or error}. {CHANGE_IT}") from error

    def announce(self, url: str, version: str, web_config: Path | None = None, otlp: str = "") -> None:
        """Say where this agent serves, to training processes and to Prometheus."""
        configuration = "" if web_config is None else str(web_config.absolute())
        self._tell(Serving(os.getpid(), url, version, web_config=configuration, otlp=otlp))

    def _tell(self, said: Serving) -> None:
        self._say(said)
        scheme, _, address = said.url.partition("://")
        labels = {} if scheme == "http" else {"__scheme__": scheme}  # http is what Prometheus takes anyway
        layout.write_json(self._runtime / TARGETS, [{"targets": [address], "labels": labels}])

    @property
    def is_lost(self) -> bool:
        """Whether the lock stands no more where others look for it.

        What tidies temporary folders removes it, and the end of a login session, with the session's whole runtime folder, which
        trainings in tmux outlive.
        """
        try:
            return not os.path.samestat((self._runtime / LOCK).stat(), os.fstat(self._descriptor))
        except OSError:
            return True

    def take_again(self) -> bool:
        """Make the folder and the lock anew and announce what was announced; whether that could be.

        Where it could not another agent may have been faster, as `serving` tells. Raises AgentError or OSError where there can be
        no such folder, as before the next login.
        """
        _made(self._runtime, parents=False)
        try:
            descriptor = layout.hold(self._runtime / LOCK)
        except ConfigurationError:  # somebody has it, or asks whether somebody has
            return False
        layout.release(self._descriptor)
        self._descriptor = descriptor
        self._tell(self._said)
        return True

    def mark_leaving(self) -> None:
        """From here on nobody counts on this agent, though it still holds the lock. Call it within the gate."""
        self._say(replace(self._said, leaving=True))

    def leave(self) -> None:
        """Give the seat back. What the files say is taken back first, while nobody else can have written there."""
        try:
            if not self.is_lost:  # else they are another agent's
                layout.write_json(self._runtime / TARGETS, [])
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            log.warning("%s could not be cleaned up: %s", self._runtime, error)
        layout.release(self._descriptor)

    def _say(self, said: Serving) -> None:
        # Through the descriptor that holds the lock: closing any other of the same file would lose it.
        content = json.dumps(asdict(said)).encode() + b"\n"
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))
        self._said = said


@contextmanager
def gate(runtime: Path, patience: float) -> Iterator[int | None]:
    """Holds start.lock and gives its descriptor; None where others held it for `patience` seconds."""
    descriptor = os.open(runtime / GATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise AgentError(f"{runtime / GATE} cannot be locked: {error.strerror}. {CHANGE_IT}") from error
                if time.monotonic() > deadline:
                    yield None
                    return
                time.sleep(0.005)
        yield descriptor
    finally:
        os.close(descriptor)


def _read_object(path: Path) -> dict[str, Any]:
    """A small JSON object; empty where the file is not one."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(1 << 16))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
