"""What is agreed on with whoever connects by TLS: the certificate that is shown, versions and ciphers, whose certificate is wanted.

Names are Go's, as the web configuration has them (web_config.py), and OpenSSL's here. Anything that would let in what is broken
(versions before 1.2, ciphers without forward secrecy) has no name here. The context that listens is renewed: each connection that
comes is given the newest one, so that a certificate that was replaced, a client's authority that was taken away and a stricter
version count from the next connection on.
"""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

VERSIONS: Mapping[str, ssl.TLSVersion] = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}

# Go's names, https://pkg.go.dev/crypto/tls#CipherSuites, of the suites of TLS 1.2 with OpenSSL's beside them, ciphers(1).
CIPHERS: Mapping[str, str] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
# Those of TLS 1.3, which neither Go nor Python lets anybody choose among.
CIPHERS_13 = frozenset({"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"})

# https://pkg.go.dev/crypto/tls#CurveID
CURVES: Mapping[str, str] = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}

# https://pkg.go.dev/crypto/tls#ClientAuthType, those that verify what they are shown.
CLIENTS: Mapping[str, ssl.VerifyMode] = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}

# Python's names of the kinds of names in a certificate that may be on the list of those who are let in.
_NAMES = ("DNS", "email", "IP Address", "URI")


@dataclass(frozen=True, slots=True)
class Pem:
    """A certificate or a key: in a file of its own, or as text."""

    path: Path | None = None
    text: str = field(default="", repr=False)

    @contextmanager
    def file(self) -> Iterator[str]:
        """Its path, for as long as it is read: OpenSSL, as Python has it, reads files only."""
        if self.path is not None:
            yield str(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="resmon-") as folder:  # nobody else's
            path = Path(folder) / "pem"
            path.touch(0o600)
            path.write_text(self.text)
            yield str(path)


class UnusableError(Exception):
    """A file that cannot be used: `part` is cert, key or client_ca, and why."""

    def __init__(self, part: str, why: str) -> None:
        super().__init__(why)
        self.part = part


@dataclass(frozen=True, slots=True)
class Tls:
    """How connections are made safe."""

    certificate: Pem
    key: Pem
    clients: ssl.VerifyMode = ssl.CERT_NONE
    client_ca: Pem | None = None
    allowed_names: frozenset[str] = frozenset()  # of clients' certificates; any where it is empty
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ciphers: tuple[str, ...] = ()  # of TLS 1.2, as OpenSSL calls them; its own choice where there are none
    server_chooses: bool = True
    curve: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read besides the configuration itself."""
        return tuple(pem.path for pem in (self.certificate, self.key, self.client_ca) if pem is not None and pem.path is not None)

    def context(self) -> ssl.SSLContext:
        """Raises UnusableError where a file is not there or not what it should be."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version, context.maximum_version = self.minimum, self.maximum
        if self.ciphers:
            context.set_ciphers(":".join(self.ciphers))
        if self.server_chooses:
            context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        else:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        if self.curve:
            context.set_ecdh_curve(self.curve)
        for part, pem in (("cert", self.certificate), ("key", self.key), ("client_ca", self.client_ca)):
            if pem is not None and pem.path is not None:
                try:
                    pem.path.open("rb").close()
                except OSError as error:
                    raise UnusableError(part, f"{pem.path} cannot be read: {error.strerror or error}") from error
        with self.certificate.file() as certificate, self.key.file() as key:
            try:
                # Without a password for the key: one that is asked for on the terminal would wait there for ever.
                context.load_cert_chain(certificate, key, password="")
            except (OSError, ValueError) as error:
                why = f"certificate and key do not fit together, or are not in PEM form without a password ({_said(error)})"
                raise UnusableError("cert", why) from error
        if self.client_ca is not None:
            with self.client_ca.file() as ca:
                try:
                    context.load_verify_locations(ca)
                except (OSError, ValueError) as error:
                    raise UnusableError("client_ca", f"holds no certificates in PEM form ({_said(error)})") from error
            context.verify_mode = self.clients
        return context


def _said(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def names_of(certificate: Mapping[str, Any]) -> frozenset[str]:
    """The alternative names in a certificate, as `SSLSocket.getpeercert` gives it."""
    names = certificate.get("subjectAltName", ())
    return frozenset(written(value) if kind == "IP Address" else value for kind, value in names if kind in _NAMES)


def written(name: str) -> str:
    """A name as it is compared; of an address in its usual form."""
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return name


class Renewing(ssl.SSLContext):
    """The context of a socket that listens: each connection is made by the newest one that `newest` gives.

    asyncio asks its context for nothing but this.
    """

    _newest: Callable[[], ssl.SSLContext]

    @classmethod
    def of(cls, newest: Callable[[], ssl.SSLContext]) -> Self:
        made = cls(ssl.PROTOCOL_TLS_SERVER)
        made._newest = newest
        return made

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        return self._newest().wrap_bio(*arguments, **named)


def signature(path: Path) -> tuple[int, ...]:
    """What tells a file from what stood there before; nothing where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
