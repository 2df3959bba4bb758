"""The page of `infer --html`: what its rows say, what it links to, and what it never lets in."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import cv2
import numpy as np
import pytest
from browser import Browser, needs_axe, needs_browser
from commands import command
from drawn_once import phantom_files

from deepcovid_edge.decision.record import Prediction, RunFacts, SiteName
from deepcovid_edge.errors import OutputError
from deepcovid_edge.manifest import IndeterminateRange
from deepcovid_edge.pipeline.html_page import HtmlPage
from deepcovid_edge.reasons import NOTICE, Reason, WarningCode

RUN = RunFacts(
    "m",
    "ab" * 32,
    "onnxruntime-cpu",
    "fp32",
    ("normal", "covid"),
    "covid",
    0.5,
    indeterminate_range=IndeterminateRange(0.2, 0.6),
)
HOSTILE = (
    "<script>alert(1)</script>.png",
    "\"onerror='alert(1)' x=\".png",
    "&lt;b&gt;.png",
    "line\nbreak.png",
    "--><h1>.png",
    "$notice ${about}.png",
    "胸部 50% #1?.png",
    "byte-\udcff.png",
)


def record(
    path: str, probability: float | None = None, *warnings: str, overlay: Path | None = None
) -> Prediction:
    shares = None if probability is None else {"normal": 1 - probability, "covid": probability}
    drawn = None if overlay is None else str(overlay)
    return Prediction(path, RUN, warnings=warnings, probabilities=shares, overlay=drawn)


def not_assessed(path: str, reason: Reason) -> Prediction:
    return Prediction(path, RUN, reason=reason.code, message=f"{reason.sentence} (it is <4 x 4>)")


class Parsed(HTMLParser):
    """The rows of a page as lists of cells, each its attributes and text; its tags in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._in_cell = False
        self.rows: list[list[tuple[dict[str, str | None], str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_cell |= tag == "td"
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append((dict(attrs), ""))
        elif tag == "br":
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag != "td"

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            attributes, text = self.rows[-1][-1]
            self.rows[-1][-1] = (attributes, text + data)

    def texts(self) -> list[list[str]]:
        return [[text for _, text in row] for row in self.rows if row]

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(folder: Path, records: Sequence[Prediction], run: RunFacts = RUN) -> Parsed:
    page = HtmlPage(folder, run)
    page.begin()
    for one in records:
        page.write(one)
    page.close()
    return Parsed(page.path.read_text("utf-8"))


def test_a_row_tells_decision_and_probability(tmp_path: Path) -> None:
    records = [record("a.png", 0.7), record("b.png", 0.3), record("c.dcm", 0.0004)]
    found = written(tmp_path, records)
    assert [row[:3] for row in found.texts()] == [
        ["a.png", "▲ positive", "covid 0.700"],
        ["b.png", "◆ indeterminate", "covid 0.300"],
        ["c.dcm", "○ negative", "covid 0.000"],
    ]


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_an_image_without_a_result_has_its_reason_and_no_number(
    reason: Reason, tmp_path: Path
) -> None:
    found = written(tmp_path, [not_assessed("a.png", reason)])
    message = f"{reason.sentence} (it is <4 x 4>)"
    assert found.texts() == [["a.png", "! not assessed", "", message, ""]]


def test_warnings_are_sentences(tmp_path: Path) -> None:
    found = written(tmp_path, [record("a.png", 0.7, *(code.code for code in WarningCode))])
    assert found.texts()[0][3].split("\n") == [code.sentence for code in WarningCode]


def test_rows_sort_by_decision_and_by_the_whole_probability(tmp_path: Path) -> None:
    records = [
        *(record("a.png", 0.70001), record("b.png", 0.3), record("c.png", 0.7)),
        *(record("d.png", 0.001), not_assessed("e.png", Reason.BLANK)),
    ]
    rows = written(tmp_path, records).rows[1:]
    keys = [(row[1][0]["data-key"], row[2][0]["data-key"]) for row in rows]
    assert keys == [
        *(("0", "0.700010"), ("1", "0.300000"), ("0", "0.700000")),
        *(("2", "0.001000"), ("3", "")),
    ]


def test_the_page_says_what_decided(tmp_path: Path) -> None:
    def about(run: RunFacts) -> str:
        written(tmp_path, [], run)
        return (tmp_path / "index.html").read_text("utf-8")

    ranged = about(replace(RUN, site=SiteName("cart <1>", "00" * 32)))
    assert "Model m, variant fp32, on onnxruntime-cpu, site cart &lt;1&gt;." in ranged
    assert "Negative below 0.200, positive from 0.600." in ranged
    assert NOTICE in ranged
    assert "Positive from 0.500." in about(replace(RUN, indeterminate_range=None))


def test_names_of_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    records = [record(name, 0.7, overlay=tmp_path / "maps" / name) for name in HOSTILE]
    plain = written(tmp_path / "plain", [record("a.png", 0.7, overlay=tmp_path / "a.png")])
    found = written(tmp_path, records)
    shown = [name.replace("\udcff", "?") for name in HOSTILE]
    assert [row[0] for row in found.texts()] == shown
    assert [image["alt"] for image in found.every("img")] == [
        f"{Path(name).name}: where the network looked" for name in shown
    ]
    kinds = {(tag, *sorted(attributes)) for tag, attributes in plain.tags}
    assert {(tag, *sorted(attributes)) for tag, attributes in found.tags} == kinds
    assert len(found.every("script")) == 1


def test_every_part_of_a_hostile_name_leads_to_its_picture(tmp_path: Path) -> None:
    pictures = [tmp_path / "maps" / name for name in HOSTILE]
    found = written(tmp_path, [record(path.name, 0.7, overlay=path) for path in pictures])
    for image, link, path in zip(found.every("img"), found.every("a"), pictures, strict=True):
        place = urlsplit(str(image["src"]))
        assert link["href"] == image["src"]
        assert re.fullmatch(r"[\w./~%-]+", place.path, re.ASCII)
        assert (place.scheme, place.netloc, place.query, place.fragment) == ("", "", "", "")
        assert tmp_path / os.fsdecode(unquote_to_bytes(place.path)) == path


@pytest.mark.parametrize(
    ("page", "picture", "place"),
    [
        ("report", "report/maps/a.png", "maps/a.png"),
        ("report", "maps/a b.png", "../maps/a%20b.png"),
        ("out/deep/report", "elsewhere/a.png", "../../../elsewhere/a.png"),
        (".", "javascript:x/a.png", "javascript%3Ax/a.png"),
        ("report", "{here}/maps/a.png", "../maps/a.png"),
    ],
)
def test_links_are_relative_wherever_page_and_pictures_lie(
    page: str, picture: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overlay = Path(picture.format(here=tmp_path))
    found = written(Path(page), [record("a.png", 0.7, overlay=overlay)])
    assert [image["src"] for image in found.every("img")] == [place]


def test_a_row_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    page = HtmlPage(tmp_path, RUN)
    page.begin()
    page.write(record("a.png", 0.7), record("b.png", 0.1))
    assert len(Parsed(page.path.read_text("utf-8")).texts()) == 2
    page.close()
    page.close()
    assert page.path.read_text("utf-8").endswith("</html>\n")


def test_a_folder_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    why = "cannot be written: (File exists|Not a directory)"
    with pytest.raises(OutputError, match=rf"file/index\.html: {why}"):
        HtmlPage(tmp_path / "file", RUN)


def test_a_page_that_another_run_writes_is_refused(tmp_path: Path) -> None:
    page = HtmlPage(tmp_path, RUN)
    page.begin()
    page.write(record("a.png", 0.7))
    with pytest.raises(OutputError, match=r"index\.html: another deepcovid-edge is writing it"):
        HtmlPage(tmp_path, RUN)
    page.close()
    text = page.path.read_text("utf-8")
    assert (len(Parsed(text).texts()), text.count("</html>")) == (1, 1)


def test_an_earlier_page_stays_until_the_next_one_begins(tmp_path: Path) -> None:
    written(tmp_path, [record("a.png", 0.7)])
    earlier = (tmp_path / "index.html").read_text("utf-8")
    page = HtmlPage(tmp_path, RUN)
    page.close()
    assert page.path.read_text("utf-8") == earlier
    assert written(tmp_path, []).texts() == []


def test_a_full_disk_is_an_error_at_the_row_and_not_again_at_the_end(tmp_path: Path) -> None:
    page = HtmlPage(tmp_path, RUN)
    page.begin()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, page._stream.fileno())
    os.close(full)
    with pytest.raises(OutputError, match=r"index\.html: No space left on device"):
        page.write(record("a.png", 0.7))
    page.close()


# --- a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms, one under a hostile name, and a letter, in a folder of their own."""
    folder = tmp_path_factory.mktemp("place")
    phantom_files(folder / "images", count=2)
    (folder / "images/phantom_000.png").rename(folder / "images/<i>50% ü.png")
    (folder / "images/letter.jpg").write_text("Dear colleague")
    return folder


@pytest.fixture
def at_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_a_run_writes_a_page_whose_pictures_are_there(at_place: Path) -> None:
    done = command("infer", "images", "--html", "out/report", "-o", "records/r.jsonl")
    assert done.returncode == 4, done.stderr
    assert "The page is out/report/index.html." in done.stderr
    text = Path("out/report/index.html").read_text("utf-8")
    found = Parsed(text)
    assert [row[0] for row in found.texts()] == [
        *("images/<i>50% ü.png", "images/letter.jpg", "images/phantom_001.png"),
    ]
    places = [unquote_to_bytes(str(image["src"])) for image in found.every("img")]
    assert len(places) == 2
    for picture in places:
        assert picture.startswith(b"maps/")
        assert cv2.imread(os.fsdecode(b"out/report/" + picture)) is not None
    assert str(at_place) not in text
    assert not re.search(r"https?:|//", text.replace("<!doctype", ""))


def test_a_second_run_takes_no_file_of_the_first_for_an_image(at_place: Path) -> None:
    for _ in range(2):
        done = command("infer", "images", "--html", "images/report", "-o", "r.jsonl")
        found = Parsed(Path("images/report/index.html").read_text("utf-8"))
        assert [row[0] for row in found.texts()] == [
            *("images/<i>50% ü.png", "images/letter.jpg", "images/phantom_001.png"),
        ]
    assert "4 files of heat maps were passed over." in done.stderr
    done = command("infer", "images/report/index.html", "--html", "images/report", "-o", "r.jsonl")
    assert (done.returncode, "1 not assessed" in done.stderr) == (4, True)


def test_a_named_folder_for_the_maps_is_used(at_place: Path) -> None:
    image = "images/phantom_001.png"
    done = command("infer", image, "--html", "page", "--heatmap-dir", "own", "-o", "r.jsonl")
    assert done.returncode == 0, done.stderr
    (picture,) = Path("own").glob("*.png")
    found = Parsed(Path("page/index.html").read_text("utf-8"))
    assert [image["src"] for image in found.every("img")] == [f"../own/{picture.name}"]


def test_a_page_of_half_a_run_is_not_assessed(at_place: Path) -> None:
    done = command("infer", "images", "--html", "half", "-o", "r.jsonl", "--resume")
    assert done.returncode == 2
    assert "--html: got resume too, expected one of them" in done.stderr
    assert not Path("half").exists()


def test_a_page_that_cannot_be_written_ends_the_run_with_one_sentence(at_place: Path) -> None:
    Path("taken").write_text("")
    done = command("infer", "images", "--html", "taken", "-o", "r.jsonl")
    assert done.returncode == 2
    assert "taken" in done.stderr
    done = command("infer", "images", "--html", "taken/page", "-o", "r.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "taken" in done.stderr


# --- a browser ----------------------------------------------------------------------------------

SHOWN = "[...document.querySelectorAll('tbody tr')].filter(r => r.getBoundingClientRect().height)"
NAMES = f"{SHOWN}.map(row => row.cells[0].textContent)"
CONTRASTS = """(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => node && numbers(getComputedStyle(node).backgroundColor)[3] === 0
    ? behind(node.parentElement) : getComputedStyle(node).backgroundColor;
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  return [...document.body.querySelectorAll('*')]
    .filter(n => n.tagName !== 'SCRIPT' && [...n.childNodes].some(c => c.nodeType === 3 &&
      c.textContent.trim()))
    .map(n => [n.outerHTML.slice(0, 60), ratio(light(getComputedStyle(n).color),
      light(behind(n)))]);
})()"""
"""Each element with text of its own, and its contrast with what is behind it (WCAG 2.2, 1.4.3)."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a row of every result, long names and long sentences, and pictures."""
    folder = tmp_path_factory.mktemp("report")
    picture = folder.parent / "pictures of heat maps" / "50% #1.png"
    picture.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(picture), np.full((640, 1500), 40, np.uint8))
    records = [
        record("images/10.png", 0.7, WarningCode.SYNTHETIC.code, overlay=picture),
        record("images/9.png", 0.95, overlay=picture),
        not_assessed("images/2.png", Reason.BLANK),
        record("images/1.png", 0.3, *(code.code for code in WarningCode), overlay=picture),
        record(f"images/{'long' * 40}.png", 0.01, overlay=picture),
        *(not_assessed(name, Reason.VIEW) for name in HOSTILE),
    ]
    written(folder, records)
    return folder / "index.html"


def press(browser: Browser, key: str) -> None:
    text = {"Enter": "\r", " ": " "}.get(key, "")
    for kind in ("keyDown", "keyUp"):
        code = {"Enter": 13, " ": 32, "Tab": 9}[key]
        browser.call(
            "Input.dispatchKeyEvent",
            **{"type": kind, "key": key, "windowsVirtualKeyCode": code, "text": text},
        )


@needs_browser
def test_the_page_opens_with_its_pictures_and_nothing_else(browser: Browser, page: Path) -> None:
    browser.open(page)
    # Pictures are loaded lazily, so they may be asked for after the page's own event.
    loaded = "i => (i.loading = 'eager', i.decode().then(() => i.naturalWidth))"
    widths = browser.ask(f"Promise.all([...document.images].map({loaded}))")
    assert widths == [1500] * 4
    first, *others = browser.asked()
    assert first == page.as_uri()
    assert {place.rpartition("/")[2] for place in others} == {"50%25%20%231.png"}
    assert browser.complaints() == []
    assert browser.ask("document.title") == "deepcovid-edge: results"
    assert browser.ask(f"{SHOWN}.length") == 5 + len(HOSTILE)


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_buttons_filter_and_sort(browser: Browser, page: Path, width: int) -> None:
    browser.open(page)
    browser.show(width)
    for name, count in (("positive", 2), ("indeterminate", 1), ("negative", 1), ("", 13)):
        browser.ask(f"document.querySelector('[data-show=\"{name}\"]').click()")
        assert browser.ask(f"{SHOWN}.length") == count
        pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.dataset.show)"
        assert browser.ask(pressed) == [name]
    browser.ask("document.querySelector('[data-show=positive]').click()")
    for column, first in ((0, ["9", "10"]), (2, ["10", "9"])):
        head = f"document.querySelectorAll('th')[{column}]"
        for way, names in (("ascending", first), ("descending", first[::-1])):
            browser.ask(f"{head}.querySelector('button').click()")
            assert browser.ask(NAMES) == [f"images/{name}.png" for name in names]
            assert browser.ask(f"{head}.getAttribute('aria-sort')") == way
        assert browser.ask("document.querySelectorAll('[aria-sort]').length") == 1


@needs_browser
def test_the_keyboard_reaches_and_works_every_button(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.show(1280)
    reached = []
    for _ in range(8):
        press(browser, "Tab")
        reached.append(browser.ask("document.activeElement.textContent"))
        assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == [
        *("all", "▲ positive", "◆ indeterminate", "○ negative", "! not assessed"),
        *("image", "result", "covid"),
    ]
    press(browser, "Enter")
    assert browser.ask("document.activeElement.closest('th').ariaSort") == "ascending"
    press(browser, " ")
    assert browser.ask("document.activeElement.closest('th').ariaSort") == "descending"
    assert browser.ask(NAMES)[:2] == ["images/9.png", "images/10.png"]


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 861, 400])
def test_the_page_is_legible_and_fits(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page)
    picture = browser.show(width, dark=dark)
    assert bool(picture[2, 2].mean() < 60) is dark
    assert browser.ask("document.documentElement.scrollWidth") <= width
    contrasts = browser.ask(CONTRASTS)
    assert len(contrasts) > 40
    assert [found for found in contrasts if found[1] < 4.5] == []


@needs_browser
@needs_axe
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_keeps_people_from_reading_the_page(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page)
    browser.show(width, dark=dark)
    assert browser.barriers() == []


@needs_browser
@needs_axe
def test_a_page_that_keeps_people_from_reading_would_be_found_out(
    browser: Browser, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><html><title>bad</title><body><main><h1>x</h1>"
        "<p style='color: #ccc; background: #fff'>pale</p><img src='data:,'><button></button>"
        "<table><tr><th scope=col>a<td>b</table></main>"
    )
    browser.open(bad)
    browser.show(1280)
    rules = {rule for _, rule, _ in browser.barriers()}
    assert {"html-has-lang", "color-contrast", "image-alt", "button-name"} <= rules


@needs_browser
def test_the_page_speaks_to_a_screen_reader(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.ask("document.documentElement.lang") == "en"
    assert browser.ask("document.querySelectorAll('h1').length") == 1
    assert browser.ask("[...document.images].every(image => image.alt)")
    names = "[...document.querySelectorAll('button')].every(b => b.textContent.trim())"
    assert browser.ask(names)
    assert browser.ask("[...document.querySelectorAll('th')].every(h => h.scope === 'col')")
    browser.show(400)
    small = "[...document.querySelectorAll('button')].map(b => b.getBoundingClientRect().height)"
    assert min(browser.ask(small)) >= 44
