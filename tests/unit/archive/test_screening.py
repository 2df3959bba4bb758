"""What people read of a run over an archive, and whether it needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepcovid_edge.archive import screening as screening_module
from deepcovid_edge.archive.screening import Screening, ScreenSettings
from deepcovid_edge.archive.shards import Counts
from deepcovid_edge.errors import NotThereError


@pytest.mark.parametrize(
    ("images", "summary", "first_note", "note"),
    [
        (
            1,
            "1 image done: 0 positive, 0 negative, 1 not assessed. 1 image was done before",
            "1 image could not be read before: their shards, 1 image in all, are assessed again.",
            "1 image could not be read: the same command tries again.",
        ),
        (
            2,
            "2 images done: 0 positive, 0 negative, 2 not assessed. 2 images were done before",
            "2 images could not be read before: their shards, 2 images in all, are assessed again.",
            "2 images could not be read: the same command tries again.",
        ),
    ],
)
def test_one_image_is_not_images(images: int, summary: str, first_note: str, note: str) -> None:
    counts = Counts(not_assessed=images, unreadable=images)
    screening = Screening(before=counts, now=counts, again=counts, unread=images)
    assert screening.summary("done") == summary
    assert [*screening.first_notes()] == [first_note]
    assert [*screening.notes()] == [note]


def settings_of(folder: Path, **model: Any) -> ScreenSettings:
    return ScreenSettings(folder / "m.parquet", folder / "r", model)


@pytest.mark.parametrize("chosen", ["net.engine", "net.onnx"])
def test_a_worker_is_not_limited_where_auto_takes_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    def choose(model: str, **keywords: Any) -> Path:
        asked.append((model, keywords))
        return tmp_path / chosen

    monkeypatch.setattr(screening_module, "choose_file", choose)
    settings = settings_of(tmp_path, model="net", variant="auto", backend="auto", provider=None)
    is_engine = chosen.endswith(".engine")
    assert settings.on_gpu is is_engine
    assert settings.worker(1).is_limited is not is_engine
    keywords = {"variant": "auto", "named": False, "site_model_sha256": None}
    assert asked == [("net", keywords)], "the file is chosen once, as `Model` chooses it"


@pytest.mark.parametrize(
    ("model", "on_gpu"),
    [
        ({"variant": "fp32"}, False),
        ({"backend": "onnxruntime"}, False),
        ({"provider": "cpu"}, False),
        ({"provider": "cuda"}, True),
        ({"backend": "kserve://127.0.0.1:1"}, False),
    ],
)
def test_what_is_asked_for_says_whether_a_gpu_is_needed(
    tmp_path: Path, model: dict[str, Any], on_gpu: bool
) -> None:
    assert settings_of(tmp_path, **model).on_gpu is on_gpu


def test_an_engine_that_is_named_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match=r"net\.engine"):
        settings_of(tmp_path, model=str(tmp_path / "net.engine")).worker(1)
    (tmp_path / "net.engine").touch()
    assert settings_of(tmp_path, model=str(tmp_path / "net.engine")).on_gpu
