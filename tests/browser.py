"""A headless browser for tests of the page: DevTools commands over a pipe, nothing on the network."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)

PATIENCE_S = 60


def found() -> str | None:
    """The browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """A page in the browser. ``complaints`` is what it wrote to the console as a warning or error, or threw."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self._to, self._from, self._read = write_fd, read_fd, b""
        self._number, self._session = 0, ""
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a DevTools command; what happens meanwhile is noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._to, text) :]
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], PATIENCE_S)
            assert ready, f"the browser has said nothing for {PATIENCE_S} s"
            more = os.read(self._from, 1 << 16)
            assert more, "the browser is gone"
            self._read += more
        text, _, self._read = self._read.partition(b"\0")
        message = json.loads(text)
        method, params = message.get("method", ""), message.get("params", {})
        noted = (
            method == "Runtime.exceptionThrown"
            or (method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"))
            or (method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error"))
        )
        if noted:
            self.complaints.append(json.dumps(params))
        return message

    def open(self, page: Path | str, *, width: int, dark: bool = False, script: bool = True) -> None:
        """Load a file, or what stands at an address, in a window of that width, and wait for it."""
        self.send("Emulation.setScriptExecutionDisabled", value=not script)
        self.send("Emulation.setEmulatedMedia", features=[_scheme(dark)])
        self.widen(width)
        self.send("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def widen(self, width: int) -> None:
        """Make the window so wide."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def settle(self) -> None:
        """Wait until two frames are drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def scheme(self, *, dark: bool) -> None:
        """Prefer a dark or a light page from now on."""
        self.send("Emulation.setEmulatedMedia", features=[_scheme(dark)])

    def run(self, expression: str) -> Any:
        """The JSON value of an expression."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self) -> bytes:
        """A PNG of the whole page."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        taken = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])

    def print(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"])


def _scheme(dark: bool) -> dict[str, str]:
    return {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}


@contextmanager
def browser(path: str) -> Iterator[Tab]:
    """A tab of a fresh browser, which is gone afterwards."""
    to_browser, write_fd = os.pipe()
    read_fd, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(prefix="fitwithin-browser-", ignore_cleanup_errors=True) as profile:
        # The browser reads commands from 3 and writes answers to 4.
        plumbed = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        command = ["bash", "-c", plumbed, "bash", path, *QUIET.split(), f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [*command, "--remote-debugging-pipe"], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Tab(write_fd, read_fd)
        finally:
            process.kill()
            process.wait()
            os.close(write_fd)
            os.close(read_fd)
