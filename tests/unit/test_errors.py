"""What is said of an optional package that is not there, or does not work."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcovid_edge.errors import MissingDependencyError, require


@pytest.mark.parametrize(
    ("module", "state"),
    [
        ("absent", "absent is not installed"),
        ("absent.part", "absent is not installed"),
        ("email.absent", "email.absent is not installed"),
        ("half", "half is installed but broken (No module named 'absent')"),
        (
            "half_package.part",
            "half_package.part is installed but broken (No module named 'half_')",
        ),
    ],
)
def test_a_package_without_which_a_module_is_not_there_is_not_called_broken(
    module: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.py").write_text("import absent\n")
    (tmp_path / "half_package").mkdir()
    (tmp_path / "half_package" / "__init__.py").write_text("import half_\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError) as caught:
        require(module, extra="archive")
    assert str(caught.value) == f"{state}: pip install 'deepcovid-edge[archive]'"
