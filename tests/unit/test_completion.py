"""Tab completion in a real bash, as `docs/install.md` sets it up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ASK = """
source <(_DEEPCOVID_EDGE_COMPLETE=bash_source deepcovid-edge) || exit 1
COMP_WORDS=("$@" ) COMP_CWORD=$(($# - 1))
complete -p deepcovid-edge
compopt() { echo "compopt $*"; }
_deepcovid_edge_completion deepcovid-edge
echo "${COMPREPLY[@]}"
"""
_PROGRAM = """#!{python}
import sys
from deepcovid_edge.cli.main import main
try:
    main()
finally:
    heavy = {{"numpy", "cv2", "PIL", "onnxruntime", "rich", "torch", "onnx"}} & set(sys.modules)
    print(*sorted(heavy), file=sys.stderr, end="")
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program; at its end it names the slow libraries that it has loaded."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "deepcovid-edge"
    program.write_text(_PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["inf"], "infer info"),
        (["evaluate", "--shortc"], "--shortcuts"),
        (["infer", "--ht"], "--html"),
        (["infer", "--heatmap", ""], "occlusion activation"),
        (["infer", "imag"], "compopt -o default"),
        (["nonsense", "x"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_offers_what_fits_and_loads_no_library(
    words: list[str], offered: str, programs: Path
) -> None:
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", _ASK, "bash", "deepcovid-edge", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first == "complete -o nosort -F _deepcovid_edge_completion deepcovid-edge"
    assert " ".join(rest).strip() == offered
