"""Pictures of every page for people to look at: drawn images, the shipped model, a real browser.

    PYTHONPATH=.:tests python tests/page_screenshots.py -o build/page
    PYTHONPATH=.:tests python tests/page_screenshots.py -o docs/page --documents

The second writes those of the documents alone, with fewer colours. Both need fonts-noto-cjk.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from browser import Picture
from cart_browser import PageBrowser
from cart_page import CONSOLE, served, write_config
from cart_store import Store, open_store
from PIL import Image
from whole_cart import phantom_image

from deepcovid_edge.cart.heartbeat import RECEIVER, WORKER, Heartbeat
from deepcovid_edge.cart.page.access import Pin
from deepcovid_edge.cart.store.images import BuiltObject, Settled
from deepcovid_edge.cart.work.assessment import AssessmentRequest
from deepcovid_edge.cart.work.assessor_child import loaded_assessor

_EXPLICIT = "1.2.840.10008.1.2.1"
_IMAGES: tuple[dict[str, object], ...] = (
    {"opacities": 9},
    {},
    {"ViewPosition": "LL"},
    {"opacities": 5},
    {"ViewPosition": "AP"},
    {"opacities": 9},
    {},
)


@dataclass(frozen=True)
class Shot:
    """A picture of a page.

    Attributes:
        name: Of its file.
        path: The page.
        size: Of the screen.
        dark: In a dark room.
        language: Of the page.
        key: JavaScript that is run before.
    """

    name: str
    path: str
    size: tuple[int, int] = (1280, 800)
    dark: bool = True
    language: str = "en"
    key: str = ""


DOCUMENTS = {
    "home-dark": "home",
    "map-dark": "map",
    "alerts-light": "alerts",
    "statistics-light": "statistics",
    "home-fa": "home-fa",
    "audit-light": "audit",
    "log-in-dark": "log-in",
}
"""Picture -> its name in the documents."""
_COLOURS = 256
_ALIVE_SECONDS = 5.0
_TOGGLE = "document.querySelector('#toggle button').click()"
_PAGES = {
    "home": "/",
    "image": "/image/1",
    "not_assessed": "/image/3",
    "alerts": "/alerts",
    "statistics": "/statistics",
    "audit": "/audit?check=1",
}


def shots() -> Iterator[Shot]:
    """All pictures."""
    for name, path in _PAGES.items():
        yield Shot(f"{name}-dark", path)
        yield Shot(f"{name}-light", path, dark=False)
        yield Shot(f"{name}-small", path, (800, 480))
        for language in ("es", "ro", "fa", "zh", "ko"):
            yield Shot(f"{name}-{language}", path, language=language)
    yield Shot("map-dark", "/image/1", key=_TOGGLE)
    yield Shot("map-light", "/image/1", dark=False, key=_TOGGLE)


def log_in_shots() -> Iterator[Shot]:
    """Pictures of the page before the PIN."""
    yield Shot("log-in-dark", "/log-in")
    yield Shot("log-in-light", "/log-in", dark=False)
    yield Shot("log-in-small", "/log-in", (800, 480))
    for language in ("es", "ro", "fa", "zh", "ko"):
        yield Shot(f"log-in-{language}", "/log-in", language=language)


def fill(store: Store, folder: Path) -> None:
    """Have drawn images assessed by the shipped model."""
    config = write_config(folder, 8080)
    with loaded_assessor(config.cart, config.cart.model, None) as assessor:
        for number, keys in enumerate(_IMAGES):
            data = phantom_image(number, _EXPLICIT, **keys)  # type: ignore[arg-type]
            store.intake.take_file(data, name="f.dcm", arrival=CONSOLE)
            image = store.images.claim()
            assert image
            answer = assessor.assess(
                AssessmentRequest(image.path, image.content_sha256, image.is_dicom)
            )
            objects = [
                BuiltObject(**{**one, "path": Path(one["path"])}) for one in answer["objects"]
            ]
            store.images.settle(image, Settled(answer["record"], objects, {"pacs": ("sr", "sc")}))
    store.ledger.rows(
        "UPDATE outbox SET state = 'sent', last_status = '0x0000 success' WHERE object_id < 12"
    )
    store.ledger.raise_alert("silent:pacs", "destination_silent", destination="pacs")
    store.ledger.raise_alert("stranger:10.0.0.9", "unknown_sender", address="10.0.0.9")
    store.intake.take_file(phantom_image(99, _EXPLICIT), name="f.dcm", arrival=CONSOLE)


@contextmanager
def alive(folder: Path) -> Iterator[None]:
    """Roles that say that they are there, however long the pictures take."""
    over = threading.Event()

    def say() -> None:
        with open_store(folder / "spool") as store:
            while not over.is_set():
                for key in (RECEIVER, WORKER):
                    Heartbeat(store.ledger, key).beat()
                over.wait(_ALIVE_SECONDS)

    thread = threading.Thread(target=say)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def opened(folder: Path) -> Iterator[PageBrowser]:
    """A browser that has given the PIN of a page with images."""
    Pin.of("123456").write(folder / "pin")
    with open_store(folder / "spool") as store:
        fill(store, folder)
    with alive(folder), served(folder, pin_file="pin") as running:
        browser = PageBrowser(folder, running.reader.origin)
        browser.start()
        try:
            browser.size(1280, 800)
            browser.visit("/")
            yield browser
        finally:
            browser.close()


def take(browser: PageBrowser, shot: Shot) -> Picture:
    """Take one picture."""
    browser.size(*shot.size, dark=shot.dark)
    if browser.ask("document.documentElement.lang") != shot.language:
        browser.visit(f"/?language={shot.language}")
    browser.visit(shot.path)
    if shot.key:
        browser.ask(f"{shot.key}; undefined")
    browser.until("[...document.images].every(one => one.complete)")
    return browser.screen()


def write(picture: Picture, place: Path, *, colours: int | None = None) -> None:
    """Write a picture, with few colours if wanted."""
    image = Image.fromarray(picture[..., ::-1])
    if colours:
        image = image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(place, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="Names that begin so.")
    parser.add_argument("--documents", action="store_true", help="Those of the documents alone.")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, opened(Path(place)) as browser:
        for shot in log_in_shots():
            shoot(browser, shot, options)
        browser.visit("/log-in")
        browser.ask("document.getElementById('pin').value = '123456'; undefined")
        browser.act("document.querySelector('form.log-in').requestSubmit()")
        for shot in shots():
            shoot(browser, shot, options)


def shoot(browser: PageBrowser, shot: Shot, options: argparse.Namespace) -> None:
    """Take and write a picture, where the options ask for it."""
    if options.documents and shot.name in DOCUMENTS:
        place = options.output / f"{DOCUMENTS[shot.name]}.png"
        write(take(browser, shot), place, colours=_COLOURS)
    elif shot.name.startswith(options.only) and not options.documents:
        write(take(browser, shot), options.output / f"{shot.name}.png")


if __name__ == "__main__":
    main()
