"""The report in a real browser: it asks for nothing, and its curves and tables are to be seen."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

for needed in ("sklearn", "matplotlib", "jinja2", "onnx"):
    pytest.importorskip(needed, reason=f"{needed} (extra export) makes the report")

import onnx
from browser import Browser, needs_axe, needs_browser
from commands import Done, command
from drawn_once import drawn_phantom
from terminal import on_terminal

from deepcovid_edge.manifest import METADATA_KEY
from deepcovid_edge.models import find_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen phantoms as a data set with patients, sources and views, and one broken file."""
    folder = tmp_path_factory.mktemp("data")
    rows = ["path,label,split,patient,source,view"]
    for number in range(18):
        path = folder / f"phantom{number:02d}.png"
        image = drawn_phantom(number, opacities=2 * (number % 4))
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
    assert "not assessed: 1 image: E_NOT_IMAGE" in done.stdout
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
    assert comparison["auc"] == {"change": 0.0}  # no rank changed, so there is no interval


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
@needs_axe
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_keeps_people_from_reading_the_report(
    browser: Browser, report: Path, width: int, dark: bool
) -> None:
    browser.open(report / "report.html")
    browser.show(width, dark=dark)
    assert browser.barriers() == []


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


def test_a_terminal_shows_how_many_images_are_done(data: Path) -> None:
    words = ("evaluate", "squeezenet1_1", data, "--split", "test", "--no-shortcuts")
    done = on_terminal([sys.executable, "-m", "deepcovid_edge", *map(str, words)])
    assert done.returncode == 4, done.terminal
    assert re.findall(r"images .*?(\d+)/19", done.terminal)[-1] == "19"
    assert "AUC" in done.stdout


def test_figures_alone_are_written_as_json_and_read_no_image_twice(
    data: Path, tmp_path: Path
) -> None:
    done = evaluate("squeezenet1_1", data, "--split", "test", "-o", tmp_path / "x.json", "--json")
    assert done.returncode == 4, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    figures = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert figures == json.loads(done.stdout)
    assert figures["shortcuts"] is None
