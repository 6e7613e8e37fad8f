"""Certificates for servers and clients that a test starts, from an authority of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.programs import program

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


class Authority:
    """Signs certificates; `folder` holds NAME.pem and NAME.key of each, its own under ca."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate = folder / "ca.pem"
        self._openssl("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")

    def sign(self, name: str, *alternatives: str) -> tuple[Path, Path]:
        """The files of a new certificate and its key; `alternatives` are its names, such as IP:127.0.0.1 and DNS:box."""
        names = f"subjectAltName={','.join(alternatives)}"
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", names, "-addext", "basicConstraints=CA:FALSE")
        self._openssl("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *signed)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        command = [program("openssl"), "req", "-x509", *_KEY, *arguments]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
