"""The outbox, asked by several threads: a loop may train in one and log its validation in another."""

from __future__ import annotations

import threading
import time

from resmon.capture.loop.outbox import Outbox, Sink

THREADS, EACH = 4, 25


class OneAtATime:
    """A sink that is somewhere in the middle of a record for a moment, as one is that writes a file."""

    def __init__(self) -> None:
        self.inside = threading.Lock()
        self.taken: list[tuple[int, int]] = []
        self.met = 0

    def take(self, what: tuple[int, int]) -> None:
        if not self.inside.acquire(blocking=False):
            self.met += 1
            return
        time.sleep(0.0005)  # others run now
        self.taken.append(what)
        self.inside.release()


class Owner:
    def __init__(self) -> None:
        self.faults: list[Exception] = []

    def fault(self, error: Exception) -> None:
        self.faults.append(error)

    def cannot_write(self, error: OSError) -> None:
        self.faults.append(error)


def test_one_record_is_handed_on_at_a_time_and_each_once() -> None:
    owner, sink = Owner(), OneAtATime()
    outbox = Outbox(owner)
    outbox.open(sink)  # type: ignore[arg-type]

    def put(thread: int) -> None:
        for i in range(EACH):
            outbox.put(lambda to, what=(thread, i): to.take(what))  # type: ignore[attr-defined, misc]

    threads = [threading.Thread(target=put, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.met == 0 and owner.faults == []
    assert sorted(sink.taken) == [(thread, i) for thread in range(THREADS) for i in range(EACH)]
    for number in range(THREADS):
        assert [i for thread, i in sink.taken if thread == number] == list(range(EACH))


def test_what_is_handed_on_may_be_news_itself() -> None:
    owner, taken = Owner(), []
    outbox = Outbox(owner)
    outbox.open(object())  # type: ignore[arg-type]

    def hand_on(_: Sink) -> None:
        taken.append("first")
        outbox.put(lambda _: taken.append("second"))

    done = threading.Thread(target=lambda: outbox.put(hand_on), daemon=True)
    done.start()
    done.join(60)
    assert not done.is_alive() and taken == ["first", "second"] and owner.faults == []
