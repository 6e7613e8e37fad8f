"""Whether a name and a password are known, at a price that whoever guesses cannot make the machine that trains pay.

bcrypt is slow on purpose, so what was found is remembered: of credentials that were right and of some that were wrong, by a keyed
hash, never in clear. What is not remembered is looked at one at a time, in one thread; after a wrong guess that thread rests for
some times as long as it worked, so that all guessers together never take more than a fifth of one core. Few may wait for it; more
are told to come again. Whoever is remembered does not wait: a Prometheus that has scraped once is never kept out by guessers.

A name that is not there costs as much time as one that is.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import bcrypt

Verdict = Literal["known", "unknown", "busy"]

REMEMBERED = 100  # of the right, and of the wrong
LONGEST_WAIT = 5.0  # seconds; who would have to wait longer is told to come again
REST = 4.0  # times as long as a wrong guess took
LONGEST = 72  # bytes of a password that bcrypt looks at; it is defined without those that follow


class Passwords:
    """Looks after the users of one agent. To be used from one event loop."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._pace = 0.5  # seconds for one, the rest included
        self._worker = ThreadPoolExecutor(1, "passwords")

    async def verdict(self, users: Mapping[str, str], name: str, password: bytes) -> Verdict:
        """Whether `users` (name -> bcrypt hash) has that name with that password; busy where too many wait to be told."""
        known = users.get(name)
        hashed = _nobody(users) if known is None else known
        key = self._key(name, hashed, password)
        if (found := self._remembered(key)) is not None:
            return found
        if self._waiting * self._pace > LONGEST_WAIT:
            return "busy"
        self._waiting += 1
        try:
            async with self._turn:
                if (found := self._remembered(key)) is not None:  # another request with the same has been here
                    return found
                started = time.perf_counter()
                matches = await asyncio.get_running_loop().run_in_executor(self._worker, _matches, password, hashed)
                took = time.perf_counter() - started
                is_known = matches and known is not None
                _remember(self._right if is_known else self._wrong, key)
                if is_known:
                    return "known"
                self._pace = (1 + REST) * took
                # Within the turn: the next one waits as well.
                await asyncio.sleep(REST * took)
                return "unknown"
        finally:
            self._waiting -= 1

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _key(self, name: str, hashed: str, password: bytes) -> bytes:
        message = b"\0".join(part.hex().encode() for part in (name.encode("utf-8", "surrogatepass"), hashed.encode(), password))
        return hmac.digest(self._salt, message, hashlib.sha256)

    def _remembered(self, key: bytes) -> Verdict | None:
        for found, verdict in ((self._right, "known"), (self._wrong, "unknown")):
            if key in found:
                found.move_to_end(key)
                return verdict  # type: ignore[return-value]
        return None


def _remember(found: OrderedDict[bytes, None], key: bytes) -> None:
    found[key] = None
    while len(found) > REMEMBERED:
        found.popitem(last=False)


def _matches(password: bytes, hashed: str) -> bool:
    try:
        return bcrypt.checkpw(password[:LONGEST], hashed.encode())
    except ValueError:  # a password that bcrypt does not take
        return False


def _nobody(users: Mapping[str, str]) -> str:
    """A hash that no password has, as dear as the dearest that there is."""
    cost = max((hashed.split("$")[2] for hashed in users.values()), default="10")
    return f"$2b${cost}${'.' * 53}"
