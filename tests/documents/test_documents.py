"""Documents do not lie: README commands run and print what it says, tables and cards are fresh."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_once import drawn_phantom

import deepcovid_edge
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.imaging.synthetic.phantom import save_phantom
from deepcovid_edge.reasons import Reason

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
# Without a network there are no ImageNet weights, and one epoch shows the way as well as 24.
SHORTER = {"deepcovid-edge train": " --from-scratch --epochs 1"}
# The environment that runs this test is already the result of these.
NOT_RUN = ("pip install", "python3 -m venv")
WORKSTATION = ("deepcovid-edge train", "deepcovid-edge export", "runs/", "first.onnx")
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?:e-\d+)?(?![\w.])")
TIMING = re.compile(r'("(?:read|preprocess|infer|total)": )\d+(?:\.\d+)?')
DIGEST = re.compile(r"[0-9a-f]{64}")
TOLERANCE = 0.003
"""Of a number in an output: processors differ in the last bits, records have six decimals."""


def blocks(page: str, language: str) -> str:
    text = (ROOT / page).read_text("utf-8")
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))


def steps(page: str) -> list[tuple[str, str]]:
    """Commands of the console blocks of a page and what they print."""
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).+\n)*)", blocks(page, "console"), re.MULTILINE)


def is_workstation(command: str) -> bool:
    return any(part in command for part in WORKSTATION)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each page, in which its commands run in their order."""
    return {page: tmp_path_factory.mktemp("page") for page in PAGES}


@pytest.fixture(scope="module")
def data(places: dict[str, Path]) -> None:
    """The folder `data` to train on: 24 phantoms of each class."""
    for seed in range(24):
        for label, opacities in (("normal", 0), ("covid", 5)):
            path = places["README.md"] / "data" / label / f"{label}{seed:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = drawn_phantom(seed, opacities=opacities)
            small = cv2.resize(image, (300, 300), interpolation=cv2.INTER_CUBIC)
            save_phantom(small.astype(np.uint8), path)


def test_readme_shows_the_whole_way() -> None:
    commands = " ".join(command for command, _ in steps("README.md"))
    for verb in ("sample", "infer", "heatmap"):
        assert f"deepcovid-edge {verb}" in commands


@pytest.mark.parametrize(
    ("page", "command", "expected"),
    [
        pytest.param(
            page,
            *step,
            id=f"{page}: {step[0]}",
            marks=[pytest.mark.slow] * is_workstation(step[0]),
        )
        for page in PAGES
        for step in steps(page)
        if not step[0].startswith(NOT_RUN)
    ],
)
def test_a_command_does_what_its_page_says(
    places: dict[str, Path], request: pytest.FixtureRequest, page: str, command: str, expected: str
) -> None:
    """The commands of a page run in their order, in one folder."""
    if is_workstation(command):
        pytest.importorskip("torch", reason="the workstation side needs extra export")
        request.getfixturevalue("data")
    for start, more in SHORTER.items():
        if command.startswith(start):
            command += more
    done = shell(command, places[page])
    not_assessed = re.search(r"\b[1-9]\d* not assessed", expected)
    assert done.returncode == (4 if not_assessed else 0), done.stderr
    if expected:
        assert_alike(done.stdout + done.stderr, expected)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "pycon")])
def test_python_does_what_its_page_says(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """On the images that the page's commands write."""
    monkeypatch.chdir(places[page])
    if not any(places[page].iterdir()):  # the tests of its commands were not run
        for command, _ in steps(page):
            if command.startswith("deepcovid-edge sample"):
                assert shell(command, places[page]).returncode == 0
    example = doctest.DocTestParser().get_doctest(blocks(page, "pycon"), {}, page, None, 0)
    assert example.examples
    results = doctest.DocTestRunner(checker=Alike()).run(example)
    assert results.failed == 0


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=280,
    )


class Alike(doctest.OutputChecker):
    """Holds Python's output against the documented one as that of a command is."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        assert_alike(got, want)
        return True


def assert_alike(output: str, expected: str) -> None:
    """The same words and, within `TOLERANCE`, the same numbers; timings and digests differ."""
    words, numbers = words_and_numbers(output)
    documented_words, documented_numbers = words_and_numbers(expected)
    assert words == documented_words
    assert numbers == pytest.approx(documented_numbers, abs=TOLERANCE)


def words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    """Words, however they are folded into lines, and the decimal numbers among them."""
    text = TIMING.sub(r"\1-", DIGEST.sub("-", text))
    return NUMBER.sub("#", text).split(), [float(number) for number in NUMBER.findall(text)]


def test_numbers_in_documents_are_compared_with_a_tolerance() -> None:
    assert_alike('a  0.310 {"read": 61.083}', 'a\n0.312 {"read": 9}')
    for other in ("a 0.320", "b 0.310", "a 0.310 c", "a 1"):
        with pytest.raises(AssertionError):
            assert_alike("a 0.310", other)


def test_generated_tables_are_fresh() -> None:
    command = [sys.executable, "-m", "benchmarks.tables.write", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_model_cards_are_those_of_the_shipped_models() -> None:
    from deepcovid_edge.backends import INT8_CPU_SUFFIX
    from deepcovid_edge.models import shipped_models
    from deepcovid_export.report.model_card import card_from_results

    cards = [path for name, path in shipped_models().items() if INT8_CPU_SUFFIX not in name]
    assert cards
    for path in cards:
        fresh = card_from_results(path, ROOT / "benchmarks/results/accuracy")
        assert path.with_suffix(".md").read_text("utf-8") == fresh


def test_the_pages_build_offline_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the pages need extra docs")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), ".", str(tmp_path / "pages")],
        cwd=ROOT,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    pages = [path.read_text("utf-8") for path in (tmp_path / "pages").rglob("*.html")]
    assert len(pages) > 12
    loaded = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="https?://')
    assert not any(loaded.search(page) for page in pages)


def test_every_link_in_the_documents_leads_somewhere() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    for name in listed.stdout.splitlines():
        document = ROOT / name
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text("utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{name}: {target}"


def test_the_radiographers_page_quotes_reasons_as_records_have_them() -> None:
    text = (ROOT / "docs/radiographers.md").read_text("utf-8")
    section = text.split("## When an image was not assessed")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| (?!sentence|---)(.+?) \|", section, re.M)
    assert {Reason.OOD.sentence, Reason.DECODE.sentence} <= set(quoted)
    assert set(quoted) <= {reason.sentence for reason in Reason}


def test_the_api_page_names_everything_that_is_exported() -> None:
    text = (ROOT / "docs/reference/api.md").read_text("utf-8")
    named = re.findall(r"deepcovid_edge\.(\w+)$", text, re.M)
    assert sorted([*named, "__version__"]) == sorted(deepcovid_edge.__all__)


def test_the_install_page_names_every_extra_of_a_user() -> None:
    text = (ROOT / "docs/install.md").read_text("utf-8")
    named = re.findall(r"^\| `(\w+)` \|", text.split("## ")[0], re.M)
    stated = metadata("deepcovid-edge").get_all("Provides-Extra") or []
    assert set(named) == set(stated) - {"docs", "dev"}


def test_the_records_page_names_every_field() -> None:
    record = Prediction("a.png", RunFacts("m", "0" * 64, "b", "fp32", ("a", "b"), "a", 0.5))
    text = (ROOT / "docs/reference/records.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.+?) \|", text, re.M)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == [*record.as_dict()]


def test_readme_has_at_most_three_badges() -> None:
    assert README.count("![") <= 3


def test_rooms_import_only_what_stands_above_them_in_the_architecture_page() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    rows = [
        re.findall(r"`(\w+)(?:/|\.py)`", cell) for cell in re.findall(r"^\| (`.*?) \|", text, re.M)
    ]
    level = {room: number for number, row in enumerate(rows) for room in row}
    assert level["errors"] < level["cli"]
    for path in (ROOT / "deepcovid_edge").rglob("*.py"):
        room = path.relative_to(ROOT / "deepcovid_edge").parts[0].removesuffix(".py")
        if not room.startswith("__"):
            imported = re.findall(r"^ *from deepcovid_edge\.(\w+)", path.read_text("utf-8"), re.M)
            above = {name for name, place in level.items() if place <= level[room]}
            assert set(imported) <= above, path
