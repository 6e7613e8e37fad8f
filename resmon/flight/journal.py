"""Files of JSON lines in a flight: appended one at a time, readable while they grow and after any damage.

A line goes to the kernel with one write, whole or not at all. A reader takes each line once, waits for the rest of one that is
being written, and counts and describes what is no such line; nothing that stands in a file is trusted.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from resmon.flight.reader import Skip

AT_ONCE = 1 << 20  # bytes; a line that is longer is none

Value = TypeVar("Value")


def append(path: Path, values: dict[str, Any]) -> None:
    """Append a line. Raises OSError where that cannot be; nothing of the line stays then."""
    line = json.dumps(values).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def _int64(digits: str) -> int:
    """What frames and exporters can hold."""
    number = int(digits)
    if abs(number) >= 1 << 63:
        raise ValueError(f"{digits[:20]}... is no number of 64 bits")
    return number


class Lines(Generic[Value]):
    """The lines of a file as `make` understands them; it raises ValueError, TypeError or KeyError for what is none."""

    def __init__(self, path: Path, make: Callable[[Any], Value], what: str) -> None:
        self._path = path
        self._make = make
        self._what = what
        self._offset = 0
        self.skips: list[Skip] = []

    def poll(self, ended: bool = False) -> list[Value]:
        """What is new. `ended` says that nobody writes any more, so that a line without an end is all there is of it."""
        new: list[Value] = []
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return new  # none yet
        try:
            while data := os.pread(descriptor, AT_ONCE, self._offset):
                whole = data.rfind(b"\n") + 1
                if not whole:
                    if not ended and len(data) < AT_ONCE:
                        break
                    whole = len(data)
                for line in data[:whole].splitlines(keepends=True):
                    try:
                        new.append(self._make(json.loads(line, parse_int=_int64)))
                    except (ValueError, TypeError, KeyError, RecursionError) as error:
                        self.skips.append(Skip(self._path, self._offset, len(line), 1, f"not {self._what}: {error}"))
                    self._offset += len(line)
        except OSError as error:
            if not self.skips or self.skips[-1].offset != self._offset:
                self.skips.append(Skip(self._path, self._offset, 0, 0, f"cannot be read: {error.strerror}"))
        finally:
            os.close(descriptor)
        return new
