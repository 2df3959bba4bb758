"""The report in a real browser: it asks for nothing, and its curves and tables are to be seen.

Chromium is driven through its own debugging pipe, which tells every request that a page makes.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

for needed in ("sklearn", "matplotlib", "jinja2", "onnx"):
    pytest.importorskip(needed, reason=f"{needed} (extra export) makes the report")

import onnx
from commands import Done, command

from deepcovid_edge.imaging.synthetic.phantom import draw_phantom
from deepcovid_edge.manifest import METADATA_KEY
from deepcovid_edge.models import find_model

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="no browser: `make browser`, or apt-get install chromium"
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
            "--host-resolver-rules=MAP * ~NOTFOUND",
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
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    try:
        opened.start()
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen phantoms as a data set with patients, sources and views, and one broken file."""
    folder = tmp_path_factory.mktemp("data")
    rows = ["path,label,split,patient,source,view"]
    for number in range(18):
        path = folder / f"phantom{number:02d}.png"
        image = draw_phantom(number, opacities=2 * (number % 4))
        cv2.imwrite(str(path), cv2.resize(image, None, fx=0.25, fy=0.25))
        label = ("covid", "normal", "pneumonia")[number % 3]
        source = ("ieee8023 (a.org)", "ieee8023 (b.org)", "Hospital & Söhne <i>")[number // 6]
        view = ("PA", "AP", "")[number // 2 % 3]
        rows.append(f"{path.name},{label},test,p{number // 2},{source},{view}")
    (folder / "broken.png").write_text("no image")
    rows.append("broken.png,normal,test,p99,Hospital,PA")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped network under another name, with another threshold."""
    model = onnx.load(find_model("squeezenet1_1"))
    (entry,) = (item for item in model.metadata_props if item.key == METADATA_KEY)
    changed = {"name": "other", "threshold": 0.0001, "indeterminate_range": None}
    entry.value = json.dumps({**json.loads(entry.value), **changed})
    path = tmp_path_factory.mktemp("model") / "other.onnx"
    onnx.save(model, path)
    return path


def evaluate(*arguments: object) -> Done:
    return command("evaluate", *arguments)


@pytest.fixture(scope="module")
def report(data: Path, other_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "report"
    done = evaluate("squeezenet1_1", other_model, data, "--split", "test", "-o", folder)
    assert done.returncode == 4, done.stderr  # one image could not be assessed
    assert "not assessed: 1 images: E_NOT_IMAGE" in done.stdout
    return folder


def test_a_folder_gets_figures_and_page(report: Path, other_model: Path) -> None:
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "report.json"]
    figures = json.loads((report / "report.json").read_text("utf-8"))
    first, second = figures["evaluations"]
    assert [it["model"] for it in (first, second)] == ["squeezenet1_1", "other"]
    assert first["not_assessed"] == {"E_NOT_IMAGE": 1}
    assert first["images"] == 19
    assert first["overall"]["images"] == 18
    assert first["bootstrap"]["patients"] == 9
    assert set(first["by_view"]) == {"AP", "PA", "not stated"}
    assert set(first["by_label"]) == {"covid", "normal", "pneumonia"}
    assert "ieee8023 (all sites)" in first["shortcuts"]["within_source"]
    (comparison,) = figures["comparisons"]
    assert comparison["images"] == 18
    assert comparison["auc"] == {"change": 0.0, "interval_95": [0.0, 0.0]}


def test_the_page_refers_to_nothing_outside(report: Path) -> None:
    page = (report / "report.html").read_text("utf-8")
    addresses = set(page.split('"')) | set(page.split("'"))
    found = {text for text in addresses if text.startswith(("http:", "https:", "//", "file:"))}
    assert {address.split("/")[2] for address in found} <= {"www.w3.org"}  # names of XML, no links
    assert "<script" not in page
    assert "@import" not in page
    assert "Hospital &amp; Söhne &lt;i&gt;" in page


@needs_browser
def test_a_page_that_asks_for_something_would_be_found_out(
    browser: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "asking.html"
    page.write_text('<img src="http://images.invalid/a.png"><link rel=stylesheet href="b.css">')
    asked = browser.open(page)
    assert asked == [page.as_uri(), "http://images.invalid/a.png", (tmp_path / "b.css").as_uri()]


@needs_browser
def test_the_report_opens_without_a_request_or_a_complaint(browser: Browser, report: Path) -> None:
    page = report / "report.html"
    asked = [address for address in browser.open(page) if not address.startswith("data:")]
    assert asked == [page.as_uri()]
    assert browser.complaints() == []
    text = browser.ask("document.body.innerText")
    figures = json.loads((report / "report.json").read_text("utf-8"))
    for it in figures["evaluations"]:
        assert it["model_sha256"] in text
        assert it["data_sha256"] in text
        assert it["shortcuts"]["verdict"] in text
        assert f"{it['overall']['auc']:.3f}" in text
    assert text.count("Research use only") >= 2
    assert "not assessed\nE_NOT_IMAGE: 1" in text


@needs_browser
def test_tables_are_there_with_all_their_rows(browser: Browser, report: Path) -> None:
    browser.open(report / "report.html")
    rows = browser.ask(
        "[...document.querySelectorAll('table')].map(t => [t.id || t.className, t.tBodies[0].rows"
        ".length])"
    )
    first, second = json.loads((report / "report.json").read_text("utf-8"))["evaluations"]
    expected = [
        ["operating-points", len(first["operating_points"]) + len(second["operating_points"])],
        ["summary", 2],
        ["comparisons", 1],
    ]
    for it in (first, second):
        areas = it["shortcuts"]
        groups = ("lungs_hidden_by_side", "by_shape", "within_source")
        expected += [
            ["confusion", 2],
            ["by-label", 3],
            ["by-source", 3],
            ["by-view", 3],
            ["thresholds", len(it["thresholds"])],
            ["shortcuts", 2 + sum(len(areas[group]) for group in groups)],
        ]
    assert rows == expected


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_curves_are_to_be_seen(browser: Browser, report: Path, dark: bool) -> None:
    """Every plot has lines in its own colours where it stands; the page turns with the scheme."""
    browser.open(report / "report.html")
    picture = browser.show(1200, dark=dark)
    page = picture[5, 5].astype(int)
    assert bool(page.mean() < 60) is dark
    plots = browser.ask(
        "[...document.querySelectorAll('figure.plot')].map(f => { const s = f.querySelector('svg')"
        ".getBoundingClientRect(); return [f.getAttribute('aria-label'), s.left, s.top + scrollY,"
        " s.width, s.height, f.querySelectorAll('path').length]; })"
    )
    names = [name for name, *_ in plots]
    assert names[:2] == ["ROC curve", "Precision-recall curve"]
    assert len(names) == 2 + 2 * 4
    for name, *rectangle, paths in plots:
        left, top, width, height = map(round, rectangle)
        assert width > 300, name
        assert paths > 10, name
        drawn = picture[top : top + height, left : left + width].astype(int)
        apart = np.abs(drawn - page).max(axis=2) > 60
        coloured = np.ptp(drawn, axis=2) > 60
        assert apart.mean() > 0.01, name
        assert coloured.sum() > 150, name


@needs_browser
def test_the_page_fits_a_phone(browser: Browser, report: Path) -> None:
    """Wide tables scroll in their own frame; the page itself does not."""
    browser.open(report / "report.html")
    browser.show(390)
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    widths = browser.ask(
        "[...document.querySelectorAll('figure.plot svg')]"
        ".map(svg => svg.getBoundingClientRect().width)"
    )
    assert min(widths) > 300
    assert max(widths) <= 390


@needs_browser
def test_the_page_prints(browser: Browser, report: Path) -> None:
    browser.open(report / "report.html")
    printed = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000


def test_one_class_alone_makes_a_page_without_curves(data: Path, tmp_path: Path) -> None:
    lines = (data / "manifest.csv").read_text("utf-8").splitlines()
    kept = [line for line in lines[:-1] if ",covid," not in line]
    for path in data.glob("phantom*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "manifest.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    done = evaluate("squeezenet1_1", tmp_path, "--split", "test", "-o", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "these images are all of one class" in page
    assert "ROC curve" not in page
    assert not (tmp_path / "report.json").exists()


def test_figures_alone_are_written_as_json_and_read_no_image_twice(
    data: Path, tmp_path: Path
) -> None:
    done = evaluate("squeezenet1_1", data, "--split", "test", "-o", tmp_path / "x.json", "--json")
    assert done.returncode == 4, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    figures = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert figures == json.loads(done.stdout)
    assert figures["shortcuts"] is None
