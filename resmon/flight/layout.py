"""Where a flight's files lie: names, attempts, ranks, the lock that tells that a process lives.

Folders are made with mode 0700 and claimed by operations that the file system makes atomic (mkdir, rename), so that the ranks of
one launch find the same attempt without speaking to each other, and two launches never share one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from resmon.errors import ConfigurationError
from resmon.quantities import listed

LAUNCH = "launch.json"
INFO = "info.json"
END = "end.json"
STOPPED = "stopped.json"
STACK = "stack.json"
LOCK = "alive.lock"
FINDINGS = "findings.jsonl"
INCIDENTS = "incidents.jsonl"
CHECKPOINTS = "checkpoints.jsonl"
REACHED = "reached.jsonl"
SPANS = "spans.jsonl"
REACTIONS = "reactions.jsonl"
REACTIONS_LOG = "on_incident.log"

# Bytes that an end mark may take: its reason is an error's message, which is cut at 1,000 characters.
RESERVE = 8192

_HARMLESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,79}", re.ASCII)
_ATTEMPT = re.compile(r"attempt-(\d{4,9})", re.ASCII)
_RANK = re.compile(r"rank-(\d{5,9})", re.ASCII)

# Lock files that this process holds: (device, inode) -> process id. A POSIX lock is lost as soon as its owner closes any
# descriptor of that file, so the owner must never open one of these to probe it. The id tells a forked child that its copy of
# the table speaks of its parent.
_held: dict[tuple[int, int], int] = {}


def safe_name(run: str) -> str:
    """The folder name of a run. Harmless names stay; others become a readable stem, a tilde and a hash."""
    if not run:
        raise ConfigurationError("the name of the run is empty; give it one, such as run='digits', or None to have one made.")
    if _HARMLESS.fullmatch(run) and not (_ATTEMPT.fullmatch(run) or _RANK.fullmatch(run)):
        return run  # no tilde, so it is nobody else's hashed name; nor would it be taken for a part of a run
    stem = re.sub(r"[^A-Za-z0-9_.+=@-]+", "-", run[:200]).strip("-.")[:60] or "run"
    return f"{stem}~{hashlib.sha256(run.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def claim(directory: Path, run: str, launch: str, rank: int, *, unique: bool = False) -> tuple[Path, int]:
    """Make this rank's folder and say which attempt it belongs to.

    Ranks with the same `launch` share that launch's attempt if it is the newest; where it holds this rank already (the launch was
    restarted) or is another launch's, a new attempt begins. Where `unique`, no other launch ever has that name: then its attempt is
    found behind newer ones too, which another launch of the same run has begun meanwhile.
    """
    folder = Path(directory) / safe_name(run)
    try:
        _make_folders(folder)
        while True:
            known = sorted(attempts(folder).items(), reverse=True)
            for number, path in known if unique else known[:1]:
                if _launch_of(path) != launch:
                    continue
                mine = path / f"rank-{rank:05d}"
                try:
                    mine.mkdir(mode=0o700)
                except FileExistsError:
                    break
                return mine, number
            _begin_attempt(folder, known[0][0] + 1 if known else 1, launch)
    except OSError as error:
        raise ConfigurationError(
            f"the run {run[:80]!r} cannot be recorded in {folder}: {error.strerror or error} ({error.filename or folder}). "
            "Choose a folder that you may write to and that has room, with directory= or RESMON_DIRECTORY."
        ) from error


def give_back(rank_folder: Path) -> None:
    """Undo `claim` where nothing could be written after all, so that nobody takes what is left for a run that was killed."""
    shutil.rmtree(rank_folder, ignore_errors=True)
    attempt = rank_folder.parent
    if ranks(attempt):
        return
    kept = attempt / LAUNCH
    with suppress(OSError):
        content = kept.read_bytes()
        kept.unlink()
        try:
            attempt.rmdir()
        except OSError:  # another rank has come, or there is more
            write_new(kept, content)
            return
        attempt.parent.rmdir()  # unless it holds other attempts


def _make_folders(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", str(folder))


def _begin_attempt(folder: Path, number: int, launch: str) -> None:
    """Make the attempt with its launch.json already in it, unless another rank was faster: a rename onto a full folder fails."""
    making = Path(tempfile.mkdtemp(prefix=".attempt-", dir=folder))
    try:
        write_json(making / LAUNCH, {"launch": launch})
        making.rename(folder / f"attempt-{number:04d}")
    except OSError:
        shutil.rmtree(making, ignore_errors=True)
        if not (folder / f"attempt-{number:04d}").exists():
            raise


def _launch_of(attempt: Path) -> str | None:
    try:
        launch = json.loads((attempt / LAUNCH).read_bytes())["launch"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return launch if isinstance(launch, str) else None


def runs(directory: Path) -> list[Path]:
    """The folders of the runs in `directory`, by name."""
    return sorted(path for path in _folders(Path(directory)) if attempts(path))


def attempts(run_folder: Path) -> dict[int, Path]:
    """The attempts of a run, oldest first."""
    return _numbered(run_folder, _ATTEMPT)


def ranks(attempt_folder: Path) -> dict[int, Path]:
    """The ranks' folders of an attempt."""
    return _numbered(attempt_folder, _RANK)


def attempt_number(path: Path) -> int | None:
    """The number of an attempt's folder; None where `path` is not called like one."""
    match = _ATTEMPT.fullmatch(path.name)
    return int(match[1]) if match else None


def rank_number(path: Path) -> int | None:
    """The rank of a rank's folder; None where `path` is not called like one."""
    match = _RANK.fullmatch(path.name)
    return int(match[1]) if match else None


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    found = ((pattern.fullmatch(path.name), path) for path in _folders(Path(folder)))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def closed(folder: Path) -> list[Path]:
    """What this user may not look into of a folder of runs, or of a run: the folder itself, or folders in it."""
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where it may not look
        return []
    return sorted(path for path in (folder, *_folders(folder)) if not os.access(path, os.R_OK | os.X_OK))


def not_let_in(folder: Path) -> str:
    """A sentence on what `closed` gives; empty where that is nothing."""
    found = closed(folder)
    if not found:
        return ""
    owner = "what resmon writes is its owner's alone. Its owner can open it with `chmod -R go+rX`."
    return f"This user may not read {listed(found)}: {owner}"


def size(folder: Path) -> int:
    """Bytes that the files in a folder have, those apart that go while they are counted."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.stat(os.path.join(path, name))  # noqa: PTH116, PTH118 - a run of many segments has thousands
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _folders(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return
    for entry in found:
        with suppress(OSError):  # a link that leads round in circles, or to where this user may not go, hides no other
            if entry.is_dir():
                yield Path(entry.path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` whole: a reader sees the file as it was before or as it is after."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text and a line's end, whole or not at all likewise."""
    write_parts(path, (text,))


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """The same of a text that comes in parts; not at all where one of them cannot be made."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(parts)
            file.write("\n")
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, for its owner's eyes, whole or (OSError) not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def reserve(path: Path) -> None:
    """Take room on the disk now for what `write_reserved` will write later, when the disk may be full."""
    descriptor = os.open(reserved(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(b" " * RESERVE)


def write_reserved(path: Path, value: Any) -> None:
    """`write_json`, into the room that `reserve` took as far as it goes."""
    room = reserved(path)
    data = json.dumps(value, indent=1).encode() + b"\n"
    try:
        with room.open("r+b") as file:
            file.write(data)
            file.truncate()
        room.replace(path)
    except OSError:  # it has been removed, say
        write_json(path, value)


def reserved(path: Path) -> Path:
    """The file that has the room."""
    return path.with_name(f".{path.name}")


def boot_id() -> str:
    """What tells this boot of this machine from every other; "" where the system does not say, which equals nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def hold(lock: Path) -> int:
    """Create and lock a lock file for as long as this process lives; the descriptor is for `release`.

    lockf and not flock: a flock is inherited by forked children and would outlive the process whose life it stands for.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigurationError(
            f"{lock} cannot be locked: {error.strerror}. Either another process records there, or the file system has no locks; "
            "choose a folder on a local disk with directory= or RESMON_DIRECTORY."
        ) from error
    _held[_identity(os.fstat(descriptor))] = os.getpid()
    return descriptor


def release(descriptor: int) -> None:
    """Give a lock back."""
    _held.pop(_identity(os.fstat(descriptor)), None)
    os.close(descriptor)


def is_held(lock: Path) -> bool:
    """Whether a living process, this one included, holds the lock file."""
    try:
        if _held.get(_identity(lock.stat())) == os.getpid():
            return True
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that two readers that probe at one moment do not take each other for the owner.
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


# struct flock of 64-bit Linux: type, whence, start, length, process id.
_FLOCK = struct.Struct("@hhqqi4x")


def holder(lock: Path) -> int | None:
    """The process that holds the lock file, by the number that it has here; None where nobody does or that cannot be seen.

    The kernel's answer is of this moment and of the reader's own process namespace. A number that the holder wrote down may by now
    be another process's, or may be one in its container, where it means another process than here.
    """
    if sys.platform != "linux":  # where the structure differs
        return None
    try:
        if _held.get(_identity(lock.stat())) == os.getpid():
            return os.getpid()
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
