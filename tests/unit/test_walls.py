"""The walls of the house: what imports what, what a wheel holds, what is documented."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import pytest
from commands import command as in_this_process
from drawn_once import drawn_phantom

from deepcovid_edge.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
RUNTIME = sorted((ROOT / "deepcovid_edge").rglob("*.py"))
WORKSTATION_ONLY = {
    *("torch", "torchvision", "onnx", "sklearn", "scipy", "matplotlib", "jinja2"),
    "deepcovid_export",
}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


PAGE = ROOT / "deepcovid_edge/cart/page"
SERVE = ROOT / "deepcovid_edge/serve"
OF_THE_PAGE = {"starlette", "uvicorn", "jinja2", "markupsafe", "prometheus_client"}


@pytest.mark.parametrize("path", RUNTIME, ids=lambda path: str(path.relative_to(ROOT)))
def test_runtime_imports_nothing_of_the_workstation(path: Path) -> None:
    """The page of the cart alone has templates."""
    forbidden = WORKSTATION_ONLY - (OF_THE_PAGE if PAGE in path.parents else set())
    assert not imported_names(path) & forbidden


def test_libraries_of_web_services_are_imported_in_their_rooms_alone() -> None:
    homes = {path.parent for path in RUNTIME if imported_names(path) & OF_THE_PAGE}
    assert homes == {PAGE, SERVE}
    servers = {path.parent for path in RUNTIME if imported_names(path) & {"httptools", "uvloop"}}
    assert servers <= {SERVE}


def test_the_server_loads_no_numpy_itself() -> None:
    """Its processes that assess decode images; it would be three times as large."""
    program = (
        "import sys\n"
        "import deepcovid_edge.serve.role\n"
        "heavy = {'numpy', 'cv2', 'PIL', 'pydicom', 'onnxruntime', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_loads_no_numpy_before_an_image_is_put_onto_it() -> None:
    """It would be as large again; and decoding images is the assessor's."""
    program = (
        "import sys\n"
        "import deepcovid_edge.cart.page.role, deepcovid_edge.cart.page.statistics\n"
        "heavy = {'numpy', 'cv2', 'PIL', 'pydicom', 'pynetdicom', 'highdicom', 'onnxruntime'}\n"
        "heavy |= {'prometheus_client'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_is_imported_in_one_module(runtime: str) -> None:
    homes = [path for path in RUNTIME if runtime in imported_names(path)]
    assert [path.name for path in homes] == [f"{runtime}.py"]


@pytest.mark.parametrize("library", ["pydicom", "imagecodecs"])
def test_libraries_of_dicom_are_imported_in_its_package_alone(library: str) -> None:
    homes = [path for path in RUNTIME if library in imported_names(path)]
    assert homes
    assert all("imaging/dicom/" in path.as_posix() for path in homes), homes


@pytest.mark.parametrize("library", ["ray", "duckdb"])
def test_libraries_of_the_archive_are_asked_for_in_its_room_alone(library: str) -> None:
    asked = re.compile(rf'require\("{library}\b')
    homes = [path for path in RUNTIME if asked.search(path.read_text("utf-8"))]
    assert homes
    assert all("archive" in path.parts for path in homes)


def test_every_runtime_module_imports_where_torch_is_forbidden() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in RUNTIME
        if path.name not in ("__init__.py", "__main__.py")
    ]
    program = (
        "import sys, importlib\n"
        "absent = ('torch', 'torchvision', 'onnx', 'sklearn', 'pydicom', 'imagecodecs')\n"
        "absent += ('pyarrow', 'duckdb', 'ray')\n"
        "for name in absent: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_waits_for_no_library() -> None:
    own = [name for name, entry in COMMANDS.items() if entry.module.startswith("deepcovid_edge.")]
    program = (
        "import sys\n"
        "from deepcovid_edge.cli.main import run\n"
        "heavy = {'cv2', 'numpy', 'PIL', 'onnxruntime', 'rich', 'torch', 'pydicom'}\n"
        "heavy |= {'starlette', 'uvicorn', 'jinja2', 'pyarrow', 'duckdb', 'ray'}\n"
        f"for command in [[], *[[name] for name in {own}]]:\n"
        "    assert run([*command, '--help']) == 0\n"
        "    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_image_s_record_needs_no_table_no_builder_and_no_pillow(tmp_path: Path) -> None:
    """Each of them would make a cold start longer by some hundredths."""
    image, output = tmp_path / "image.jpg", tmp_path / "out.jsonl"
    cv2.imwrite(str(image), drawn_phantom(0))
    program = (
        "import sys\n"
        "from deepcovid_edge.cli.main import run\n"
        f"assert run(['infer', {str(image)!r}, '-o', {str(output)!r}, '--ood', 'warn']) == 0\n"
        "builder = 'deepcovid_edge.backends.tensorrt.build'\n"
        "slow = {'rich', 'PIL', builder, 'pydicom', 'onnx', 'torch'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    env = {**os.environ, "DEEPCOVID_EDGE_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {info.filename: info.file_size for info in archive.infolist()}
    names["(wheel)"] = wheel.stat().st_size
    return names


def test_wheel_holds_both_packages_the_model_and_its_card(wheel_names: dict[str, int]) -> None:
    expected = {
        "deepcovid_edge/py.typed",
        "deepcovid_edge/models/squeezenet1_1.onnx",
        "deepcovid_edge/models/squeezenet1_1.md",
        "deepcovid_edge/pipeline/page.html",
        "deepcovid_edge/archive/summary.html",
        "deepcovid_edge/cart/page/static/page.js",
        "deepcovid_edge/cart/page/templates/home.html",
        "deepcovid_edge/cart/page/words/fa.json",
        "deepcovid_export/recipes/squeezenet1_1.toml",
        "deepcovid_export/report/templates/report.html.j2",
    }
    assert expected <= set(wheel_names)


def test_wheel_holds_nothing_else(wheel_names: dict[str, int]) -> None:
    tops = {name.partition("/")[0] for name in wheel_names} - {"(wheel)"}
    assert {re.sub(r"-.*", "", top) for top in tops} == {
        "deepcovid_edge",
        "deepcovid_export",
    }


def test_wheel_is_smaller_than_a_release_may_be(wheel_names: dict[str, int]) -> None:
    """`make release` stops at a larger one, after it was built."""
    stated = re.search(r"^MOST_BYTES = (\d+)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert stated is not None
    most = int(stated[1])
    assert most <= 6_000_000
    assert wheel_names["(wheel)"] < most


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_readme(command: str) -> None:
    assert f"`{command}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = in_this_process(command, "--help")
    assert done.returncode == 0
    assert f"Example: deepcovid-edge {command}" in done.stdout
