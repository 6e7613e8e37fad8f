"""The socket that the agent listens on: bound where it was told to, and never with more connections open than it can bear.

Whoever comes when so many are open is hung up on at once, before a byte is read and before TLS begins, so that no crowd can use up
the descriptors that the agent needs to follow flights.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import weakref
from typing import Any

from resmon.errors import AgentError

MOST = 512  # connections; a thousand descriptors is what a process usually may have
BACKLOG = 128


class Listener(socket.socket):
    """A socket that takes no more connections than it is told."""

    def __init__(self, *arguments: Any, most: int = MOST, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._most = most
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if sum(other.fileno() != -1 for other in self._open) >= self._most:
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "too many connections are open")  # which every server knows
        self._open.add(connection)
        return connection, address

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port, *_ = self.getsockname()
        return host, port

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return ipaddress.ip_address(self.address[0].partition("%")[0]).is_loopback

    @property
    def authority(self) -> str:
        """HOST:PORT of the place where it is reached from this machine."""
        host, port = self.address
        # Who listens everywhere is reached here, on loopback.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - recognised, not bound
        return f"{f'[{host}]' if ':' in host else host}:{port}"


def bind(listen: str) -> tuple[Listener, bool]:
    """A socket bound to HOST:PORT, or to a free port of that host where another program has that one; and which of the two.

    Raises AgentError where it can be neither.
    """
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = Listener(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an agent that was killed leaves connections in TIME_WAIT
        try:
            _listen(listener, address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _listen(listener, (address[0], 0, *address[2:]))
            return listener, True
    except (OSError, ValueError, OverflowError) as error:
        raise AgentError(f"the agent cannot listen on {listen}: {error}. Choose another with --listen HOST:PORT.") from error
    return listener, False


def _listen(listener: Listener, address: tuple[object, ...]) -> None:
    listener.bind(address)
    listener.listen(BACKLOG)  # two sockets may be bound to one port; only one of them can listen
