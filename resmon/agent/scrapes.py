"""The answers to those who scrape: where many do, one exposition for all who ask between two turns of the reader.

An exposition of 100,000 series is nine megabytes and takes more than a tenth of a second to write, so fifty scrapers must not cost
fifty of them. Who comes while one is written has that one. As long as few ask, each has one of its own, of that very moment; when
writing has taken more time than it is allowed in the long run, whoever comes before the flights are read again (a second at the
most) has the newest that there is. Where a crowd has to wait, as the machine is busy (access/pace.py), no flight is read for it
either. Old ones that slow clients still take are bounded by their bytes: those who hold the oldest are hung up on. It is compressed
for other machines, once for all; on this one that would only take time.

A scrape is counted (roster.py) where its answer holds everything that the agent knows at that moment. One that had to be answered
with what was written a moment before counts for nothing, and what it was to see waits for the next.
"""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from weakref import WeakSet

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from resmon.access.connection import KEY, Connection
from resmon.agent.roster import Roster
from resmon.exporters.prometheus import Prometheus, negotiate
from resmon.exporters.view import GpuView

# Bytes of answers that are being sent, the newest of each kind apart.
MOST_BYTES = 16 << 20
# Seconds of writing that may be spent on what would have been much the same: at once, and of each second.
BURST, SHARE = 2.0, 0.005
# Bytes on their way for which the next exposition waits, and how many seconds.
LARGE, MOMENT = 4 << 20, 0.5
SMALL = 2048  # bytes that are not worth compressing
LEVEL = 1  # of zlib: a fifteenth of the size; the default level takes three times as long for a twentieth


@dataclass(eq=False, slots=True, weakref_slot=True)
class Body:
    """Bytes that several clients may be taking at once."""

    content: bytes
    readers: set[Connection] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Exposition:
    """What is scraped, as it was written in one turn of the reader."""

    kind: str
    turn: int
    plain: Body
    zipped: asyncio.Future[Body] | None = None


class Scrapes:
    """Answers scrapes from one event loop; `lock` is over the roster."""

    def __init__(
        self,
        roster: Roster,
        lock: threading.Lock,
        gpus: Callable[[], tuple[GpuView, ...]],
        dropped: Callable[[], Mapping[str, int]] = dict,
        held: Callable[[], float] = float,
        crowded: Callable[[], bool] = bool,
    ) -> None:
        self._roster = roster
        self._lock = lock
        self._gpus = gpus
        self._dropped = dropped
        self._held = held
        self._crowded = crowded
        self._exporter = Prometheus()
        self._newest: dict[str, Exposition] = {}  # by kind
        self._under_way: dict[str, asyncio.Future[Exposition]] = {}
        self._bodies: WeakSet[Body] = WeakSet()
        self._allowance, self._allowed_at = BURST, time.monotonic()
        self.collect_seconds = 0.0  # of the newest exposition

    def forget(self) -> None:
        """Nothing is to be answered with what was written until now. To be called under the lock."""
        self._newest = {}

    async def answer(self, request: Request) -> Response:
        """The exposition of this moment, in the form that the request likes best."""
        kind, counts = negotiate(request.headers.get("accept", "")), request.method == "GET"
        exposition = self._newest.get(kind)
        if exposition is None or exposition.turn != self._roster.turn or self._may_write():
            exposition = await self._written(kind, counts)
        elif counts:
            self._count(exposition)
        headers = {"content-type": kind, "vary": "accept, accept-encoding"}
        body = exposition.plain
        if len(body.content) > SMALL and _takes_gzip(request.headers.get("accept-encoding", "")) and not _is_near(request.scope):
            body = await self._zipped(exposition)
            headers["content-encoding"] = "gzip"
        return _Shared(body, headers)

    def _may_write(self) -> bool:
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + SHARE * (now - self._allowed_at))
        self._allowed_at = now
        return self._allowance > 0

    async def _written(self, kind: str, counts: bool) -> Exposition:
        """One that is being written already, or a new one."""
        under_way = self._under_way.get(kind)
        if under_way is None:
            under_way = asyncio.ensure_future(self._write_when_taken(kind, counts))
            self._under_way[kind] = under_way
            under_way.add_done_callback(lambda _: self._under_way.pop(kind))
            counts = False  # it is, where it is written
            under_way.add_done_callback(self._spend)
        exposition = await asyncio.shield(under_way)
        self._bound(exposition.plain)
        if counts:
            self._count(exposition)
        return exposition

    def _spend(self, written: asyncio.Future[Exposition]) -> None:
        if not written.cancelled() and written.exception() is None:
            self._allowance = max(-BURST, self._allowance - self.collect_seconds)

    async def _write_when_taken(self, kind: str, counts: bool) -> Exposition:
        """Whoever takes a large one still is given a moment for it: with the next beside it they would need twice the memory."""
        until = time.monotonic() + MOMENT
        while self._are_taken() and time.monotonic() < until:
            await asyncio.sleep(MOMENT / 20)
        return await asyncio.to_thread(self._write, kind, counts)

    def _are_taken(self) -> bool:
        """Whether large answers are on their way."""
        return sum(len(body.content) for body in self._bodies if body.readers) > LARGE

    def _write(self, kind: str, counts: bool) -> Exposition:
        with self._lock:
            started = time.perf_counter()
            if not self._crowded():  # else flights are read in the reader's own turns only
                self._roster.poll()
            view = self._roster.view(self.collect_seconds, self._gpus(), self._dropped(), self._held())
            self._newest.pop(kind, None)  # before the next one is there, too
            content, _ = self._exporter.render(view, kind)
            self.collect_seconds = time.perf_counter() - started
            if counts:
                self._roster.scraped()
            exposition = self._newest[kind] = Exposition(kind, self._roster.turn, Body(content))
        return exposition

    def _count(self, exposition: Exposition) -> None:
        if self._lock.acquire(blocking=False):  # else the reader is at it, and there will be more to see
            try:
                if exposition.turn == self._roster.turn:
                    self._roster.scraped()
            finally:
                self._lock.release()

    async def _zipped(self, exposition: Exposition) -> Body:
        if exposition.zipped is None:
            exposition.zipped = asyncio.ensure_future(asyncio.to_thread(_zip, exposition.plain.content))
        body = await asyncio.shield(exposition.zipped)
        self._bound(body)
        return body

    def _bound(self, newest: Body) -> None:
        """Make room for it, at the cost of those who have been taking the oldest answers."""
        self._bodies.add(newest)
        held = sorted((body for body in self._bodies if body.readers and body is not newest), key=_since)
        total = sum(len(body.content) for body in held)
        for body in held:
            if total <= MOST_BYTES:
                break
            total -= len(body.content)
            for reader in list(body.readers):
                reader.abort()


def _since(body: Body) -> float:
    return min(reader.since for reader in body.readers)


class _Shared(Response):
    """An answer whose bytes are not its own."""

    def __init__(self, body: Body, headers: dict[str, str]) -> None:
        self._shared = body
        super().__init__(body.content, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = scope.get("state", {}).get(KEY)
        if reader is None:  # no connection of ours: a test's
            await super().__call__(scope, receive, send)
            return
        self._shared.readers.add(reader)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._shared.readers.discard(reader)


def _zip(content: bytes) -> Body:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # in gzip's form
    return Body(compressor.compress(content) + compressor.flush())


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        name, _, parameters = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _is_near(scope: Scope) -> bool:
    """Whether the client is on this machine, as far as its address tells."""
    client, server = scope.get("client"), scope.get("server")
    if client is None:
        return True
    try:
        return client[0] == (server or ("",))[0] or ip_address(client[0].partition("%")[0]).is_loopback
    except ValueError:
        return False
