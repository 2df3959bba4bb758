"""Chromium in front of a cart's page: keys, sizes, live changes, and what it asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from browser import Browser, Picture

_CODES = {"Tab": 9, "Enter": 13, " ": 32, "Escape": 27}


class PageBrowser(Browser):
    """A browser that knows the page's origin, and every request that left it.

    Args:
        profile: Folder for the browser's own files.
        origin: Scheme, host and port of the page.
    """

    def __init__(self, profile: Path, origin: str) -> None:
        super().__init__(profile)
        self.origin = origin

    def visit(self, path: str) -> None:
        """Open a page of the cart and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=f"{self.origin}{path}")
        self._loaded()

    def act(self, expression: str) -> None:
        """Do something that leads to another page, and wait for that."""
        self.events.clear()
        self.ask(f"{expression}; undefined")
        self._loaded()

    def _loaded(self) -> None:
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._take(self._message())

    def until(self, expression: str, seconds: float = 10.0) -> float:
        """Wait until an expression is true; the seconds that it took."""
        started = time.monotonic()
        while not self.ask(expression):
            if time.monotonic() - started > seconds:
                pytest.fail(f"not within {seconds:g} s: {expression}")
            time.sleep(0.02)
        return time.monotonic() - started

    def size(self, width: int, height: int, *, dark: bool = True) -> None:
        """Have a screen of this size in a dark or a light room."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **shape)

    def screen(self) -> Picture:
        """What the screen shows now, of shape (height, width, 3), BGR."""
        import base64

        taken = self.call("Page.captureScreenshot", format="png")
        data = np.frombuffer(base64.b64decode(taken["data"]), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert picture is not None
        return np.asarray(picture, np.uint8)

    def press(self, key: str) -> None:
        """Press a key."""
        keys: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": _CODES[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **down, **keys)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def write(self, text: str) -> None:
        """Write into what has the focus."""
        self.call("Input.insertText", text=text)

    def outside(self) -> list[str]:
        """Addresses that were asked for since the last visit and are not the cart's."""
        own = urlsplit(self.origin)
        return [url for url in self.asked() if urlsplit(url)[:2] != own[:2]]

    def overflows(self) -> bool:
        """Whether the page is wider than the screen."""
        return bool(
            self.ask("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        )

    def small_targets(self) -> list[str]:
        """What may be touched and is lower or narrower than 48 pixels."""
        found: list[str] = self.ask(
            "[...document.querySelectorAll('a, button, input:not([type=hidden]), summary')]"
            ".filter(one => one.offsetParent && !one.matches('.skip'))"
            ".filter(one => { const box = one.getBoundingClientRect();"
            " return box.width < 48 || box.height < 47.5; })"
            ".map(one => one.outerHTML.slice(0, 120))"
        )
        return found
