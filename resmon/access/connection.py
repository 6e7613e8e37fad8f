"""One connection to the agent, with an end to everything: to the sending of a request, to its answer, to who may come at all.

uvicorn ends a connection that is idle between two requests. This ends also what crawls: a request that is sent a byte a second, an
answer that is not taken. What a client does not take is not kept for it: an answer goes out in pieces, the next one when the one
before is gone (door.py).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from resmon.access.tls import names_of

REQUEST = 10.0  # seconds from a request's first byte, or from the connection, to its last
ANSWER = 60.0  # seconds from there to the end of the answer
IDLE = 10.0  # seconds from there to the next request; uvicorn closes after 5, which waits for what the client has not taken
KEY = "resmon.connection"  # where a request's state has its connection


class Connection(H11Protocol):
    """uvicorn makes one for each client."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, {**app_state, KEY: self}, _loop)
        self._deadline: asyncio.TimerHandle | None = None
        self.since = 0.0  # when the answer under way began, by the loop's clock
        self._is_idle = False  # between two requests
        self._answering: object = None  # the cycle that the deadline is for

    @property
    def allowed_names(self) -> frozenset[str]:
        """Of which a client's certificate must hold one; any does where there are none."""
        return frozenset()

    @property
    def neighbours(self) -> int:
        """How many connections there are, this one among them."""
        return len(self.connections)

    @property
    def is_gone(self) -> bool:
        """Whether nobody is there any more to take an answer."""
        return self.transport is None or self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        secure = transport.get_extra_info("ssl_object")
        allowed = self.allowed_names
        if allowed and isinstance(secure, ssl.SSLObject) and not allowed & names_of(secure.getpeercert() or {}):
            self.abort()
            return
        self._arm(REQUEST)

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self._is_idle = False
            self._arm(REQUEST)
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and self.cycle is not self._answering and not self.cycle.response_complete:
            self._answering, self._is_idle, self.since = self.cycle, False, self.loop.time()
            self._arm(ANSWER)

    def on_response_complete(self) -> None:
        self._is_idle = True
        self._arm(IDLE)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def abort(self) -> None:
        """End it now, whatever is under way."""
        self._disarm()
        if self.transport is not None:
            self.transport.abort()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
