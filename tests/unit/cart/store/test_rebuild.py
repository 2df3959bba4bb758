"""A ledger is made again whatever lies beside the images: a foreign result is assessed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cart_store import DESTINATIONS, Store, open_store, record

from deepcovid_edge.cart.config import CartSettings
from deepcovid_edge.cart.page.images import find_image, list_images
from deepcovid_edge.cart.store.backup import back_up
from deepcovid_edge.cart.store.images import Settled
from deepcovid_edge.cart.store.ledger import LEDGER_NAME
from deepcovid_edge.cart.store.opening import open_store as open_as_a_role


def assessed(store: Store) -> Path:
    """Two images with a result; the record of the first one."""
    places = []
    for number in range(2):
        store.take(number)
        claimed = store.images.claim()
        assert claimed is not None
        objects = [store.built(claimed, kind) for kind in ("sr", "sc")]
        settled = Settled(record("positive"), objects, DESTINATIONS)
        places.append(store.write_record(claimed, settled))
    return places[0]


def states_after_loss(spool: Path) -> list[str]:
    """The states of the images in the ledger that is made again."""
    (spool / LEDGER_NAME).unlink()
    settings = CartSettings(spool, floor_mib=0, floor_share=0.0, ballast_mib=0)
    ledger, _ = open_as_a_role(settings)
    with ledger:
        return [row["state"] for row in ledger.rows("SELECT state FROM image ORDER BY id")]


def test_results_that_are_whole_are_taken_over(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assessed(store)
    assert states_after_loss(tmp_path) == ["assessed", "assessed"]


def test_an_image_with_a_changed_byte_is_not_taken_over(tmp_path: Path) -> None:
    """Its pixels would be assessed as those that were acknowledged."""
    with open_store(tmp_path) as store:
        assessed(store)
        damaged = store.spool.image(content_of(store, 1), ".dcm")
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert states_after_loss(tmp_path) == ["assessed"]
    with open_store(tmp_path) as store:
        assert content_of(store, 1) != damaged.stem
        (event,) = store.ledger.rows("SELECT detail FROM event WHERE kind = 'not rebuilt'")
    assert json.loads(event["detail"])["file"] == damaged.name


def content_of(store: Store, image_id: int) -> str:
    row = store.ledger.row("SELECT content_sha256 FROM image WHERE id = ?", image_id)
    assert row is not None
    return str(row["content_sha256"])


def test_the_time_that_objects_state_is_that_of_the_new_ledger(tmp_path: Path) -> None:
    """An image that comes again is given it, so that its objects have the same bytes."""
    made = "2026-12-01T10:00:00.000+00:00"
    with open_store(tmp_path) as store:
        store.take()
        claimed = store.images.claim()
        assert claimed is not None
        objects = [store.built(claimed, kind) for kind in ("sr", "sc")]
        store.write_record(claimed, Settled(record("positive"), objects, DESTINATIONS, made))
    assert states_after_loss(tmp_path) == ["assessed"]
    with open_store(tmp_path) as store:
        assert [row["made_utc"] for row in store.ledger.rows("SELECT * FROM result")] == [made]


def test_images_of_the_copy_are_listed_by_when_they_came(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for number in range(2):
            store.take(number)
        store.take(0)
        for _ in range(2):
            store.assess(kinds=())
        names = [content_of(store, number) for number in (1, 2)]
        with store.ledger.transaction() as now:
            now.execute("UPDATE image SET state = 'expired'")
            now.execute("UPDATE arrival SET at_utc = '2026-12-0' || id || 'T10:00:00.000+00:00'")
        for name in names:
            store.spool.delete(name, ".dcm")
        back_up(store.spool.folder, tmp_path / "backup", keep=1)
    assert states_after_loss(tmp_path) == ["expired", "expired"]
    with open_store(tmp_path) as store:
        listed = list_images(store.ledger, store.spool).rows
        shown = find_image(store.ledger, store.spool, 2)
    days = [(row.image_id, row.received[:10]) for row in listed]
    assert days == [(1, "2026-12-03"), (2, "2026-12-02")]
    assert shown is not None
    assert shown.row == listed[1]


def lacks(*keys: str) -> Callable[[dict[str, Any]], object]:
    """A change that removes a value."""

    def change(values: dict[str, Any]) -> object:
        *above, last = keys
        for key in above:
            values = values[key]
        return values.pop(last)

    return change


def has(value: object, *keys: str) -> Callable[[dict[str, Any]], object]:
    """A change that replaces a value."""

    def change(values: dict[str, Any]) -> object:
        *above, last = keys
        for key in above:
            values = values[key]
        values[last] = value
        return values

    return change


def first_object(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    """A change of the first object."""
    return lambda values: values["objects"][0].update({name: value})


FOREIGN: dict[str, Callable[[dict[str, Any]], object]] = {
    "no record": lacks("record"),
    "no destinations": lacks("destinations"),
    "no time": lacks("made"),
    "time is a number": has(7, "made"),
    "time is none": has("yesterday", "made"),
    "no list of objects": has(7, "objects"),
    "objects of another kind": has(["a.dcm"], "objects"),
    "record is a list": has([], "record"),
    "record is null": has(None, "record"),
    "record is empty": has({}, "record"),
    "no model": lacks("record", "model_sha256"),
    "model is a number": has(7, "record", "model_sha256"),
    "site is text": has("site.json", "record", "site"),
    "site has no hash": has({"name": "A"}, "record", "site"),
    "unknown decision": has("perhaps", "record", "decision"),
    "decision is a list": has([], "record", "decision"),
    "unknown reason": has("E_OTHER", "record", "reason"),
    "score is text": has("high", "record", "probability"),
    "score is infinite": has(float("inf"), "record", "probability"),
    "destinations are a list": has(["pacs"], "destinations"),
    "kinds are a number": has({"pacs": 7}, "destinations"),
    "kind of an object is a list": first_object("kind", ["sr"]),
    "object has a number for a name": first_object("name", 7),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_one_foreign_record_stops_nothing(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    with open_store(tmp_path) as store:
        place = assessed(store)
    values = json.loads(place.read_text())
    change(values)
    place.write_text(json.dumps(values))
    assert states_after_loss(tmp_path) == ["received", "assessed"]


@pytest.mark.parametrize("text", ["[]", "null", "7", "no JSON", ""])
def test_a_record_that_is_no_mapping_stops_nothing(tmp_path: Path, text: str) -> None:
    with open_store(tmp_path) as store:
        assessed(store).write_text(text)
    assert states_after_loss(tmp_path) == ["received", "assessed"]


def test_an_object_that_lies_elsewhere_is_not_that_of_the_result(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        place = assessed(store)
    values = json.loads(place.read_text())
    name = values["objects"][0]["name"]
    elsewhere = tmp_path / name
    elsewhere.write_bytes((place.parent / name).read_bytes())
    values["objects"][0]["name"] = str(elsewhere)
    place.write_text(json.dumps(values))
    assert states_after_loss(tmp_path) == ["received", "assessed"]
