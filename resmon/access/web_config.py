"""Who may read what the agent serves, and how it is sent: the web configuration file that Prometheus and its exporters share.

    tls_server_config: {cert_file: agent.crt, key_file: agent.key}
    basic_auth_users:
      prometheus: $2b$10$...   # bcrypt

The form is that of prometheus/exporter-toolkit's docs/web-configuration.md, so that one file can serve all exporters of a machine.
Everything that is wrong with a file is named at once, by its line. What cannot be kept as it is written (a client's certificate
that nobody verifies, a TLS version that is broken) is refused, never passed over; the one thing that cannot be had and costs no
safety, HTTP/2, is told. Paths are relative to the file.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resmon.access.tls import CIPHERS, CIPHERS_13, CLIENTS, CURVES, VERSIONS, Pem, Tls, UnusableError, signature, written
from resmon.errors import ConfigurationError, nearest
from resmon.settings.document import Document, Keys, Nit, read, refused

TLS, HTTP, USERS, RATE = "tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"

_TLS_KEYS = frozenset(
    "cert key client_ca cert_file key_file client_auth_type client_ca_file client_allowed_sans min_version max_version"
    " cipher_suites prefer_server_cipher_suites curve_preferences".split()
)
_HTTP_KEYS = frozenset({"http2", "headers"})
_RATE_KEYS = frozenset({"interval", "burst"})
_SECTIONS: Mapping[str, frozenset[str]] = {TLS: _TLS_KEYS, HTTP: _HTTP_KEYS, USERS: frozenset(), RATE: _RATE_KEYS}

# The headers that may be set, and their right values where only some are: exporter-toolkit's web/handler.go, extraHTTPHeaders.
HEADERS: Mapping[str, tuple[str, ...]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}

# Of a bcrypt hash, `$2b$10$` and what follows. 2x marks hashes of a broken implementation.
_BCRYPT = re.compile(r"\$2[aby]?\$(\d\d)\$[./A-Za-z0-9]{53}")
# Each step doubles the time of one attempt, for the guesser and for the machine that trains: at 10 it is some 50 ms, at 15 over a
# second and a half, and a scrape has 10 s.
CHEAPEST, DEAREST = 4, 15

# As Go's time.ParseDuration has them.
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_UNVERIFIED = ("RequestClientCert", "RequireClientCert", "RequireAnyClientCert")


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests are answered: one each `interval` seconds, and so many at once after a pause."""

    interval: float
    burst: int


@dataclass(frozen=True, slots=True)
class WebConfig:
    """What a file says, ready to be used. Without one, anybody who can connect may read, and nothing is encrypted."""

    path: Path | None = None
    tls: Tls | None = None
    context: ssl.SSLContext | None = None  # made of `tls`
    users: Mapping[str, str] = field(default_factory=dict, repr=False)  # name -> bcrypt hash
    headers: Mapping[str, str] = field(default_factory=dict)
    rate: Rate | None = None
    notes: tuple[str, ...] = ()  # what is not had as it is written, though it does no harm
    signatures: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)  # of all files, from before they were read


def load(path: Path) -> WebConfig:
    """What the file says. Raises ConfigurationError that names all that is wrong with it."""
    path = path.absolute()
    before = signature(path)
    documents = read(path)
    if len(documents) > 1:
        raise ConfigurationError(f"{path} holds {len(documents)} documents; a web configuration is one.")
    return _Reading(documents[0], path.parent).config(path, before)


class _Reading:
    """From a document to what it means."""

    def __init__(self, document: Document, folder: Path) -> None:
        self._document = document
        self._folder = folder
        self._nits: list[Nit] = list(document.nits)
        self._notes: list[str] = []

    def config(self, path: Path, before: tuple[int, ...]) -> WebConfig:
        sections = self._table((), self._document.content, _SECTIONS)
        tls = self._tls(self._table((TLS,), sections.get(TLS), _TLS_KEYS))
        http = self._table((HTTP,), sections.get(HTTP), _HTTP_KEYS)
        if self._truth((HTTP, "http2"), http.get("http2")):
            self._notes.append(f"{self._document.path}: http2 is true, but HTTP/1.1 is all that is spoken here")
        headers = self._headers(self._table((HTTP, "headers"), http.get("headers"), HEADERS))
        users = self._users(self._table((USERS,), sections.get(USERS)))
        rate = self._rate(self._table((RATE,), sections.get(RATE), _RATE_KEYS))
        context, signatures = None, {path: before, **{file: signature(file) for file in (tls.files if tls is not None else ())}}
        if tls is not None and not self._nits:
            try:
                context = tls.context()
            except UnusableError as error:
                given = [key for key in (error.part, f"{error.part}_file") if key in sections[TLS]]
                self._wrong((TLS, *given[:1]), str(error))
        if self._nits:
            raise refused("the web configuration", self._nits)
        return WebConfig(path, tls, context, users, headers, rate, tuple(self._notes), signatures)

    def _wrong(self, keys: Keys, message: str) -> None:
        self._nits.append(self._document.nit(keys, message))

    def _table(self, keys: Keys, content: Any, known: Iterable[str] | None = None) -> Mapping[str, Any]:
        """The keys of a table and their values, without those that are not `known`; empty where nothing stands there."""
        if content is None:
            return {}
        if not isinstance(content, dict):
            self._wrong(keys, "must hold keys with values")
            return {}
        known = None if known is None else set(known)
        for key in content:
            if known is not None and key not in known:
                self._wrong((*keys, key), f"there is no such key{nearest(key, known)}")
        return {key: value for key, value in content.items() if known is None or key in known}

    def _text(self, keys: Keys, value: Any) -> str:
        """A text; "" where nothing stands there."""
        if value is None or isinstance(value, str):
            return value or ""
        self._wrong(keys, "must be a text")
        return ""

    def _texts(self, keys: Keys, value: Any) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self._wrong(keys, "must be a list of texts")
            return []
        return value

    def _truth(self, keys: Keys, value: Any, default: bool = False) -> bool:
        if value is None:
            return default
        if not isinstance(value, str) or value.lower() not in _TRUTHS:
            self._wrong(keys, f"must be true or false (got {value!r:.40})")
            return default
        return _TRUTHS[value.lower()]

    def _pem(self, name: str, section: Mapping[str, Any]) -> Pem | None:
        text, path = (self._text((TLS, key), section.get(key)) for key in (name, f"{name}_file"))
        if text and path:
            self._wrong((TLS, f"{name}_file"), f"stands beside {name}, which says the same; leave one out")
        if "\0" in path:
            self._wrong((TLS, f"{name}_file"), "must be a path, which holds no null character")
            return None
        if path:
            return Pem(self._folder / path)
        return Pem(text=text) if text else None

    def _tls(self, section: Mapping[str, Any]) -> Tls | None:
        if not any(value is not None for value in section.values()):
            return None
        pems = {name: self._pem(name, section) for name in ("cert", "key", "client_ca")}
        for name in ("cert", "key"):
            if pems[name] is None and not {(TLS, name), (TLS, f"{name}_file")} & {nit.keys for nit in self._nits}:
                self._wrong((TLS,), f"lacks {name}_file (or {name}): without it nothing can be encrypted")
        clients = self._clients(section, pems["client_ca"])
        minimum, maximum = self._version("min_version", "TLS12", section), self._version("max_version", "TLS13", section)
        if minimum > maximum:
            self._wrong((TLS, "min_version"), "is above max_version")
        suites = self._texts((TLS, "cipher_suites"), section.get("cipher_suites"))
        for i, suite in enumerate(suites):
            if suite not in CIPHERS and suite not in CIPHERS_13:
                why = "is not offered: it has no forward secrecy" if suite.startswith("TLS_RSA_") else "is no cipher suite of Go's"
                self._wrong((TLS, "cipher_suites", i), f"{suite!r:.60} {why}{nearest(suite, CIPHERS)}")
        ciphers = tuple(CIPHERS[suite] for suite in suites if suite in CIPHERS)
        if suites and not ciphers:  # of TLS 1.3 alone
            minimum = ssl.TLSVersion.TLSv1_3
            if maximum < minimum and not self._nits:
                self._wrong((TLS, "cipher_suites"), "holds none of TLS 1.2, which max_version asks for")
        chooses = self._truth((TLS, "prefer_server_cipher_suites"), section.get("prefer_server_cipher_suites"), default=True)
        curve = self._curve(self._texts((TLS, "curve_preferences"), section.get("curve_preferences")))
        names = self._texts((TLS, "client_allowed_sans"), section.get("client_allowed_sans"))
        if names and clients is not ssl.CERT_REQUIRED:
            self._wrong((TLS, "client_allowed_sans"), "needs client_auth_type: RequireAndVerifyClientCert beside it")
        if pems["cert"] is None or pems["key"] is None:
            return None
        allowed = frozenset(map(written, names))
        ca = None if clients is ssl.CERT_NONE else pems["client_ca"]
        return Tls(pems["cert"], pems["key"], clients, ca, allowed, minimum, maximum, ciphers, chooses, curve)

    def _clients(self, section: Mapping[str, Any], ca: Pem | None) -> ssl.VerifyMode:
        keys: Keys = (TLS, "client_auth_type")
        name = self._text(keys, section.get("client_auth_type")) or "NoClientCert"
        if name in _UNVERIFIED:
            self._wrong(keys, f"{name} lets in whoever shows any certificate at all; RequireAndVerifyClientCert verifies it")
        elif name not in CLIENTS:
            self._wrong(keys, f"{name!r:.60} is not known{nearest(name, CLIENTS)}")
        clients = CLIENTS.get(name, ssl.CERT_NONE)
        if clients is not ssl.CERT_NONE and ca is None:
            # Go would take the system's authorities, which vouch for the whole world.
            self._wrong(keys, f"{name} needs client_ca_file: the authority that signs the certificates of those who may read")
        if ca is not None and name == "NoClientCert":
            key = "client_ca_file" if ca.path is not None else "client_ca"
            self._wrong((TLS, key), "is of no use without client_auth_type: RequireAndVerifyClientCert")
        return clients

    def _version(self, key: str, default: str, section: Mapping[str, Any]) -> ssl.TLSVersion:
        name = self._text((TLS, key), section.get(key)) or default
        if name not in VERSIONS:
            old = "; versions before 1.2 are broken, RFC 8996" if name in ("TLS10", "TLS11") else ""
            self._wrong((TLS, key), f"must be {' or '.join(VERSIONS)} (got {name!r:.40}){old}")
        return VERSIONS.get(name, VERSIONS[default])

    def _curve(self, names: list[str]) -> str:
        keys: Keys = (TLS, "curve_preferences")
        for i, name in enumerate(names):
            if name not in CURVES:
                self._wrong((*keys, i), f"{name!r:.40} is not known{nearest(name, CURVES)}")
        if len(names) > 1:
            self._wrong(
                keys, "can hold one here, as Python can set no order; name the one, or leave all out (X25519 goes first then)"
            )
        return CURVES.get(names[0], "") if names else ""

    def _headers(self, section: Mapping[str, Any]) -> dict[str, str]:
        found = {}
        for name, value in section.items():
            keys: Keys = (HTTP, "headers", name)
            text = self._text(keys, value)
            if not text:
                continue  # ours stands
            if HEADERS[name] and text not in HEADERS[name]:
                self._wrong(keys, f"must be {' or '.join(HEADERS[name])} (got {text!r:.60})")
            elif not (text.isascii() and text.isprintable()):
                self._wrong(keys, "must be one line of plain characters")
            found[name] = text
        return found

    def _users(self, section: Mapping[str, Any]) -> dict[str, str]:
        users = {}
        for name, value in section.items():
            keys: Keys = (USERS, name)
            match = _BCRYPT.fullmatch(self._text(keys, value))
            if ":" in name:
                self._wrong(keys, "a name holds no colon, which ends it in a request")
            if match is None:
                # What stands there may be the password itself: it is not repeated.
                self._wrong(keys, "must be a bcrypt hash, such as htpasswd -nBC 10 NAME prints after the colon (docs/security.md)")
            elif not CHEAPEST <= int(match[1]) <= DEAREST:
                self._wrong(
                    keys,
                    f"has a cost of {int(match[1])}; take one from 10 to {DEAREST}: whoever guesses makes the machine that trains "
                    "do that work",
                )
            else:
                users[name] = match[0]
        return users

    def _rate(self, section: Mapping[str, Any]) -> Rate | None:
        text = self._text((RATE, "interval"), section.get("interval"))
        interval = _duration(text)
        if interval is None:
            self._wrong((RATE, "interval"), f"must be a duration such as 100ms or 1s (got {text!r:.40})")
        if interval == 0:
            return None
        text = self._text((RATE, "burst"), section.get("burst"))
        if not (text.isascii() and text.isdecimal() and 0 < int(text[:10]) <= 1_000_000):
            self._wrong(
                (RATE, "burst"), f"must be a number of requests from 1 to 1,000,000 (got {text!r:.40}); with 0 none is answered"
            )
            return None
        return None if interval is None else Rate(interval, int(text))


def _duration(text: str) -> float | None:
    """Seconds; None where it is no duration of Go's, or one below 0."""
    if text in ("", "0"):
        return 0.0
    parts = _DURATION.findall(text)
    if "".join(map("".join, parts)) != text:
        return None
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))
