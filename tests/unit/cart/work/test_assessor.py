"""The worker's side of the assessor process: no answer is ever taken for another image."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cart_store import Store, record

from deepcovid_edge.cart.config import CartConfig, CartSettings, ReceiveSettings, read_config
from deepcovid_edge.cart.store.images import ClaimedImage
from deepcovid_edge.cart.toml_tables import read_settings
from deepcovid_edge.cart.work import assessor as module
from deepcovid_edge.cart.work.assessor import AssessorCrashedError, AssessorProcess

TEXT = """
[cart]
spool = "spool of a cart"
model = "mine.onnx"
site = "site.json"
heatmap = "occlusion"
budget = 2
floor_share = 0.1
keep_days = 7
[receive]
folders = ["in"]
"""
"""The model is a file beside it, and some keys are left out."""
MADE = "2026-12-01T10:00:00.000+00:00"
CHILD = f"""
import json, sys, time
record = json.loads({json.dumps(json.dumps(record(None)))})
print(json.dumps({{"ready": record, "backend": "fake"}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    time.sleep(float(sys.argv[1]))
    record["path"] = asked["path"]
    named = sys.argv[2] or asked["content_sha256"]
    answer = {{"record": record, "objects": [], "missing": [], "content_sha256": named}}
    print(json.dumps(answer), flush=True)
"""
"""An assessor that takes its time, and perhaps says that its answers are of another image."""


def started(tmp_path: Path, patched: pytest.MonkeyPatch, *how: object) -> AssessorProcess:
    command = [sys.executable, "-c", CHILD, *map(str, how)]
    patched.setattr(module, "ending_with_this", lambda _: command)
    receive = ReceiveSettings(folders=(tmp_path / "in",))
    config = CartConfig(tmp_path / "cart.toml", CartSettings(tmp_path / "spool"), receive)
    return AssessorProcess(config, "model", None)


def test_the_assessor_gets_the_settings_of_the_worker_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is being edited, or was moved, changes nothing before the next start."""
    commands: list[list[str]] = []

    def note(command: list[str]) -> list[str]:
        commands.append(command)
        return [sys.executable, "-c", CHILD, "0", ""]

    monkeypatch.setattr(module, "ending_with_this", note)
    (tmp_path / "cart.toml").write_text(TEXT)
    config = read_config(tmp_path / "cart.toml")
    (tmp_path / "cart.toml").write_text("[cart\n")
    with AssessorProcess(config, "model", None):
        *_, settings, model, site = commands[0]
    assert read_settings(CartSettings, settings) == config.cart
    assert (model, site) == ("model", "")
    assert not any("cart.toml" in word for word in commands[0])


@pytest.fixture
def image(store: Store) -> ClaimedImage:
    store.take()
    claimed = store.images.claim()
    assert claimed is not None
    return claimed


def test_an_answer_names_its_image(
    tmp_path: Path, image: ClaimedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path, monkeypatch, 0, "") as assessor:
        other = replace(image, content_sha256="other", path=Path("other"))
        for one in (image, other):
            settled = assessor.assess(one, {}, made=MADE)
            assert settled.record["path"] == str(one.path)


def test_an_answer_of_another_image_is_not_taken_and_ends_the_process(
    tmp_path: Path, image: ClaimedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path, monkeypatch, 0, "another") as assessor:
        with pytest.raises(AssessorCrashedError, match="is not of the image that was asked for"):
            assessor.assess(image, {}, made=MADE)
        with pytest.raises(AssessorCrashedError, match="ended"):
            assessor.ask(image, made=MADE)


def test_a_wait_that_fails_ends_the_process_so_that_its_answer_never_comes(
    tmp_path: Path, image: ClaimedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where no file handle is free, so that /proc cannot be listed."""

    def fails(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with started(tmp_path, monkeypatch, 1.5, "") as assessor:
        with monkeypatch.context() as patched:
            patched.setattr(module, "Patience", fails)
            with pytest.raises(AssessorCrashedError, match="Too many open files"):
                assessor.assess(image, {}, made=MADE)
        with pytest.raises(AssessorCrashedError, match="ended"):
            assessor.assess(replace(image, content_sha256="other"), {}, made=MADE)
