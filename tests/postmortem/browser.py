"""A headless Chromium that is told what to do, over its debugging protocol.

Chromium listens on a port of its own choosing on loopback; what it speaks is a web socket, of which this is the client's half.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page:
    """A page in a browser; `run` gives what a JavaScript expression is."""

    def __init__(self, file: Path, downloads: Path) -> None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={downloads}/profile"]
        self._downloads = downloads
        self._process = subprocess.Popen(
            [str(CHROMIUM), *flags, file.as_uri()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port = self._wait(downloads / "profile" / "DevToolsActivePort").split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        path = target["webSocketDebuggerUrl"].partition(f":{port}")[2]
        self._socket = socket.create_connection(("127.0.0.1", int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade")
        self._socket.sendall("\r\n".join((*lines, f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "")).encode())
        self._file = self._socket.makefile("rb")
        while self._file.readline().strip():
            pass
        self._number = 0
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def _wait(self, file: Path) -> str:
        for _ in range(600):
            if file.exists() and (text := file.read_text()).count("\n"):
                return text
            time.sleep(0.1)
        raise TimeoutError(f"{file} did not come")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        data = json.dumps({"id": self._number, "method": method, "params": parameters}).encode()
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self._socket.sendall(b"\x81" + length + bytes(4) + data)  # masked with zeros
        while True:
            size = self._file.read(2)[1] & 127
            if size > 125:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
            answer = json.loads(self._file.read(size))
            if answer.get("id") == self._number:
                return dict(answer["result"])

    def run(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True)["result"].get("value")

    def until(self, expression: str) -> None:
        for _ in range(600):
            if self.run(expression):
                return
            time.sleep(0.1)
        raise TimeoutError(expression)

    def downloaded(self, pattern: str) -> list[Path]:
        for _ in range(600):
            if found := list(self._downloads.glob(pattern)):
                return found
            time.sleep(0.1)
        raise TimeoutError(pattern)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()
