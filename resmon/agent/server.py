"""The agent at work: a thread that reads flights once a second, and the few pages that it answers.

Requests change nothing; only their path and Accept header are looked at. They share one lock with the reader, but for health and
readiness, which must answer while a long flight is read.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import resmon
from resmon.agent import runtime
from resmon.agent.figures import Gpus
from resmon.agent.roster import Roster
from resmon.agent.runtime import Seat
from resmon.exporters.prometheus import Prometheus
from resmon.page.listing import Listing
from resmon.page.routes import Page

log = logging.getLogger("resmon.agent")

INTERVAL = 1.0
# Between two turns of catching up: enough for a waiting scrape to get the lock.
BREATH = 0.01
# Without a turn of the reader for so long, the agent is not healthy; a turn takes a second or two at most.
HEALTHY = 60.0
# So long after the page's last question somebody looks at it still.
LOOKED_AT = 30.0
CONNECTIONS = 256  # beyond it, 503

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Http(uvicorn.Server):
    """Leaves it to the agent what a signal means."""

    def __init__(self, config: uvicorn.Config, asked: Callable[[int], None]) -> None:
        super().__init__(config)
        self._asked = asked

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002, the signature is uvicorn's
        self._asked(sig)


class Server:
    """Serves until the roster is over or a signal comes; after a first SIGTERM `grace` seconds more, where somebody still waits."""

    def __init__(self, folder: Path, seat: Seat, linger: float, max_series: int, grace: float = 0.0) -> None:
        self._folder = folder
        self._seat = seat
        self._roster = Roster(folder, resmon.__version__, linger, max_series)
        self._exporter = Prometheus()
        self._gpus = Gpus()
        self._page = Page(
            Listing(lambda: runtime.directories(folder), lambda: filter(None, runtime.registrations(folder).values()))
        )
        self._lock = threading.Lock()  # over the roster and the exporter
        self._stop = threading.Event()
        self._grace = grace
        self._until: float | None = None  # monotonic: when an agent that was asked to leave does, whoever waits
        self._turned = time.monotonic()
        self._collect_seconds = 0.0
        application = Starlette(
            routes=[
                *self._page.routes(),
                Route("/metrics", self._metrics),
                Route("/-/healthy", self._healthy),
                Route("/-/ready", self._ready),
            ]
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._http = _Http(
            uvicorn.Config(
                application,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=2,
            ),
            self._asked_to_leave,
        )

    def run(self, listener: socket.socket) -> None:
        """Serve on a bound socket, which is closed when this returns."""
        # uvicorn takes signals while it runs and raises them again afterwards: then, and before, they come here.
        for number in SIGNALS:
            signal.signal(number, lambda number, _frame: self._asked_to_leave(number))
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        reader.start()
        try:
            self._http.run(sockets=[listener])
        finally:
            self._stop.set()
            self._gpus.close()
            self._page.close()
            listener.close()
            reader.join(timeout=5)
            if self._lock.acquire(timeout=1):  # else a turn of the reader hangs, and the bookmarks are as old as that
                try:
                    self._roster.leave()
                finally:
                    self._lock.release()

    def _asked_to_leave(self, number: int) -> None:
        if number == signal.SIGTERM and self._grace > 0 and self._until is None:
            self._until = time.monotonic() + self._grace
        else:
            self._leave()

    def _leave(self) -> None:
        self._stop.set()
        self._http.should_exit = True

    def _read(self) -> None:
        while not self._stop.is_set():
            done = True
            try:
                with self._lock:
                    done = self._roster.poll()
                    over = self._roster.is_over(asked=self._until is not None)
                if over and (self._until is not None or not self._is_looked_at()) and self._nobody_comes():
                    self._leave()
            except Exception:  # the next turn may do better, and the pages still answer
                log.exception("a turn of the agent failed")
                with self._lock:
                    self._roster.fault("turn", "a turn of the agent failed; the traceback stands above")
            self._turned = time.monotonic()
            if self._until is not None and self._turned >= self._until:
                log.info("asked to leave %.0f s ago; what goes on or was not scraped is left to the next one", self._grace)
                self._leave()
            self._stop.wait(INTERVAL if done else BREATH)

    def _nobody_comes(self) -> bool:
        """Look at the registrations once more while nobody can find this agent, and if there is none, be found no more."""
        with runtime.gate(self._folder, INTERVAL) as descriptor:
            if descriptor is None or self._roster.has_newcomers():
                return False
            self._seat.mark_leaving()
            return True

    def _is_looked_at(self) -> bool:
        """Whether somebody has the page open: an agent does not leave under their eyes."""
        return time.monotonic() - self._page.looked_at < LOOKED_AT

    # Plain functions: they may wait for the lock, so Starlette runs them in threads of its own.

    def _metrics(self, request: Request) -> Response:
        with self._lock:
            started = time.perf_counter()
            self._roster.poll()
            view = self._roster.view(self._collect_seconds, self._gpus.newest())
            content, kind = self._exporter.render(view, request.headers.get("accept", ""))
            self._collect_seconds = time.perf_counter() - started
            if request.method == "GET":
                self._roster.scraped()
        return Response(content, headers={"content-type": kind})

    def _healthy(self, _: Request) -> Response:
        if time.monotonic() - self._turned > HEALTHY:
            return PlainTextResponse(f"the reader has not turned for {HEALTHY:.0f} s; see {self._folder / runtime.LOG}\n", 503)
        return PlainTextResponse("resmon agent is healthy\n")

    def _ready(self, _: Request) -> Response:
        if not self._roster.ready:
            return PlainTextResponse("resmon agent is still reading what was recorded before it came\n", 503)
        return PlainTextResponse("resmon agent is ready\n")
