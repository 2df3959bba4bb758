"""The result that holds is that of the model that answered last, though it had answered before."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cart_store import DESTINATIONS, KINDS, Store, open_store, record

from deepcovid_edge.cart.config import CartSettings
from deepcovid_edge.cart.page.images import find_image, list_images, picture_of
from deepcovid_edge.cart.page.statistics import read_statistics
from deepcovid_edge.cart.pictures import MAP
from deepcovid_edge.cart.store.backup import back_up, restore
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cart.store.ledger import LEDGER_NAME
from deepcovid_edge.cart.store.opening import open_store as open_as_a_role
from deepcovid_edge.cart.store.retention import RetentionSettings, delete_old
from deepcovid_edge.cart.work.drift import DriftWatch

FIRST, SECOND = "a" * 64, "b" * 64


def answer(store: Store, model: str, decision: str | None) -> None:
    """Take the image and settle it with the answer of a model."""
    store.take()
    claimed = store.images.claim()
    assert claimed is not None
    objects = [store.built(claimed, kind) for kind in KINDS]
    settled = Settled(record(decision) | {"model_sha256": model}, objects, DESTINATIONS)
    store.write_record(claimed, settled)
    store.images.settle(claimed, settled)


def delete(store: Store) -> None:
    """Delete the files of the image, which every destination has the answer to."""
    with store.ledger.transaction() as now:
        now.execute("UPDATE outbox SET state = 'sent'")
    time.sleep(0.002)
    assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 1


def shown(store: Store) -> tuple[str | None, str]:
    """Decision and model that the page shows of the image, in the list too."""
    found = find_image(store.ledger, store.spool, 1)
    assert found is not None
    assert list_images(store.ledger, store.spool).rows[0].decision == found.row.decision
    assert found.results[0]["model_sha256"] == found.record["model_sha256"]
    return found.row.decision, found.record["model_sha256"]


@pytest.mark.parametrize("decisions", [("positive", "negative"), ("positive", None)])
def test_after_a_rollback_the_page_shows_the_answer_of_the_model_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decisions: tuple[str, str | None]
) -> None:
    compared = list[str]()
    monkeypatch.setattr(DriftWatch, "_compare", lambda _, model, __: compared.append(model))
    with open_store(tmp_path) as store:
        answer(store, FIRST, decisions[0])
        delete(store)
        answer(store, SECOND, decisions[1])
        assert shown(store) == (decisions[1], SECOND)
        delete(store)
        answer(store, FIRST, decisions[0])
        (store.spool.results(find_content(store)) / MAP).write_bytes(b"map")
        assert shown(store) == (decisions[0], FIRST)
        assert picture_of(store.ledger, store.spool, 1, "map") == b"map"
        statistics = read_statistics(store.ledger)
        DriftWatch(store.ledger).look()
    assert statistics.kinds["positive"] == statistics.total == 1
    assert statistics.drift.reference == [0.9]
    assert compared == [FIRST]


def find_content(store: Store) -> str:
    (row,) = store.ledger.rows("SELECT content_sha256 FROM image")
    return str(row["content_sha256"])


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_ledger_that_is_made_again_has_it_too(tmp_path: Path, is_deleted: bool) -> None:
    with open_store(tmp_path) as store:
        for model, decision in ((FIRST, "positive"), (SECOND, "negative")):
            answer(store, model, decision)
            delete(store)
        answer(store, FIRST, "positive")
        if is_deleted:
            delete(store)
        back_up(tmp_path, tmp_path / "backup", keep=1)
    (tmp_path / LEDGER_NAME).unlink()
    settings = CartSettings(tmp_path, floor_mib=0, floor_share=0.0, ballast_mib=0)
    open_as_a_role(settings)[0].close()
    with open_store(tmp_path) as store:
        assert store.states() == ["expired" if is_deleted else "assessed"]
        assert shown(store) == ("positive", FIRST)


def test_a_copy_from_before_the_last_answer_gets_it_from_the_files(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        answer(store, FIRST, "positive")
        delete(store)
        answer(store, SECOND, "negative")
        copy = back_up(tmp_path, tmp_path / "backup", keep=1)
        delete(store)
        answer(store, FIRST, "positive")
        assert restore(store.spool, copy) == 0
    with open_store(tmp_path) as store:
        assert shown(store) == ("positive", FIRST)
        assert store.events().count("assessed") == 3


def test_a_copy_from_before_the_same_model_answered_again_gets_it_from_the_files(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path) as store:
        answer(store, FIRST, "negative")
        copy = back_up(tmp_path, tmp_path / "backup", keep=1)
        delete(store)
        answer(store, FIRST, "positive")
        assert restore(store.spool, copy) == 0
    with open_store(tmp_path) as store:
        assert shown(store) == ("positive", FIRST)
        settled = store.events().count("assessed")
        assert restore(store.spool, back_up(tmp_path, tmp_path / "backup", keep=1)) == 0
    with open_store(tmp_path) as store:
        assert store.events().count("assessed") == settled, "it has that answer already"
