"""Which images show how many inputs are out of distribution: none that the limits know."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for needed in ("onnx", "torch"):
    pytest.importorskip(needed, reason=f"{needed} (extra export) is needed to make models")

from benchmarks import ood

SPLITS = ("train", "val", "test", "external", "paediatric")


@pytest.mark.parametrize(
    ("facts", "measured"),
    [
        ({}, {"val", "test", "external", "paediatric"}),
        ({"children": {"images": 81}}, {"val", "test", "external"}),
    ],
)
def test_children_are_not_measured_by_a_model_that_was_fitted_on_them(
    facts: dict[str, Any], measured: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["path,label,split"]
    for split in SPLITS:
        (tmp_path / f"{split}.png").touch()
        rows.append(f"{split}.png,normal,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    monkeypatch.setattr(ood, "outcomes", lambda *_: {})
    backend: Any = SimpleNamespace(manifest=SimpleNamespace(ood=facts))
    found = ood.images(backend, tmp_path)
    assert {name for name in found if name in SPLITS} == measured
