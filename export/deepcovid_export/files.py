"""Text files that a user asked for."""

from __future__ import annotations

from pathlib import Path

from deepcovid_edge.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Write a text file; its folder is created if needed.

    Raises:
        OutputError: The file cannot be written, or a name in it is not UTF-8.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise OutputError(f"{path}: an image's name is not UTF-8: rename it ({error})") from error
