"""What a server says of its model, and its records: what is damaged is refused as such."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepcovid_edge.backends.remote.backend import RemoteBackend
from deepcovid_edge.backends.remote.client import Address, Client
from deepcovid_edge.errors import ServerMismatchError
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.reasons import WarningCode

ADDRESS = "kserve://127.0.0.1:9"
SHA256, IMAGE_SHA256 = "ab" * 32, "cd" * 32
MANIFEST = json.loads(ModelManifest("net", "resnet18", ("non", "covid"), "covid", 0.25).to_json())
FACTS = {
    "version": "1",
    "model_sha256": SHA256,
    "parents": [],
    "backend": "onnxruntime-cpu",
    "warnings": [WarningCode.UNVERIFIED.code],
    "run_warnings": [],
    "ood": "reject",
    "manifest": MANIFEST,
}
RECORD: dict[str, Any] = {
    "sha256": IMAGE_SHA256,
    "model_sha256": SHA256,
    "warnings": [],
    "timings_ms": {},
    "probabilities": None,
    "reason": "E_BLANK",
    "message": "Blank.",
}


def backend_of(facts: dict[str, Any]) -> RemoteBackend:
    return RemoteBackend(Client(Address.of(ADDRESS), "net"), ADDRESS, facts)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            {"manifest": {**MANIFEST, "threshold": "high"}},
            "damaged facts of its model: .*threshold",
        ),
        ({"manifest": {**MANIFEST, "classes": []}}, "damaged facts of its model: "),
        ({"manifest": 7}, "damaged facts of its model: "),
        ({"parents": None}, "damaged facts of its model: "),
        ({"warnings": ["W_NEW"]}, "damaged facts of its model: .*W_NEW"),
        ({"warnings": 3}, "damaged facts of its model: "),
    ],
)
def test_facts_that_are_damaged_are_no_model(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(ServerMismatchError, match=why):
        backend_of({**FACTS, **changed})


@pytest.mark.parametrize("name", FACTS)
def test_a_fact_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(ServerMismatchError, match=f"the server does not say '{name}'"):
        backend_of({key: value for key, value in FACTS.items() if key != name})


@pytest.mark.parametrize("reason", ["E_NEW", None, ["E_BLANK"], 7])
def test_a_record_with_a_reason_that_is_none_is_damaged(
    reason: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = iter([RECORD, {**RECORD, "reason": reason}])
    monkeypatch.setattr(Client, "record", lambda *_: next(records))
    backend = backend_of(FACTS)
    assert backend.warnings == (WarningCode.UNVERIFIED,)
    assert backend.assess(b"image", IMAGE_SHA256, ".png") == RECORD
    with pytest.raises(ServerMismatchError, match="a record is damaged"):
        backend.assess(b"image", IMAGE_SHA256, ".png")
