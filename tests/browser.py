"""A headless Chromium that is told what to do, over its debugging protocol, and that says what went wrong in it.

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

KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Page:
    """A page in a browser; `run` gives what a JavaScript expression is, `complaints` has what the console and the policy said."""

    def __init__(self, address: Path | str, downloads: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={downloads}/profile"]
        flags += [f"--window-size={width},{height}", "--hide-scrollbars", "--no-first-run", "--disable-background-networking"]
        self._downloads = downloads
        self.complaints: list[str] = []
        self._process = subprocess.Popen(
            [str(CHROMIUM), *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(width, height)
        if dark:
            self.media(dark=True)
        self.open(address)

    def _wait(self, file: Path) -> str:
        for _ in range(600):
            if file.exists() and (text := file.read_text()).count("\n"):
                return text
            time.sleep(0.1)
        raise TimeoutError(f"{file} did not come")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        data = json.dumps({"id": self._number, "method": method, "params": parameters}).encode()
        small, medium = bytes([0x80 | min(len(data), 126)]), struct.pack(">H", len(data) & 0xFFFF)
        length = small if len(data) < 126 else small + medium if len(data) < 1 << 16 else b"\xff" + struct.pack(">Q", len(data))
        self._socket.sendall(b"\x81" + length + bytes(4) + data)  # masked with zeros
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._hear(answer)

    def _message(self) -> dict[str, Any]:
        text = b""
        while True:
            head, size = self._file.read(2)
            size &= 127
            if size > 125:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
            text += self._file.read(size)
            if head & 0x80:
                return dict(json.loads(text))

    def _hear(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        match event.get("method"):
            case "Log.entryAdded" if values["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if values["type"] in ("error", "warning", "assert"):
                self.complaints.append(" ".join(str(each.get("value", each.get("description"))) for each in values["args"]))
            case "Runtime.exceptionThrown":
                details = values["exceptionDetails"]
                self.complaints.append(str(details.get("exception", {}).get("description", details["text"])))

    def open(self, address: Path | str) -> None:
        self.call("Page.navigate", url=address.as_uri() if isinstance(address, Path) else address)
        self.until("document.readyState === 'complete'")

    def size(self, width: int, height: int, touch: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def media(self, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def run(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.run(f"Boolean({expression})"):
                return
            time.sleep(0.05)
        raise TimeoutError(f"{expression}; the console: {self.complaints}")

    def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, x: float, y: float, to: float) -> None:
        """Across, with the button held."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", buttons=1, clickCount=1)
        for i in range(1, 9):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + (to - x) * i / 8, y=y, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        more = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=KEYS[name], **more)

    def picture(self, file: Path, whole: bool = False) -> None:
        """A screenshot, of what is seen or of the whole page."""
        more: dict[str, Any] = {}
        if whole:
            content = self.call("Page.getLayoutMetrics")["cssContentSize"]
            more = {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": content["width"], "height": content["height"], "scale": 1},
            }
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"]))

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
