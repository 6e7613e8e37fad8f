"""What stands before every page: who may come in, with what, and what each answer tells a browser.

    read only         nothing but GET and HEAD, and no request has a body
    sizes             of a request's path and headers
    names             an agent that listens on loopback answers to names of this machine only; else a page anywhere could have its
                      own name lead to 127.0.0.1 and read, in the user's browser, what the agent says (DNS rebinding)
    rate, password    as the web configuration has them (web_config.py)

Health and readiness are told without a password and beyond the rate: they say nothing of runs, and who restarts what does not
answer has none. An answer says what a browser may do with it: nothing, unless a page says otherwise for itself. A long one goes
out in pieces, so that of what a client does not take little is kept.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from resmon.access.connection import KEY, Connection
from resmon.access.pace import Pace
from resmon.access.passwords import Passwords
from resmon.access.refusals import Refusals
from resmon.access.web_config import Rate, WebConfig

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

METHODS = ("GET", "HEAD")
PROBES = ("/-/healthy", "/-/ready")

# A block's name of 500 characters takes 4,500 bytes in a path, and a run's up to 765 more.
LONGEST_PATH = 8 << 10  # with its query
LARGEST_HEAD = 16 << 10
CONNECTIONS = 256  # beyond it, 503; beyond what the listener takes (listener.py), nothing
MOST_HEADERS = 100
PIECE = 128 << 10

# What a browser is told of every answer. The policy is the strictest there is; a page that needs more says so itself.
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"deny"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class Names:
    """The names that a request may be for. Everyone is, where the agent listens beyond this machine and none are given."""

    given: frozenset[str] = frozenset()  # besides addresses, and localhost
    any: bool = False

    @classmethod
    def of(cls, given: Iterable[str], listen: str, is_loopback: bool) -> Names:
        """Those that are given, and the one by which the address to listen on is called."""
        names = frozenset(name.strip().rstrip(".").lower() for name in given)
        return cls(names | {_without_port(listen).lower()}, any=not names and not is_loopback)

    def have(self, host: str) -> bool:
        """Whether a Host header is right: a name that is known, or an address, which nobody's name server can give away."""
        if self.any:
            return True
        name = _without_port(host).rstrip(".").lower()
        if not name:
            return False
        if name in self.given or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
        return True


_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.~-]+)?)\]|([^\s:/?#\[\]@]+))(?::\d*)?", re.ASCII)


def _without_port(host: str) -> str:
    """The name or address of HOST:PORT; empty where it is none (RFC 9110, 7.2)."""
    match = _HOST.fullmatch(host)
    return "" if match is None else match[1] or match[2]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer to what is not let in."""

    status: int
    text: str
    reason: str = ""  # the kind of it, where it is worth noting
    headers: tuple[tuple[bytes, bytes], ...] = ()
    is_last: bool = False  # what else the client sends is not read

    async def send(self, send: Send) -> None:
        body = f"{self.text}\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *self.headers]
        if self.is_last:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass(slots=True)
class _Bucket:
    """Tokens, one for each request."""

    left: float = 0.0
    filled: float = 0.0  # monotonic
    rate: Rate | None = None

    def take(self, rate: Rate | None, now: float) -> bool:
        if rate is None:
            return True
        if rate != self.rate:
            self.rate, self.left, self.filled = rate, rate.burst, now
        self.left = min(rate.burst, self.left + (now - self.filled) / rate.interval)
        self.filled = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True)
class Door:
    """An application with this before it."""

    application: Application
    names: Names
    config: Callable[[], WebConfig]  # the newest
    pace: Pace
    passwords: Passwords = field(default_factory=Passwords)
    refusals: Refusals = field(default_factory=Refusals)
    _bucket: _Bucket = field(default_factory=_Bucket)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"nobody speaks {scope['type']} here")
        connection = scope.get("state", {}).get(KEY)
        if scope["path"] not in PROBES:
            await self.pace.turn()
            if connection is not None and connection.is_gone:
                return
        config = self.config()
        send = _Answer(send, config).send
        refusal = _crowded(connection) or self._unfit(scope) or await self._unknown(scope, config)
        if refusal is None:
            await self.application(scope, receive, send)
            return
        if refusal.reason:
            client = scope.get("client") or ("somebody", 0)
            self.refusals.note(refusal.reason, client[0])
        await refusal.send(send)

    def _unfit(self, scope: Scope) -> Refusal | None:
        """What is wrong with a request, whoever sends it."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_PATH:
            return Refusal(414, f"a path has at most {LONGEST_PATH:,} bytes here", is_last=True)
        if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > LARGEST_HEAD:
            return Refusal(431, f"at most {MOST_HEADERS} headers of {LARGEST_HEAD:,} bytes in all are read here", is_last=True)
        host = None
        for name, value in headers:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")):
                return Refusal(413, "a request has no body here: what the agent serves can only be read", is_last=True)
        if scope["method"] not in METHODS:
            allowed = ((b"allow", ", ".join(METHODS).encode()),)
            return Refusal(405, "what the agent serves can only be read: GET or HEAD", headers=allowed, is_last=True)
        # Whoever sends none is no browser, and browsers are what this is about.
        if host is not None and not self.names.have(host):
            return Refusal(
                421,
                "this agent does not answer to the name that the request is for. If it is one of yours (a proxy's, one in "
                "/etc/hosts), name it in the setting served_names (docs/security.md).",
                reason="a name that is not the agent's, in the Host header",
            )
        return None

    async def _unknown(self, scope: Scope, config: WebConfig) -> Refusal | None:
        """Whether it comes too fast, or from somebody who may not read."""
        if scope["path"] in PROBES:
            return None
        if not self._bucket.take(config.rate, time.monotonic()):
            again = ((b"retry-after", b"1"),)
            return Refusal(429, "too many requests", reason="the rate limit of the web configuration", headers=again)
        if not config.users:
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        challenge = ((b"www-authenticate", b'Basic realm="resmon", charset="UTF-8"'),)
        if given is None:
            return Refusal(401, "a name and a password are needed", headers=challenge)
        credentials = _credentials(given)
        if credentials is None:
            return Refusal(401, "a name and a password are needed, by basic authentication", headers=challenge)
        verdict = await self.passwords.verdict(config.users, *credentials)
        if verdict == "busy":
            again = ((b"retry-after", b"2"),)
            return Refusal(429, "too many wrong passwords at the moment", reason="too many passwords to look at", headers=again)
        if verdict == "unknown":
            return Refusal(401, "the name or the password is wrong", reason="a wrong name or password", headers=challenge)
        return None


def _crowded(connection: Connection | None) -> Refusal | None:
    if connection is None or connection.neighbours <= CONNECTIONS:
        return None
    return Refusal(503, f"more than {CONNECTIONS} connections are open", headers=((b"retry-after", b"2"),), is_last=True)


def _credentials(header: bytes) -> tuple[str, bytes] | None:
    """The name and the password of RFC 7617; None where a header holds none."""
    scheme, _, encoded = header.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (name.decode(), password) if colon else None
    except (binascii.Error, UnicodeDecodeError):
        return None


class _Answer:
    """Sends an answer on, with what a browser is to be told and in pieces."""

    def __init__(self, send: Send, config: WebConfig) -> None:
        self._send = send
        self._config = config

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = self._headers(list(message.get("headers", ())))
            await self._send(message)
            return
        body = message.get("body", b"")
        if len(body) <= PIECE:
            await self._send(message)
            return
        more, view = message.get("more_body", False), memoryview(body)
        for start in range(0, len(body), PIECE):
            is_last = start + PIECE >= len(body)
            await self._send({"type": "http.response.body", "body": view[start : start + PIECE], "more_body": more or not is_last})

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        own = {name.lower() for name, _ in headers}
        headers += (header for header in HEADERS if header[0] not in own)
        if self._config.headers:
            given = {name.lower().encode(): value.encode() for name, value in self._config.headers.items()}
            headers = [header for header in headers if header[0].lower() not in given] + list(given.items())
        return headers
