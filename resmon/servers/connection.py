"""Servers that are asked over HTTP, Alertmanager and Prometheus: where they are, as whom they are asked, how long one waits.

A request that can be repeated without harm is repeated, a few times and with growing pauses, where the server could not be reached,
did not answer in time or says that it is its own fault. One that cannot is repeated only where it certainly was not sent; what else
went wrong with it is marked as uncertain. Where a server has several addresses (a cluster) they are asked in turn. An answer has an
end: it is read up to a size and a time. What an error says holds what the server said and what to do next, and never a password.

Credentials stand in the environment only: in no file that is committed, and on no command line that others can list.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from resmon import __version__
from resmon.errors import ConfigurationError, ServerError
from resmon.quantities import printable

if TYPE_CHECKING:
    import ssl

    import httpx

Service = Literal["alertmanager", "prometheus"]
NAMES: Mapping[Service, str] = {"alertmanager": "Alertmanager", "prometheus": "Prometheus"}

AGENT = f"resmon/{__version__}"
TIMEOUT = 10.0  # seconds for one answer
ATTEMPTS = 4
PAUSE = 0.25  # seconds before the first repetition; each further one waits twice as long
LONGEST_PAUSE = 5.0  # also where a server asks for more
FARTHEST = 20 * 365 * 86400.0  # seconds between two clocks; a date that is farther away is none
LARGEST = 64 << 20  # bytes of an answer
LONGEST = 500  # characters of what a server said

Params = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Access:
    """How a server is reached. `urls` are addresses of one server or of the members of its cluster."""

    service: Service
    urls: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca: str = ""
    certificate: str = ""
    key: str = ""

    @classmethod
    def of(cls, service: Service, urls: Sequence[str]) -> Access:
        """With the credentials of the environment. Raises ConfigurationError where those contradict each other."""
        prefix = f"RESMON_{service.upper()}_"
        names = ("user", "password", "token", "ca", "certificate", "key")
        given = {name: os.environ.get(f"{prefix}{name.upper()}", "") for name in names}
        nits = []
        if given["token"] and given["user"]:
            nits.append(f"{prefix}TOKEN and {prefix}USER are two ways to say who asks; unset one of the two")
        if given["password"] and not given["user"]:
            nits.append(f"{prefix}PASSWORD has no {prefix}USER beside it")
        if given["key"] and not given["certificate"]:
            nits.append(f"{prefix}KEY has no {prefix}CERTIFICATE beside it")
        nits += [
            f"{prefix}{name.upper()}: there is no file {printable(given[name])}"
            for name in ("ca", "certificate", "key")
            if given[name] and not Path(given[name]).is_file()
        ]
        nits += [
            f"{prefix}{name.upper()} holds what cannot be sent, such as the end of a line; write it without"
            for name in ("user", "password", "token")
            if not given[name].isprintable()
        ]
        if nits:
            raise ConfigurationError(f"{NAMES[service]} cannot be asked: {'; '.join(nits)}.")
        return cls(service, tuple(url.rstrip("/") for url in urls), **given)


@dataclass(frozen=True, slots=True)
class Clock:
    """What the server's clock shows, as far as a date in whole seconds tells. `ahead` is 0 where both may show the same."""

    at_least: datetime  # what it showed at the latest when it answered; without a date, what ours shows
    read: float  # our monotonic clock at that moment
    ahead: float = 0.0  # seconds that it is ahead of ours at the least; negative where it is behind

    def now(self) -> datetime:
        """What it shows now: at the most a second less than it really does."""
        return datetime.fromtimestamp(self.at_least.timestamp() + time.monotonic() - self.read, UTC)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. `content` is its JSON, None where it said nothing."""

    url: str  # the member that answered
    content: Any
    clock: Clock


class Connection:
    """Requests to one server, with bounded time. Closed by `close`, or by leaving the `with` block."""

    def __init__(
        self,
        access: Access,
        *,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not access.urls:
            raise ConfigurationError(f"no {NAMES[access.service]} is named. {_named_by(access.service)}")
        self.access = access
        self.name = NAMES[access.service]
        self._timeout = timeout
        self._attempts = attempts
        self._sleep = sleep
        self._first = 0  # the member that answered last
        self._client: httpx.Client | None = None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def ask(
        self, method: str, path: str, *, params: Params = (), body: Any = None, repeatable: bool = True, member: str | None = None
    ) -> Answer:
        """The answer of the first member that gives one; only of `member` where that is named.

        Raises ServerError where none does. It is `uncertain` where the request may have been carried out all the same.
        """
        members = [self.access.urls.index(member)] if member is not None else self._in_turn()
        for attempt in range(self._attempts):
            for index in members:
                try:
                    answer = self._once(self.access.urls[index], method, path, params, body)
                except ServerError as error:
                    error.uncertain &= not repeatable  # done twice it comes to the same
                    if not error.passing or error.uncertain:
                        raise
                    failed = error
                else:
                    self._first = index
                    return answer
            if attempt + 1 < self._attempts:
                pause = PAUSE * 2**attempt * random.uniform(0.5, 1.0)
                self._sleep(min(LONGEST_PAUSE, max(pause, failed.wait)))
        raise failed

    def _in_turn(self) -> list[int]:
        count = len(self.access.urls)
        return [(self._first + i) % count for i in range(count)]

    def _once(self, url: str, method: str, path: str, params: Params, body: Any) -> Answer:
        import httpx

        client = self._connected()
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content is not None else {}
        began, sent = time.monotonic(), time.time()
        try:
            with client.stream(method, f"{url}{path}", params=list(params), content=content, headers=headers) as response:
                text = self._body(response, began, url)
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            advice = f"Is it running? {_named_by(self.access.service)}"
            raise self._passing(url, f"cannot be reached within {self._timeout:g} s", advice) from error
        except httpx.ConnectError as error:
            self._refused(url, error)
        except httpx.TimeoutException as error:
            said = f"did not answer within {self._timeout:g} s"
            raise self._passing(url, said, "Look whether it is overloaded, or ask again later.", uncertain=True) from error
        except httpx.TransportError as error:
            if "SSL" in str(error):  # a server says so late that it wants a client's certificate
                self._refused(url, error)
            said = f"broke the connection off ({_short(str(error)) or type(error).__name__})"
            raise self._passing(url, said, "Look whether it is being restarted.", uncertain=True) from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            said = f"cannot be asked ({_short(str(error))})"
            raise ServerError(f"{self.name} at {url} {said}. {_named_by(self.access.service)}") from error
        clock = _clock(response, sent, began)
        if response.status_code // 100 != 2:
            self._complain(url, response, text)
        return Answer(url, self._parsed(url, response, text), clock)

    def _connected(self) -> httpx.Client:
        if self._client is None:
            import httpx

            access = self.access
            auth = httpx.BasicAuth(access.user.encode(), access.password.encode()) if access.user else None
            headers = {"User-Agent": AGENT, "Accept": "application/json"}
            if access.token:
                headers["Authorization"] = f"Bearer {access.token}"
            self._client = httpx.Client(auth=auth, headers=headers, timeout=self._timeout, verify=self._trust())
        return self._client

    def _trust(self) -> ssl.SSLContext:
        """Certificates are always verified: by the system's authorities, or by the file that is named."""
        import ssl

        access = self.access
        prefix = f"RESMON_{access.service.upper()}_"
        try:
            context = ssl.create_default_context(cafile=access.ca or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{prefix}CA: {access.ca} holds no certificates in PEM form ({error}).") from error
        if access.certificate:
            try:
                # Without a password for the key: one that is asked for on the terminal would wait there for ever.
                context.load_cert_chain(access.certificate, access.key or None, password="")
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    f"{prefix}CERTIFICATE and {prefix}KEY do not fit together, or are not in PEM form without a password ({error})."
                ) from error
        return context

    def _body(self, response: httpx.Response, began: float, url: str) -> bytes:
        parts, length = [], 0
        for part in response.iter_bytes():
            parts.append(part)
            length += len(part)
            if length > LARGEST:
                raise ServerError(f"{self.name} at {url} answered with more than {LARGEST >> 20} MiB. Ask for less of it.")
            if time.monotonic() - began > 2 * self._timeout:
                said = f"had not said all within {2 * self._timeout:g} s"
                raise self._passing(url, said, "Look whether it is overloaded, or ask for less.", uncertain=True)
        return b"".join(parts)

    def _refused(self, url: str, error: httpx.TransportError) -> NoReturn:
        text = str(error)
        prefix = f"RESMON_{self.access.service.upper()}_"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            raise ServerError(
                f"{self.name} at {url} shows a certificate that cannot be trusted ({_short(text)}). If it is yours, name the "
                f"file of the authority that signed it in {prefix}CA."
            ) from error
        if url.startswith("https:") and ("WRONG_VERSION_NUMBER" in text or "record layer" in text):
            raise ServerError(f"{self.name} at {url} does not speak TLS. Write http:// in place of https://.") from error
        if "SSL" in text or "TLS" in text:
            raise ServerError(
                f"{self.name} at {url} and this program cannot agree on a secure connection ({_short(text)}). If it asks for "
                f"a client's certificate, name its files in {prefix}CERTIFICATE and {prefix}KEY."
            ) from error
        advice = f"Is it running? {_named_by(self.access.service)}"
        raise self._passing(url, f"cannot be reached ({_short(text)})", advice) from error

    def _passing(self, url: str, said: str, advice: str, *, uncertain: bool = False) -> ServerError:
        return ServerError(f"{self.name} at {url} {said}. {advice}".rstrip(), uncertain=uncertain, passing=True)

    def _complain(self, url: str, response: httpx.Response, text: bytes) -> NoReturn:
        status, prefix = response.status_code, f"RESMON_{self.access.service.upper()}_"
        said = _said(text)
        quoted = f": {said}" if said else ""
        if status in (401, 403):
            who = "the name and password" if self.access.user else "the token" if self.access.token else "a request without a name"
            raise ServerError(
                f"{self.name} at {url} refused {who} (status {status}{quoted}). Set {prefix}USER and {prefix}PASSWORD, or "
                f"{prefix}TOKEN, in the environment.",
                status=status,
                said=said,
            )
        if "HTTP request to an HTTPS server" in said:
            raise ServerError(f"{self.name} at {url} speaks TLS. Write https:// in place of http://.", status=status, said=said)
        if status // 100 == 3:
            where = _short(response.headers.get("Location", "nowhere"))
            raise ServerError(
                f"{self.name} at {url} sends on to {where} (status {status}). Name the address that it has there, or log in to "
                "what stands before it with the credentials that it takes.",
                status=status,
            )
        if status == 404 and not said.startswith(("silence", "alert")):
            raise ServerError(
                f"what answers at {url} has no {response.request.url.path} (status 404{quoted}). {_named_by(self.access.service)}",
                status=status,
                said=said,
            )
        passing = status in (429, 500, 502, 503, 504)
        wait = response.headers.get("Retry-After", "")
        raise ServerError(
            f"{self.name} at {url} answered with status {status}{quoted}.",
            status=status,
            said=said,
            uncertain=status // 100 == 5,
            passing=passing,
            wait=float(wait) if wait.isascii() and wait.isdecimal() else 0.0,
        )

    def _parsed(self, url: str, response: httpx.Response, text: bytes) -> Any:
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            kind = _short(response.headers.get("Content-Type", "no type"))
            raise ServerError(
                f"what answers at {url} is no {self.name}: it sent {kind} that is no JSON. {_named_by(self.access.service)}",
                status=response.status_code,
            ) from error


def _named_by(service: Service) -> str:
    return f"Its address is named by --{service}, by RESMON_{service.upper()} or by {service} in resmon.toml."


def _clock(response: httpx.Response, sent: float, began: float) -> Clock:
    """The date of an answer was written between its request's leaving and its coming, and is cut to whole seconds."""
    came, read = time.time(), time.monotonic()
    try:
        date = parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return Clock(datetime.fromtimestamp(came, UTC), read)
    if abs(date - came) > FARTHEST:
        return Clock(datetime.fromtimestamp(came, UTC), read)
    took = read - began
    low, high = date - sent - took, date + 1 - sent
    return Clock(datetime.fromtimestamp(date, UTC), read, low if low > 0 else min(high, 0.0))


def _said(text: bytes) -> str:
    """What an error's body says, in one line: the text of a JSON string or of its message, else the beginning of what is plain."""
    plain = text[: 8 * LONGEST].decode("utf-8", "replace").strip()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return "" if plain.startswith("<") else _short(plain)
    if isinstance(content, dict):
        content = content.get("message") or content.get("error") or plain
    return _short(content if isinstance(content, str) else plain)


def _short(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


class Client:
    """What speaks with one kind of server over a connection. Closed by `close`, or by leaving the `with` block."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._clock: Clock | None = None

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def skew(self) -> float:
        """Seconds that the server's clock is ahead of ours at the least (negative: behind), by the newest answer."""
        return self._clock.ahead if self._clock is not None else 0.0
