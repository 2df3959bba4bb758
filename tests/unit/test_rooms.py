"""The rooms of the house: which may import which, and how large they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = {
    "deepcovid_edge": ROOT / "deepcovid_edge",
    "deepcovid_export": ROOT / "export/deepcovid_export",
    "benchmarks": ROOT / "benchmarks",
}
FLOORS = {
    "deepcovid_edge": (
        ("reasons",),
        ("errors",),
        ("files",),
        ("device", "models"),
        ("datasets",),
        ("manifest",),
        ("imaging", "decision"),
        ("backends",),
        ("pipeline",),
        ("heatmaps",),
        ("model",),
        ("validation", "run"),
        ("benchmarking",),
        ("cli",),
        ("serve",),
        ("cart", "archive"),
        ("__main__", "__init__"),
    ),
    "deepcovid_export": (
        ("__init__", "settings", "networks", "evaluation"),
        ("recipe", "onnx_export", "report"),
        ("data", "decision"),
        ("training", "quantization"),
        ("cli",),
    ),
}
"""Package -> its rooms, floor by floor from the ground. A room imports from floors below it."""


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of a package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in the file that stands."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def arrows(package: str) -> set[tuple[str, str]]:
    """Module -> module of every import within a package."""
    known = modules(PLACES[package])
    return {
        (name, target)
        for name, path in known.items()
        for target in imports(path, known)
        if target != name
    }


def drawn(package: str) -> str:
    """The floors as a picture in text, the roof first, with what each room imports."""
    found = {(room_of(a), room_of(b)) for a, b in arrows(package)}
    lines = []
    for number, floor in reversed(list(enumerate(FLOORS[package]))):
        for room in floor:
            below = sorted({b for a, b in found if a == room and b != room})
            lines.append(f"{number:>3}  {room:<14} -> {', '.join(below)}")
    return "\n".join(lines)


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_a_floor(package: str) -> None:
    rooms = {room_of(name) for name in modules(PLACES[package])}
    assert rooms == {room for floor in FLOORS[package] for room in floor}


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_goes_up(package: str) -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    wrong = [
        f"{a} imports {b}"
        for a, b in sorted(arrows(package))
        if (one := room_of(a)) != (other := room_of(b)) and floor[one] <= floor[other]
    ]
    assert not wrong, "\n".join([*wrong, "", drawn(package)])


@pytest.mark.parametrize("package", FLOORS)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    graph: dict[str, set[str]] = {}
    for a, b in arrows(package):
        graph.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}\n{drawn(package)}")


MOST_ENTRIES, MOST_MODULES, MOST_LINES, LONGEST_FUNCTION = 22, 14, 500, 60


NO_ROOMS = {"__pycache__", "__main__.py", "py.typed"}
"""What Python and typing ask for at the top of a package."""


def test_the_top_of_the_runtime_has_few_entries() -> None:
    top = {path.name for path in PLACES["deepcovid_edge"].iterdir()} - NO_ROOMS
    assert len(top) <= MOST_ENTRIES, sorted(top)


@pytest.mark.parametrize("package", PLACES)
def test_no_room_and_no_module_is_too_large(package: str) -> None:
    place = PLACES[package]
    rooms = {path for path in place.rglob("*") if path.is_dir() and any(path.glob("*.py"))}
    full = {str(room): len(list(room.glob("*.py"))) for room in rooms}
    assert not {room: count for room, count in full.items() if count > MOST_MODULES}
    long = {str(path): path.read_text("utf-8").count("\n") for path in place.rglob("*.py")}
    assert not {path: lines for path, lines in long.items() if lines > MOST_LINES}


def defined(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


@pytest.mark.parametrize("package", PLACES)
def test_no_function_is_longer_than_sixty_lines(package: str) -> None:
    long = [
        f"{path.name}: {node.name}"
        for path in PLACES[package].rglob("*.py")
        for node in defined(path)
        if isinstance(node, ast.FunctionDef)
        if (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]
    assert not long


@pytest.mark.parametrize("package", ["deepcovid_edge", "deepcovid_export"])
def test_every_public_name_is_annotated_and_documented(package: str) -> None:
    """Ruff asks for docstrings and mypy for types; this asks for both where neither looks."""
    bare = []
    for path in PLACES[package].rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        owners: list[ast.Module | ast.ClassDef] = [tree]
        owners += (node for node in tree.body if isinstance(node, ast.ClassDef))
        for owner in owners:
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name[0] == "_":
                    continue
                if getattr(owner, "name", "a")[0] != "_" and not ast.get_docstring(node):
                    bare.append(f"{path.name}: {node.name} has no docstring")
                if isinstance(node, ast.FunctionDef) and node.returns is None:
                    bare.append(f"{path.name}: {node.name} has no return type")
    assert not bare
