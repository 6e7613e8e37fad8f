"""The agent at work: a thread that reads flights once a second, and the few pages that it answers.

Requests change nothing; what stands before all pages is the door (access/door.py). They share one lock with the reader, but for
health and readiness, which must answer while a long flight is read.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

import resmon
from resmon.access.connection import Connection
from resmon.access.door import Door, Names
from resmon.access.listener import MOST
from resmon.access.pace import Drowsy, Pace
from resmon.access.renewal import Renewal
from resmon.access.tls import Renewing
from resmon.access.web_config import WebConfig
from resmon.agent import heap, runtime
from resmon.agent.figures import Gpus
from resmon.agent.roster import Roster
from resmon.agent.runtime import Seat
from resmon.agent.scrapes import Scrapes
from resmon.errors import AgentError
from resmon.exporters.view import AgentView, Event
from resmon.page.listing import Listing
from resmon.page.routes import Page

if TYPE_CHECKING:
    from resmon.agent.push import Push

log = logging.getLogger("resmon.agent")

INTERVAL = 1.0
# Between two turns of catching up: enough for a waiting scrape to get the lock.
BREATH = 0.01
# Seconds between two times that free memory is given back; also whenever it has caught up.
TIDY = 10.0
# Without a turn of the reader for so long, the agent is not healthy; a turn takes a second or two at most.
HEALTHY = 60.0
# So long after the page's last question somebody looks at it still.
LOOKED_AT = 30.0
HANDSHAKE = 10.0  # seconds for that of TLS

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Http(uvicorn.Server):
    """Leaves it to the agent what a signal means."""

    def __init__(self, config: uvicorn.Config, asked: Callable[[int], None], leaving: Callable[[], None]) -> None:
        super().__init__(config)
        self._asked = asked
        self._leaving = leaving

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002, the signature is uvicorn's
        self._asked(sig)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._leaving()
        await super().shutdown(sockets)


class Server:
    """Serves until the roster is over or a signal comes; after a first SIGTERM `grace` seconds more, where somebody still waits."""

    def __init__(
        self,
        folder: Path,
        seat: Seat,
        linger: float,
        max_series: int,
        grace: float = 0.0,
        web: WebConfig | None = None,
        names: Names | None = None,
        otlp: str | None = None,
        otlp_interval: float = 15.0,
    ) -> None:
        self._folder = folder
        self._seat = seat
        self._roster = Roster(folder, resmon.__version__, linger, max_series, self._tell)
        self._gpus = Gpus()
        self._lock = threading.Lock()  # over the roster
        self._faults: SimpleQueue[tuple[str, str]] = SimpleQueue()  # of whoever cannot wait for the lock
        self._push = None if otlp is None else self._pushing(otlp, otlp_interval)
        self._scrapes = Scrapes(self._roster, self._lock, self._gpus.newest, self._dropped, self._held, self._crowded)
        self._page = Page(
            Listing(lambda: runtime.directories(folder), lambda: filter(None, runtime.registrations(folder).values()))
        )
        self._stop = threading.Event()
        self._grace = grace
        self._until: float | None = None  # monotonic: when an agent that was asked to leave does, whoever waits
        self._without_seat = False  # the runtime folder was removed and cannot be made anew yet
        self._turned = time.monotonic()
        self._clock: int | None = None  # of the reader's CPU time
        self._pace = Pace(self._answering)
        web = web or WebConfig()
        renewal = Renewal(web, lambda about, message: self._faults.put((about, message)))
        self.door = Door(Starlette(routes=self.routes()), names or Names(), renewal.newest, self._pace)
        # What it warns of are bad requests, and whoever sends those must not fill the log.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        logging.getLogger("asyncio").setLevel(logging.ERROR)

        class OfOurs(Connection):
            @property
            def allowed_names(self) -> frozenset[str]:
                newest = renewal.newest().tls
                return frozenset() if newest is None else newest.allowed_names

        configuration = uvicorn.Config(
            self.door,
            http=OfOurs,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST,  # requests that nobody waits for any more; the door knows what is too many connections
            timeout_graceful_shutdown=2,
        )
        configuration.load()
        if web.tls is not None:
            configuration.ssl = Renewing.of(renewal.context)
        self._http = _Http(configuration, self._asked_to_leave, self._pace.end)

    def routes(self) -> list[BaseRoute]:
        """All that is served."""
        return [
            *self._page.routes(),
            Route("/metrics", self._scrapes.answer),
            Route("/-/healthy", self._healthy),
            Route("/-/ready", self._ready),
        ]

    def run(self, listener: socket.socket) -> None:
        """Serve on a bound socket, which is closed when this returns."""
        # uvicorn takes signals while it runs and raises them again afterwards: then, and before, they come here.
        for number in SIGNALS:
            signal.signal(number, lambda number, _frame: self._asked_to_leave(number))
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        reader.start()
        if self._push is not None:
            self._push.start()
        try:
            with asyncio.Runner(loop_factory=lambda: _Loop(Drowsy(self._pace))) as runner:
                runner.run(self._http.serve(sockets=[listener]))
        finally:
            self._stop.set()
            self._gpus.close()
            self.door.passwords.close()
            self._page.close()
            listener.close()
            reader.join(timeout=5)
            if self._push is not None:
                self._push.close()
            if self._lock.acquire(timeout=1):  # else a turn of the reader hangs, and the bookmarks are as old as that
                try:
                    self._roster.leave()
                finally:
                    self._lock.release()

    def _answering(self) -> float:
        """CPU seconds that this process has taken, but for its following of flights where the system tells that apart."""
        try:
            return time.process_time() - (0.0 if self._clock is None else time.clock_gettime(self._clock))
        except OSError:  # the reader has ended, and soon all does
            return time.process_time()

    def _pushing(self, to: str, interval: float) -> Push:
        from resmon.agent.push import Push  # which needs what only resmon[otel] installs

        return Push(to, interval, self._view, lambda about, message: self._faults.put((about, message)), resmon.__version__)

    def _view(self) -> AgentView:
        """This moment, for who pushes it."""
        with self._lock:
            return self._roster.view(self._scrapes.collect_seconds, self._gpus.newest(), self._dropped(), self._held())

    def _dropped(self) -> Mapping[str, int]:
        return {} if self._push is None else self._push.dropped

    def _held(self) -> float:
        return self._pace.held_seconds

    def _crowded(self) -> bool:
        return self._pace.is_crowded

    def _tell(self, event: Event) -> None:
        if self._push is not None:
            self._push.tell(event)

    def _asked_to_leave(self, number: int) -> None:
        if number == signal.SIGTERM and self._grace > 0 and self._until is None:
            self._until = time.monotonic() + self._grace
        else:
            self._leave()

    def _leave(self) -> None:
        self._stop.set()
        self._http.should_exit = True

    def _read(self) -> None:
        is_behind, tidied = False, self._turned
        if sys.platform == "linux":
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        while not self._stop.is_set():
            done = True
            try:
                with self._lock:
                    self._tell_faults()
                    self._keep_seat()
                    done = self._stop.is_set() or self._roster.poll()
                    self._scrapes.forget()
                    over = self._roster.is_over(asked=self._until is not None)
                if over and (self._until is not None or not self._is_looked_at()) and self._nobody_comes():
                    self._leave()
            except Exception:  # the next turn may do better, and the pages still answer
                log.exception("a turn of the agent failed")
                with self._lock:
                    self._roster.fault("turn", "a turn of the agent failed; the traceback stands above")
            self._turned = time.monotonic()
            if done and (is_behind or self._turned - tidied > TIDY):
                heap.give_back()
                tidied = self._turned
            is_behind = not done
            if self._until is not None and self._turned >= self._until:
                log.info("asked to leave %.0f s ago; what goes on or was not scraped is left to the next one", self._grace)
                self._leave()
            self._stop.wait(INTERVAL if done else BREATH)

    def _tell_faults(self) -> None:
        while True:
            try:
                self._roster.fault(*self._faults.get_nowait())
            except Empty:
                return

    def _keep_seat(self) -> None:
        """Make the runtime folder anew where it was removed, or leave it to the agent that has come since."""
        if not self._seat.is_lost:
            self._without_seat = False
            return
        try:
            if self._seat.take_again():
                self._roster.register_again()
                log.warning("%s was removed, as a session that ends or who tidies up does, and is made anew", self._folder)
            elif (now := runtime.serving(self._folder)) is not None and now.url:
                self._roster.register_again(with_the_past=False)
                log.warning("%s was removed, and another agent has come since (%s): it is left the runs", self._folder, now.url)
                self._leave()
        except (AgentError, OSError) as error:
            if not self._without_seat:
                self._without_seat = True
                told = f"the runtime folder was removed, so that trainings that begin now do not find this agent, and {error}"
                self._roster.fault("seat", told)

    def _nobody_comes(self) -> bool:
        """Look at the registrations once more while nobody can find this agent, and if there is none, be found no more."""
        if self._seat.is_lost:
            return True
        with runtime.gate(self._folder, INTERVAL) as descriptor:
            if descriptor is None or self._roster.has_newcomers():
                return False
            self._seat.mark_leaving()
            return True

    def _is_looked_at(self) -> bool:
        """Whether somebody has the page open: an agent does not leave under their eyes."""
        return time.monotonic() - self._page.looked_at < LOOKED_AT

    async def _healthy(self, _: Request) -> Response:
        if time.monotonic() - self._turned > HEALTHY:
            return PlainTextResponse(f"the reader has not turned for {HEALTHY:.0f} s; see the agent's log\n", 503)
        return PlainTextResponse("resmon agent is healthy\n")

    async def _ready(self, _: Request) -> Response:
        if not self._roster.ready:
            return PlainTextResponse("resmon agent is still reading what was recorded before it came\n", 503)
        return PlainTextResponse("resmon agent is ready\n")


class _Loop(asyncio.SelectorEventLoop):
    """With a shorter time for the handshake of TLS than a minute, for which uvicorn has no setting."""

    async def create_server(self, *arguments: Any, **named: Any) -> asyncio.Server:
        if named.get("ssl") is not None:
            named.setdefault("ssl_handshake_timeout", HANDSHAKE)
        return await super().create_server(*arguments, **named)
