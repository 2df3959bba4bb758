"""A child is recognised from the picture: a part of the out-of-distribution limits."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx", reason="the workstation side needs extra export")
pytest.importorskip("sklearn", reason="the workstation side needs extra export")

from toned_chests import drawn, reasons, write_splits

from deepcovid_edge.backends import load_backend
from deepcovid_edge.cli.main import run
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model

SHIPPED = find_model("squeezenet1_1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn chests of adults."""
    return write_splits(tmp_path_factory.mktemp("images"))


def child(seed: int) -> np.ndarray:
    """A small chest: narrower, with more of what is around it."""
    small = cv2.resize(drawn(seed), None, fx=0.6, fy=0.75, interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, 20, 40, 50, 50, cv2.BORDER_REPLICATE)


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that a manifest marks as those of children."""
    folder = tmp_path_factory.mktemp("children")
    rows = ["path,label,split,paediatric"]
    for number in range(24):
        cv2.imwrite(str(folder / f"{number}.png"), child(1000 + number))
        rows.append(f"{number}.png,non,{'paediatric' if number % 2 else 'train'},1")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def test_children_are_recognised_where_images_of_them_are_given(
    data: Path, children: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "young.onnx"
    command = ["export", str(SHIPPED), "--fit", str(data), "--children", str(children)]
    assert run([*command, "-o", str(path)]) == 0
    facts = read_manifest(path).ood
    assert facts["parts"] == ["turned", "unrecognisable", "child"]
    assert facts["children"]["images"] == 24
    assert facts["children"]["patients"] == 24
    assert facts["children"]["recognised_held_out"] >= 18
    assert "children that the fit had not seen" in capsys.readouterr().err
    spec = read_manifest(path).input
    young = np.stack(
        [prepare(Radiograph(child(seed), 255, "", "PNG"), spec) for seed in range(2000, 2008)]
    )
    with load_backend(path) as backend:
        scores = backend.infer(young).ood_scores
    assert scores is not None
    assert (scores[:, facts["parts"].index("child")] > facts["limit"]).sum() >= 7
    adults = {f"image{seed}": drawn(seed) for seed in range(200, 216)}
    assert set(reasons(path, adults, tmp_path).values()) == {None}
    assert run(["export", str(path), "--fit", str(data), "-o", str(tmp_path / "again.onnx")]) == 0
    assert "children are not recognised any more" in capsys.readouterr().err


def test_too_few_children_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.onnx"
    command = ["export", str(SHIPPED), "--fit", str(data), "--children", str(data)]
    assert run([*command, "-o", str(output)]) == 1
    assert "got 0 images that are marked `paediatric`" in capsys.readouterr().err
    assert not output.exists()
