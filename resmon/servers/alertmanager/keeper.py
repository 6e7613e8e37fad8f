"""The keeper of a planned window's silence: a process of its own, for as long as the process that planned it is in the window.

A silence is given a short life and kept alive, never beyond the end that was planned. When the window ends, or the process that
planned it does in whatever way, the silence is ended at once; when the keeper goes too (the machine is lost) it ends by itself
after LIFE. An Alertmanager that is down or slow is asked again for as long as the window lasts. A silence that somebody ended or
prolonged by hand is left as it is.

The plan is one line of JSON on standard input, anything that follows there says that the window is over; what happens is told on
standard output, one line of JSON for each event. `python -m resmon.servers.alertmanager.keeper` runs it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Literal

from resmon.errors import ConfigurationError, ResmonError, ServerError
from resmon.servers.alertmanager.client import Alertmanager
from resmon.servers.alertmanager.matchers import Matcher
from resmon.servers.alertmanager.values import Silence, moment

LIFE = 180.0  # seconds that the silence lasts if nobody keeps it alive
BEAT = 60.0  # seconds between two prolongations
LOOK = 0.5  # seconds between two looks whether the process is still there
ENDING = 60.0  # seconds for which the end is tried to be told
LAST = 2.0  # seconds before the planned end in which nothing is begun any more: the server's date tells whole seconds
TIMEOUT = 5.0  # seconds for one answer
TOLERANCE = timedelta(seconds=2)  # of times that are compared with the server's

Event = Literal["silenced", "failed", "by_hand", "over", "ended", "left"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is silenced, why, and until when by the monotonic clock of this machine."""

    urls: tuple[str, ...]
    matchers: tuple[str, ...]
    comment: str
    author: str
    deadline: float
    parent: int
    life: float = LIFE
    beat: float = BEAT

    def as_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Plan:
        content = json.loads(line)
        return cls(**content | {"urls": tuple(content["urls"]), "matchers": tuple(content["matchers"])})


class Keeper:
    """`over` waits for so many seconds, and says whether the window was ended meanwhile."""

    def __init__(self, plan: Plan, client: Alertmanager, over: Callable[[float], bool], tell: Callable[..., None]) -> None:
        self._plan = plan
        self._client = client
        self._over = over
        self._tell = tell
        self._matchers = tuple(map(Matcher.parse, plan.matchers))
        self._silence: Silence | None = None
        self._in_doubt = False  # one may have been made that nobody told us of

    def run(self) -> None:
        wait, failures = 0.0, 0
        while not self._over(wait):
            if self._left() <= 0:
                self._tell("over")
                return
            try:
                is_ours = self._beat()
                wait, failures = min(self._plan.beat, max(0.0, self._left())), 0
            except ServerError as error:
                self._in_doubt |= error.uncertain
                failures += 1
                wait = min(self._plan.beat, 2.0**failures, max(0.0, self._left()))
                self._tell("failed", why=str(error))
                continue
            except ConfigurationError:
                if self._left() > LAST:
                    raise
                is_ours, wait = True, max(0.0, self._left())  # the answer was so slow that the end has come
            if not is_ours:
                return
        self._end()

    def _left(self) -> float:
        return self._plan.deadline - time.monotonic()

    def _beat(self) -> bool:
        """See to it that the silence is there and lasts; False where somebody else has decided about it."""
        # Both clocks are read at one moment, so that the end is not late by what a slow answer takes.
        now = self._client.now()
        if self._left() < LAST:
            return True
        ends = now + timedelta(seconds=min(self._plan.life, self._left()))
        found = self._found()
        if found is not None and self._silence is not None:
            ended_early = found.state == "expired" and found.ends < self._silence.ends - TOLERANCE
            if ended_early or found.ends > self._silence.ends + TOLERANCE:
                self._tell("by_hand", ends=moment(found.ends))
                return False
        if found is None or found.state == "expired":
            self._silence = self._client.create(self._matchers, ends, self._plan.comment, author=self._plan.author)
            self._tell("silenced", id=self._silence.id, ends=moment(self._silence.ends))
        elif ends > found.ends:
            self._silence = self._client.update(replace(found, ends=ends))
        self._in_doubt = False
        return True

    def _found(self) -> Silence | None:
        """The silence as the server has it; None where it has none."""
        if self._silence is not None:
            try:
                return self._client.silence(self._silence.id)
            except ServerError as error:
                if error.status == 404:  # it has lost what it knew
                    return None
                raise
        if self._in_doubt:
            ours = self._ours()
            self._silence = ours[-1] if ours else None
            if self._silence is not None:
                self._tell("silenced", id=self._silence.id, ends=moment(self._silence.ends))
        return self._silence

    def _ours(self) -> list[Silence]:
        """What goes by this window's comment, which no other has."""
        return [
            each
            for each in self._client.silences()
            if each.comment == self._plan.comment and each.author == self._plan.author and each.state != "expired"
        ]

    def _end(self) -> None:
        until = time.monotonic() + ENDING
        pause = 0.5
        while self._silence is not None or self._in_doubt:
            try:
                silences = self._ours() if self._in_doubt or self._silence is None else [self._silence]
                for each in silences:
                    self._client.expire(each.id)
            except ServerError as error:
                if time.monotonic() > until:
                    self._tell("left", why=str(error))
                    return
                time.sleep(pause)
                pause = min(10.0, 2 * pause)
            else:
                self._tell("ended")
                return


class Parent:
    """The process that planned the window, seen through standard input and the process table."""

    def __init__(self, pid: int, rest: bytes) -> None:
        self._pid = pid
        self._rest = rest

    def over(self, seconds: float) -> bool:
        """Wait; whether the window has been ended. A copy of the pipe's other end, in a forked child, keeps nothing alive."""
        until = time.monotonic() + seconds
        while True:
            if self._rest or os.getppid() != self._pid:
                return True
            left = until - time.monotonic()
            if select.select([0], [], [], max(0.0, min(LOOK, left)))[0]:
                return True
            if left <= LOOK:
                return False


def _line() -> tuple[bytes, bytes]:
    """The first line of standard input, and what came with it; unbuffered, so that what follows can be waited for."""
    read = b""
    while b"\n" not in read:
        part = os.read(0, 65536)
        if not part:
            raise SystemExit(0)
        read += part
    line, _, rest = read.partition(b"\n")
    return line, rest


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which says to the training what it says to us by ending

    def tell(event: Event, **more: Any) -> None:
        with suppress(OSError):  # nobody listens any more
            print(json.dumps({"event": event, **more}), flush=True)

    line, rest = _line()
    plan = Plan.of_line(line)
    try:
        with Alertmanager.of(plan.urls, timeout=TIMEOUT, attempts=2) as client:
            Keeper(plan, client, Parent(plan.parent, rest).over, tell).run()
    except ResmonError as error:
        tell("failed", why=str(error), final=True)


if __name__ == "__main__":
    main()
