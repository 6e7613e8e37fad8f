"""Readers of an agent, in a process of their own: `python -m benchmarks.readers.crowd URL READERS FROM,TO,EACH,GONE ...`.

Each of READERS asks once every EACH seconds while one of the stretches lasts (FROM and TO are of time.monotonic), or, where EACH is
0, again as soon as it is answered: half of them as Prometheus does, for /metrics, half as the page does, for what the page asks
again and again. All keep their connection. At the moment GONE, which may be inf, they hang up, answered or not. Prints one line of
JSON, for each EACH: how many answers of which kind, how many were not waited for, what went wrong, and how long answers took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

Stretch = tuple[float, float, float, float]  # from, to, each, gone

# What Prometheus 2.42 sends.
ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PATIENCE = 10.0  # seconds, a scrape's usual timeout


@dataclass
class Heard:
    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bytes: int = 0
    left: int = 0  # requests that were not waited for


class Reader:
    """One connection that asks for one path."""

    def __init__(self, address: tuple[str, int], path: str, heard: Mapping[float, Heard]) -> None:
        self._address, self._path, self._heard = address, path, heard
        self._name = path.partition("?")[0]
        self._tag = ""  # of what it was told last, which a page says when it asks again
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def read(self, stretches: list[Stretch], place: float) -> None:
        """`place` is this reader's among the others, from 0 to 1, so that they do not all ask in the same moment."""
        for begin, end, each, gone in stretches:
            heard = self._heard[each]
            await asyncio.sleep(begin + place * each - time.monotonic())
            while (asked := time.monotonic()) < end:
                try:
                    await asyncio.wait_for(self._ask(heard), min(PATIENCE, gone - asked))
                except (OSError, ValueError, EOFError, TimeoutError) as error:
                    if isinstance(error, TimeoutError) and time.monotonic() >= gone:
                        heard.left += 1
                    else:
                        heard.errors[f"{self._name}: {error!r}"] += 1
                    self._leave()
                else:
                    heard.seconds[self._name].append(time.monotonic() - asked)
                await asyncio.sleep(max(0.0, asked + each - time.monotonic()))
            if time.monotonic() >= gone:
                self._leave()
        self._leave()

    async def _ask(self, heard: Heard) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=1 << 20)
        reader, writer = self._streams
        head = f"GET {self._path} HTTP/1.1\r\nHost: {self._address[0]}\r\nAccept: {ACCEPT}\r\nAccept-Encoding: gzip\r\n"
        head += f"If-None-Match: {self._tag}\r\n\r\n" if self._tag else "\r\n"
        writer.write(head.encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        left = length = int(headers.get("content-length", 0))
        self._tag = headers.get("etag", "")
        while left:
            part = await reader.read(min(left, 1 << 20))
            if not part:
                raise EOFError(f"{left} of {length} bytes are missing")
            left -= len(part)
        heard.bytes += length
        heard.answers[f"{self._name} {status.split()[1]}"] += 1
        if headers.get("connection") == "close":
            self._leave()

    def _leave(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def paths(address: tuple[str, int]) -> list[str]:
    """What is read: the metrics, and what a page that shows a run asks for again and again."""
    runs = json.loads(await _once(address, "/api/runs") or b"null")
    found = _first(runs, "id")
    return ["/metrics", "/" if found is None else f"/api/run?id={quote(found, safe='')}"]


async def _once(address: tuple[str, int], path: str) -> bytes:
    """The answer's content; nothing where there is no such path."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address[0]}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return body if head.split()[1] == b"200" else b""


def _first(content: object, key: str) -> str | None:
    """The first text under a key, however deep."""
    if isinstance(content, dict):
        if isinstance(content.get(key), str):
            return str(content[key])
        content = list(content.values())
    if isinstance(content, list):
        return next((found for each in content if (found := _first(each, key)) is not None), None)
    return None


async def crowd(url: str, readers: int, stretches: list[Stretch]) -> dict[float, dict[str, object]]:
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    asked = await paths(address)
    heard = {each: Heard() for _, _, each, _ in stretches}
    await asyncio.gather(*(Reader(address, asked[i % len(asked)], heard).read(stretches, i / readers) for i in range(readers)))
    return {
        each: {
            "answers": dict(of.answers),
            "errors": dict(of.errors),
            "seconds": dict(of.seconds),
            "bytes": of.bytes,
            "left": of.left,
        }
        for each, of in heard.items()
    }


def main(url: str, readers: str, *stretches: str) -> None:
    times = [(float(begin), float(end), float(each), float(gone)) for begin, end, each, gone in (s.split(",") for s in stretches)]
    print(json.dumps(asyncio.run(crowd(url, int(readers), times))))


if __name__ == "__main__":
    main(*sys.argv[1:])
