"""An agent as a process of its own, for tests that only ask it: one may serve all tests of a module."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.agent.conftest import ROOT, wait_for
from tests.ports import free_port


@dataclass(frozen=True)
class Agent:
    process: subprocess.Popen[str]
    port: int
    folder: Path  # its runtime folder is below, and whatever else a test puts there
    scheme: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def runtime(self) -> Path:
        return self.folder / "runtime"

    @property
    def said(self) -> str:
        return (self.folder / "agent.txt").read_text()

    def ask(self, request: bytes, seconds: float = 10.0) -> bytes:
        """All that comes back to some bytes, until the agent hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(request)
            return everything(connection)

    def status(self, request: bytes) -> int:
        """Of the first answer to some bytes; 0 where none comes."""
        answer = self.ask(request)
        return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def everything(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


# What `-m resmon` runs, in an agent that takes all the time it needs for its answers.
UNPACED = ("-c", "from resmon.access import pace; from resmon.cli import main; pace.SHARE = 1.0; main()")


@contextmanager
def agent(
    folder: Path, *options: str, tls: bool = False, listen: str = "127.0.0.1", runtime: Path | None = None, paced: bool = True
) -> Iterator[Agent]:
    """An agent that is ready, as long as it is wanted. One that is not `paced` is for thousands of questions: on a busy machine
    the others would take a share of it for them that lasts for many minutes.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    program = ("-m", "resmon") if paced else UNPACED
    command = (sys.executable, *program, "agent", "--listen", f"{listen}:{port}", "--linger", "600", *options)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RESMON_")}
    environment |= {"PYTHONPATH": str(ROOT), "RESMON_RUNTIME_DIR": str(runtime or folder / "runtime"), "OMP_NUM_THREADS": "1"}
    with (folder / "agent.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment
        )
    made = Agent(process, port, folder, "https" if tls else "http")
    try:
        wait_for(lambda: _is_ready(made))
        yield made
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()


def _is_ready(made: Agent) -> bool:
    assert made.process.poll() is None, made.said
    try:
        # The certificate is not looked at: whether it answers at all is what is asked here.
        return httpx.get(f"{made.url}/-/ready", verify=False, timeout=5).status_code == 200  # noqa: S501
    except httpx.ConnectError as error:
        return "handshake" in str(error).lower()
    except (httpx.ReadError, httpx.RemoteProtocolError):  # it asks for a client's certificate: it answers
        return made.scheme == "https"


def trusting(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority))
