"""The bar that shows how many images are done, and that nothing but a terminal gets it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import on_terminal

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
