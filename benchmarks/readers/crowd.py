"""Readers of an agent, in a process of their own: `python -m benchmarks.readers.crowd URL READERS EACH FROM,TO ...`.

Each of READERS asks once every EACH seconds while one of the stretches lasts (of time.monotonic, in seconds): half of them as
Prometheus does, for /metrics, half as the page does, for what the page asks each second. All keep their connection. Prints one line
of JSON: how many answers of which kind, what went wrong, and how long answers took.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

Stretch = tuple[float, float]

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


class Reader:
    """One connection that asks for one path."""

    def __init__(self, address: tuple[str, int], path: str, heard: Heard) -> None:
        self._address, self._path, self._heard = address, path, heard
        self._name = path.partition("?")[0]
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def read(self, stretches: list[Stretch], each: float, after: float) -> None:
        for begin, end in stretches:
            await asyncio.sleep(begin + after - time.monotonic())
            while (asked := time.monotonic()) < end:
                try:
                    await asyncio.wait_for(self._ask(), PATIENCE)
                except (OSError, ValueError, EOFError, TimeoutError) as error:
                    self._heard.errors[f"{self._name}: {error!r}"] += 1
                    self._leave()
                else:
                    self._heard.seconds[self._name].append(time.monotonic() - asked)
                await asyncio.sleep(max(0.0, asked + each - time.monotonic()))
            self._leave()

    async def _ask(self) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=1 << 20)
        reader, writer = self._streams
        head = f"GET {self._path} HTTP/1.1\r\nHost: {self._address[0]}\r\nAccept: {ACCEPT}\r\nAccept-Encoding: gzip\r\n\r\n"
        writer.write(head.encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        left = length = int(headers["content-length"])
        while left:
            part = await reader.read(min(left, 1 << 20))
            if not part:
                raise EOFError(f"{left} of {length} bytes are missing")
            left -= len(part)
        self._heard.bytes += length
        self._heard.answers[f"{self._name} {status.split()[1]}"] += 1
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


async def crowd(url: str, readers: int, each: float, stretches: list[Stretch]) -> dict[str, object]:
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    asked = await paths(address)
    heard = Heard()
    await asyncio.gather(
        *(Reader(address, asked[i % len(asked)], heard).read(stretches, each, each * i / readers) for i in range(readers))
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "answers": dict(heard.answers),
        "errors": dict(heard.errors),
        "seconds": dict(heard.seconds),
        "bytes": heard.bytes,
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }


def main(url: str, readers: str, each: str, *stretches: str) -> None:
    times = [(float(begin), float(end)) for begin, end in (stretch.split(",") for stretch in stretches)]
    print(json.dumps(asyncio.run(crowd(url, int(readers), float(each), times))))


if __name__ == "__main__":
    main(*sys.argv[1:])
