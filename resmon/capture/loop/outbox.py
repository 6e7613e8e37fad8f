"""Hands a session's records on, in the order in which they were made, each as soon as its numbers have arrived.

Most have at once; those with numbers from a GPU wait for them without making the loop wait. Whoever is given the records may raise
OSError, when nothing more can be written: that ends the recording, not the training.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from resmon.capture.host.fetch import Fetch
from resmon.records import Incident, ResidualSite, ScalarRecord, SpanRecord, StepRecord

PATIENCE = 10.0  # seconds that the end of a run waits for a device that may never answer


class Sink(Protocol):
    """Whom the records are given to. OSError from it ends the recording."""

    def sites(self, sites: Sequence[ResidualSite], groups: Sequence[str]) -> None: ...
    def step(self, record: StepRecord) -> None: ...
    def scalars(self, record: ScalarRecord) -> None: ...
    def incident(self, incident: Incident) -> None: ...
    def span(self, span: SpanRecord) -> None: ...

    def capsule(self, name: str, data: bytes) -> bool:
        """Put a file beside the records. Whether that could be done: without it recording goes on."""

    def stopped(self, error: OSError) -> None:
        """Nothing more comes, because of `error`, while training goes on."""


class Owner(Protocol):
    """Who hears of what goes wrong."""

    def fault(self, error: Exception) -> None: ...
    def cannot_write(self, error: OSError) -> None: ...


class Outbox:
    """Before `open` nothing is handed on, and nothing is kept."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._sink: Sink | None = None
        self._waiting: deque[tuple[Fetch | None, Callable[[Sink], None]]] = deque()
        # A loop may log from another thread than it trains in. Whoever is at it may come again: what is handed on can be news.
        self._at_it = threading.RLock()

    def open(self, sink: Sink) -> None:
        self._sink = sink

    def put(self, hand_on: Callable[[Sink], None], awaited: Fetch | None = None) -> None:
        """Hand on as `hand_on` does, in its turn, once `awaited` has arrived."""
        if self._sink is not None:
            with self._at_it:
                self._waiting.append((awaited, hand_on))
                self.look()

    def look(self, patience: float = 0.0) -> None:
        """Hand on what has arrived; or all, waiting for what has not as long as patience lasts."""
        with self._at_it:
            self._look(patience)

    def _look(self, patience: float) -> None:
        while self._waiting and self._sink is not None:
            awaited, hand_on = self._waiting[0]
            if awaited is not None and not awaited.has_arrived():
                if not patience:
                    return
                if not awaited.wait(patience):
                    awaited.failed = True
            self._waiting.popleft()
            try:
                hand_on(self._sink)
            except OSError as error:
                sink, self._sink = self._sink, None
                self._owner.cannot_write(error)
                with suppress(OSError):
                    sink.stopped(error)
            except Exception as error:
                self._sink = None
                self._owner.fault(error)
        if self._sink is None:
            self._waiting.clear()
