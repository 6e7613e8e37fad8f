"""Answers that many ask for at once: each is made once, for all of them, and given again as long as it is true."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from resmon.page.answers import Answer

MOST = 32  # answers

Found = TypeVar("Found", Answer, Answer | None)  # None where there is nothing under a key


class Shared:
    """To be used in one event loop."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, asyncio.Future[Any]] = OrderedDict()

    async def of(self, key: Hashable, make: Callable[[], Awaitable[Found]]) -> Found:
        """The answer under a key: the one that is being made, or was and is still true, or else a new one."""
        known = self._made.get(key)
        if known is None or (known.done() and not _is_true(known)):
            known = self._made[key] = asyncio.ensure_future(make())
            self._forget()
        answer: Found = await asyncio.shield(known)
        return answer

    def _forget(self) -> None:
        """What is true no more; then the oldest."""
        for key in [key for key, made in self._made.items() if made.done() and not _is_true(made)]:
            del self._made[key]
        while len(self._made) > MOST:
            self._made.popitem(last=False)


def _is_true(made: asyncio.Future[Any]) -> bool:
    if made.cancelled() or made.exception() is not None:
        return False
    answer = made.result()
    return isinstance(answer, Answer) and time.monotonic() < answer.until
