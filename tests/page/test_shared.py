"""Answers that many ask for at once: made once, given to all who asked for just that, and never when they are true no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from resmon.page import shared as shared_
from resmon.page.answers import Answer
from resmon.page.shared import Shared

FOR_LONG, NO_MORE = float("inf"), float("-inf")


class Maker:
    """Makes answers, each another one, as long as it is not stopped."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.made = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    def of(self, what: str) -> Callable[[], Awaitable[Answer | None]]:
        async def make() -> Answer | None:
            self.made += 1
            made = Answer(f"{what} {self.made}", what.encode(), self.until)
            await self.may_go_on.wait()
            return made

        return make


def run(what: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        await what()

    asyncio.run(within())


def test_those_who_ask_at_once_are_told_the_same_and_nobody_what_another_asked_for() -> None:
    async def ask() -> None:
        shared, maker = Shared(), Maker(NO_MORE)
        maker.may_go_on.clear()
        asked = [asyncio.ensure_future(shared.of(key, maker.of(key))) for _ in range(25) for key in ("one", "two")]
        await asyncio.sleep(0)
        asked[0].cancel()  # who asked first goes, and the others are told all the same
        await asyncio.sleep(0)
        maker.may_go_on.set()
        answers = await asyncio.gather(*asked[1:])
        assert maker.made == 2
        assert {answer.body for answer in answers[::2] if answer is not None} == {b"two"}
        assert {answer.body for answer in answers[1::2] if answer is not None} == {b"one"}
        assert len({id(answer) for answer in answers}) == 2

    run(ask)


@pytest.mark.parametrize(("until", "made"), [(FOR_LONG, 1), (NO_MORE, 3)])
def test_it_is_given_again_only_while_it_is_true(until: float, made: int) -> None:
    async def ask() -> None:
        shared, maker = Shared(), Maker(until)
        for _ in range(3):
            await shared.of("one", maker.of("one"))
        assert maker.made == made

    run(ask)


def test_what_failed_or_is_not_there_is_asked_for_anew() -> None:
    async def ask() -> None:
        shared = Shared()

        async def fail() -> Answer | None:
            raise OSError("the disk is gone")

        async def none() -> Answer | None:
            return None

        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                await shared.of("one", fail)
        assert await shared.of("one", none) is None
        answer = await shared.of("one", Maker(FOR_LONG).of("one"))
        assert answer is not None and answer.body == b"one"

    run(ask)


def test_few_are_kept() -> None:
    async def ask() -> None:
        shared = Shared()
        old = time.monotonic() + 0.05
        for i in range(5):
            await shared.of(("old", i), Maker(old).of("old"))
        for i in range(1000):
            await shared.of(i, Maker(FOR_LONG).of("one"))
        assert len(shared._made) == shared_.MOST
        await asyncio.sleep(max(0.0, old - time.monotonic()))
        assert not any(isinstance(key, tuple) for key in shared._made)

    run(ask)
