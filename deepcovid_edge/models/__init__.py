"""The models that ship with the package, found by name."""

from __future__ import annotations

from pathlib import Path

from deepcovid_edge.errors import NotThereError

DEFAULT_MODEL = "squeezenet1_1"
_FOLDER = Path(__file__).parent


def shipped_models() -> dict[str, Path]:
    """Names and files of the shipped models, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.onnx"), key=lambda path: path.stem)}


def find_model(name: str) -> Path:
    """The file of a shipped model, or the path itself.

    Raises:
        NotThereError: There is neither such a model nor such a file.
    """
    shipped = shipped_models()
    path = shipped.get(name, Path(name))
    if not path.is_file():
        known = ", ".join(shipped) or "none"
        raise NotThereError(
            f"model: got {name!r}, expected a shipped model ({known}) or a model file"
        )
    return path
