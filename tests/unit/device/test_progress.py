"""The bar that shows how many images are done, and that nothing but a terminal gets it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import on_terminal

from deepcovid_edge.device.progress import number_of
from deepcovid_edge.imaging.synthetic.clinic_folder import write_phantoms

GOLDEN = Path(__file__).parents[3] / "jetson/golden"
COMMAND = [sys.executable, "-m", "deepcovid_edge"]
BAR = """
import sys, time
from deepcovid_edge.device.progress import progress_bar
with progress_bar(7, "slices") as progress:
    for done in (2, 4, 1):
        time.sleep(0.15)
        progress(done)
print("rich" in sys.modules)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two images."""
    folder = tmp_path_factory.mktemp("data")
    for label, name in (("normal", "below"), ("covid", "above")):
        (folder / label).mkdir()
        shutil.copy(GOLDEN / f"{name}.png", folder / label)
    return folder


def test_one_is_not_several() -> None:
    assert [number_of(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert number_of(1, "image was", "images were") == "1 image was"
    assert number_of(3, "image was", "images were") == "3 images were"


def test_a_terminal_shows_count_and_rate() -> None:
    done = on_terminal([sys.executable, "-c", BAR])
    assert done.returncode == 0, done.terminal
    counts = re.findall(r"slices .*?(\d)/7", done.terminal)
    assert (counts[0], counts[-1]) == ("0", "7")
    assert re.search(r"7/7 +[1-9][0-9.]*/s", done.terminal)


def test_elsewhere_nothing_is_shown_and_nothing_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_without_any_stderr_the_work_is_done() -> None:
    program = f"import sys; sys.stderr = None\n{BAR}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "False\n")


@pytest.mark.parametrize(
    "words",
    [("site-check",), ("verify", "squeezenet1_1", "squeezenet1_1")],
    ids=lambda words: words[0],
)
def test_commands_that_classify_a_data_set_show_it(words: tuple[str, ...], data: Path) -> None:
    done = on_terminal([*COMMAND, *words, str(data)])
    assert done.returncode == 3, done.terminal  # two images are too few
    assert re.findall(r"images .*?(\d)/2", done.terminal)[-1] == "2"
    assert "images" in done.stdout
    assert not re.search(r"\d/2 ", done.stdout)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of synthetic images with the splits train and val."""
    folder = tmp_path_factory.mktemp("splits")
    images = write_phantoms(folder, count=24)
    rows = ["path,label,split"]
    for number, image in enumerate(images):
        split = "val" if number >= 18 else "train"
        rows.append(f"{image.name},{('normal', 'covid')[number % 2]},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_quantize_shows_each_of_its_steps(splits: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx (extra export) quantises")
    words = ("quantize", "squeezenet1_1", "--precision", "int8", "--for", "cpu", "--images", "16")
    options = ("--calibration", splits, "--max-excluded", "0", "--sensitivity")
    done = on_terminal([*COMMAND, *words, *map(str, options), "-o", str(tmp_path / "made.onnx")])
    assert "verdict:" in done.terminal, done.terminal
    for step, total in (
        ("batches to calibrate on", "2"),
        ("layers to measure", "24"),
        ("layers to fit", r"\d+"),
        ("images to compare", "6"),
    ):
        assert re.search(rf"{step} .*?0/{total} .*-:--:--", done.terminal), step
    assert re.search(r"layers to measure .*? [0-9.]+/s +0:00:", done.terminal)
