"""What is written to a terminal, read at its leader's side (pty.openpty)."""

from __future__ import annotations

import contextlib
import os


def rest(leader: int) -> bytes:
    """All that is still written to it, until nobody has its other end open any more. A read gives what is there, which need not be
    all that somebody has written."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed, and all is read
        while part := os.read(leader, 4096):
            shown += part
    os.close(leader)
    return shown
