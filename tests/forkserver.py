"""Python processes that have torch from their birth: one process imports it, and is forked for each that a test wants.

To import torch, and what its first optimizer and the first `watch` import, takes seconds of CPU time, many times what such a
process does for a test. In all else it is a process like any other: `run` takes what follows `python` on a command line, the script
is the main module of a process with arguments, an environment, a folder and files of its own, and it ends as Python ends. What is
read when torch is imported has been read, though, and the process computes in one thread, as no other lives through a fork.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType

ROOT = Path(__file__).parent.parent


_STARTING = Lock()


@cache
def _server() -> str:
    """The address of this process' server, which goes when this process does."""
    folder = tempfile.mkdtemp(prefix="forkserver-")
    address = f"{folder}/socket"
    command = [sys.executable, "-m", "tests.forkserver", address]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(_stop, os.getpid(), server, folder)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return address


def _stop(owner: int, server: subprocess.Popen[bytes], folder: str) -> None:
    """By who started it, and by none of its children: one that ends as Python ends has inherited this."""
    if os.getpid() == owner:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)


def run(
    *arguments: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)` does."""
    command = list(map(str, arguments))
    request = {"command": command, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
    with ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        with _STARTING:
            address = _server()
        connection.connect(address)
        given, *taken = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(json.dumps(request).encode())
        given.seek(0)
        socket.send_fds(connection, [b"."], [file.fileno() for file in (given, *taken)])
        answers = stack.enter_context(connection.makefile("r"))
        pid = int(answers.readline())
        if not select.select([connection], [], [], timeout)[0]:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command, timeout)
        status = int(answers.readline())
        for file in taken:
            file.seek(0)
        return subprocess.CompletedProcess(command, status, *(file.read().decode() for file in taken))


def _serve(address: str) -> list[str]:
    """Fork for every request; gives the command in the process that is to run it, and in no other."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while listener in (ready := select.select([listener, sys.stdin], [], [])[0]):
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        if sys.stdin in ready:
            os._exit(0)
    # One process stays to tell how the other ended, which only a parent is told.
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    child = os.fork()
    if child:
        connection.sendall(f"{child}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        os._exit(0)
    connection.close()
    with os.fdopen(files[0]) as file:
        request = json.load(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fd, file in enumerate(files[1:], 1):
        os.dup2(file, fd)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
    return list(request["command"])


def _main(first: str, *arguments: str) -> None:
    """Be `python first arguments`."""
    if first == "-m":
        sys.argv, sys.path[0] = list(arguments), str(Path.cwd())
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = main = ModuleType("__main__")
    if first == "-c":
        script, file = arguments[0], "<string>"
        sys.argv, sys.path[0] = ["-c", *arguments[1:]], ""
    else:
        path = Path(first).absolute()
        script, file = path.read_text(), str(path)
        sys.argv, sys.path[0] = [first, *arguments], str(path.parent)
        main.__file__ = file
    exec(compile(script, file, "exec"), vars(main))  # noqa: S102, that is what Python does with a script


if __name__ == "__main__":
    import gc

    for name in ("torch._dynamo", "torch.distributed", "torch.nn.parallel"):  # the first of them the first optimizer imports
        import_module(name)
    for name in ("resmon.monitor.watch", "tests.capture.models", "tests.capture.stack"):
        import_module(name)
    gc.freeze()  # no child goes through all that again when it ends
    _main(*_serve(sys.argv[1]))
