"""Ports for servers that a test starts: each is handed out once, and to nobody else in the meantime.

A port that the system gives out and takes back can be anybody's a moment later: another test's in another process, or the near end
of any connection. These lie below those that systems give out by themselves, and each of the processes that share the tests draws
from a part of its own.
"""

from __future__ import annotations

import os
import random
import socket
from itertools import count

_FIRST, _LAST = 12_000, 32_000
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_EACH = (_LAST - _FIRST) // _WORKERS
_PLACES = count(random.randrange(_EACH))  # other runs of the tests may be under way on this machine


def free_port() -> int:
    """The next one on which nobody listens."""
    while True:
        port = _FIRST + _WORKER * _EACH + next(_PLACES) % _EACH
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
