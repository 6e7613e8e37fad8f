"""`resmon agent`: from taking the seat to giving it back."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import resmon
from resmon.agent import runtime
from resmon.agent.runtime import Seat
from resmon.errors import AgentError

log = logging.getLogger("resmon.agent")

# An agent that is leaving needs a second or two until its seat is free.
PATIENCE = 5.0


def main(listen: str, linger: float, max_series: int, grace: float = 0.0, directories: Sequence[Path] = ()) -> None:
    """Serve until nothing is left to follow, or a signal. Returns at once where another agent serves already.

    `linger` is how many seconds the series of a run stay after its end if nobody scrapes them, and the agent after its start if
    nobody comes. A run exports at most `max_series` series (exporters/budget.py). After SIGTERM it stays for `grace` seconds
    at most, until runs have ended and their last values were scraped. Raises AgentError where the runtime folder or the address
    cannot be used.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = runtime.folder()
    for directory in directories:  # before the question who serves: one that runs already lists them too
        runtime.remember(folder, Path(os.path.realpath(directory)))
    seat = Seat.take(folder, PATIENCE)
    if seat is None:
        now = runtime.serving(folder)
        if now is None:
            raise AgentError(f"{folder / runtime.LOCK} cannot be locked, though nobody holds it. {runtime.CHANGE_IT}")
        where = f"{now.url}/metrics (process {now.pid})" if now.url else "an address that it has not told yet"
        print(f"resmon agent: another one serves already, at {where}", flush=True)
        return
    try:
        listener, url = bind(listen)
        # Imported only now, so that an agent that is not needed costs little.
        from resmon.agent.server import Server

        server = Server(folder, seat, linger, max_series, grace)
        seat.announce(url, resmon.__version__)
        print(f"resmon agent: serving {url} for browsers, {url}/metrics for Prometheus", flush=True)
        log.info("process serves %s/metrics, at most %d series of a run; runtime folder %s", url, max_series, folder)
        server.run(listener)
    finally:
        seat.leave()
        log.info("the agent has left")


def bind(listen: str) -> tuple[socket.socket, str]:
    """A socket bound to HOST:PORT, or to a free port of that host where another program has that one; and its URL."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an agent that was killed leaves connections in TIME_WAIT
        try:
            _listen(listener, address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _listen(listener, (address[0], 0, *address[2:]))
            free = listener.getsockname()[1]
            taken = f"{listen} is taken by another program; metrics are on port {free} instead"
            log.warning("%s. Prometheus finds it by file_sd in the runtime folder's %s", taken, runtime.TARGETS)
            print(f"resmon agent: {taken}", flush=True)
    except (OSError, ValueError, OverflowError) as error:
        raise AgentError(f"the agent cannot listen on {listen}: {error}. Choose another with --listen HOST:PORT.") from error
    name = listener.getsockname()
    # Who listens everywhere is reached here, on loopback.
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0])  # noqa: S104 - recognised, not bound
    return listener, f"http://{f'[{shown}]' if ':' in shown else shown}:{name[1]}"


def _listen(listener: socket.socket, address: tuple[object, ...]) -> None:
    listener.bind(address)
    listener.listen(128)  # two sockets may be bound to one port; only one of them can listen
