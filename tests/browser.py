"""Headless Chromium for tests of pages: every request that a page makes is known.

It is driven through its own debugging pipe. axe-core looks for what keeps people from reading a
page (contrast, names for screen readers, the keyboard).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="no browser: `make browser`, or apt-get install chromium"
)
_AXE = find_spec("axe_playwright_python")
needs_axe = pytest.mark.skipif(
    _AXE is None, reason="no axe-core: pip install axe-playwright-python (extra dev)"
)
Picture = NDArray[np.uint8]
_ON_3_AND_4 = """
import fcntl, os, sys
pipe = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, number in enumerate(pipe, start=3):
    os.dup2(number, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Headless Chromium with one page, spoken to over the debugging pipe (file numbers 3, 4)."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._commands = os.pipe()
        self._answers, from_browser = os.pipe()
        options = [
            "--headless",
            "--no-sandbox",  # it may run as root, and opens our own pages alone
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        pipe = (str(to_browser), str(from_browser))
        with (profile / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _ON_3_AND_4, *pipe, str(PROGRAM), *options],
                pass_fds=(to_browser, from_browser),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []

    def start(self) -> None:
        """Open an empty page and listen to what it does."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Do something on the page."""
        return self._call(method, session=self._session, **parameters)

    def open(self, page: Path) -> list[str]:
        """Open a page; the addresses that it asked for, its own included."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._take(self._message())
        return self.asked()

    def asked(self) -> list[str]:
        """The addresses that the page has asked for since it was opened, its own included."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """What the browser wrote into the page's console, such as a broken security policy."""
        entries = [it["params"]["entry"] for it in self.events if it["method"] == "Log.entryAdded"]
        return [entry["text"] for entry in entries]

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page; None where it has none."""
        wanted = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=expression, **wanted)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def barriers(self) -> list[tuple[str, str, str]]:
        """What axe-core finds on the page as it is shown: impact, rule and the first element."""
        assert _AXE is not None
        assert _AXE.origin is not None
        script = Path(_AXE.origin).with_name("axe.min.js").read_text("utf-8")
        self.ask(f"{script}\n;void 0")
        found = self.ask("axe.run(document)")
        return [(it["impact"], it["id"], it["nodes"][0]["html"]) for it in found["violations"]]

    def show(self, width: int, *, dark: bool = False) -> Picture:
        """The whole page at that width, of shape (height, width, 3), BGR."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        shape = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **shape)
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        data = np.frombuffer(base64.b64decode(taken["data"]), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert picture is not None
        return np.asarray(picture, np.uint8)

    def close(self) -> None:
        """End the browser and the pipe."""
        self._process.terminate()
        self._process.wait(20)
        os.close(self._commands)
        os.close(self._answers)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            self._take(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _take(self, message: dict[str, Any]) -> None:
        if "method" in message:
            self.events.append(message)

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + 60
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            block = os.read(self._answers, 1 << 20)
            assert block, "the browser ended"
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message
