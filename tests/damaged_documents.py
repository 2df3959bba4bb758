"""Damaged site files, manifests, facts of engines and files of records, for `fuzz.py`.

A damaged document is rejected in one sentence, or read as the whole one: no traceback, and no other
threshold.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mutations import mutated_json, mutated_text

from deepcovid_edge.backends.tensorrt.files import (
    EngineFacts,
    Fit,
    Profile,
    facts_path,
    read_facts,
)
from deepcovid_edge.decision.out_of_distribution import OodLimits
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.decision.site_file import read_site, write_site
from deepcovid_edge.errors import DeepCovidEdgeError
from deepcovid_edge.manifest import (
    METADATA_KEY,
    IndeterminateRange,
    InputSpec,
    ModelManifest,
    read_manifest,
)
from deepcovid_edge.pipeline.writers import RecordFile

MANIFEST = ModelManifest(
    name="m",
    architecture="tiny",
    classes=("non", "covid"),
    positive_class="covid",
    threshold=0.25,
    input=InputSpec(96, 128),
    indeterminate_range=IndeterminateRange(0.2, 0.3, {"rule": "by hand"}),
    ood={"parts": ["turned", "unrecognisable"], "limit": 1.0, "strict_limit": 0.5, "origin": {}},
    training={"recipe": {"classes": {"covid": ["covid", "sars"]}}, "seed": 1},
    license="research",
)
RUN = RunFacts("m", "ab" * 32, "onnxruntime-cpu", "fp32", ("non", "covid"), "covid", 0.25)
RECORDS = [
    Prediction("a.png", RUN, "00", probabilities={"non": 0.9, "covid": 0.1}),
    Prediction("b.png", RUN, None, "E_NOT_IMAGE", "Not recognised as an image."),
    Prediction("c.png", RUN, "01", probabilities={"non": 0.2, "covid": 0.8}),
]
SITE = {
    "schema_version": 1,
    "name": "North",
    "verdict": "usable",
    "threshold": 0.3,
    "indeterminate_range": {"low": 0.2, "high": 0.4, "origin": {}},
    "model": {"name": "m", "sha256": "ab" * 32},
    "reasons": [],
}

Make = Callable[[np.random.Generator], bytes]


@dataclass(frozen=True)
class Document:
    """A kind of document.

    Attributes:
        make: Its bytes, damaged.
        read: What decides, as read from a file of those bytes.
        whole: The same of the whole document; None where any reading is right.
    """

    make: Make
    read: Callable[[Path], Any]
    whole: Any


def outcome(document: Document, content: bytes) -> str:
    """`rejected`, `read`, or what rule was broken."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "document")
        path.write_bytes(content)
        try:
            found = document.read(path)
        except DeepCovidEdgeError as error:
            return "rejected" if "\n" not in str(error) and str(error) else f"broken: {error!r}"
        except Exception as error:
            return f"broken: a traceback: {error!r}"
    if document.whole not in (None, found):
        return f"broken: read as {found}"
    return "read"


def documents() -> dict[str, Document]:
    """Every kind."""
    facts = EngineFacts(
        MANIFEST, Fit("tensorrt", "10.3.0", ("sm87",)), Profile(), "ab" * 32, "cd" * 32
    )
    return {
        "site": _document(_site(), _read_site),
        "manifest": _json_document(MANIFEST.to_json(), _model, _read_model),
        "engine": _json_document(facts.to_json(), str.encode, _read_engine),
        **{f"records {kind}": _records(kind) for kind in ("jsonl", "csv")},
    }


def _document(whole: bytes, read: Callable[[Path], Any], *, same: bool = True) -> Document:
    def make(draw: np.random.Generator) -> bytes:
        if draw.random() < 0.5:
            return mutated_text(whole, draw)
        broken = bytearray(whole)
        for _ in range(int(draw.integers(1, 4))):
            broken[int(draw.integers(len(broken)))] = int(draw.integers(256))
        return bytes(broken)

    return Document(make, read, _of(read, whole) if same else None)


def _json_document(
    text: str, container: Callable[[str], bytes], read: Callable[[Path], Any]
) -> Document:
    """A document without a checksum: not damaged where one digit becomes another."""

    def make(draw: np.random.Generator) -> bytes:
        if draw.random() < 0.2:
            return mutated_text(container(text), draw)
        return container(mutated_json(json.loads(text), draw))

    return Document(make, read, _of(read, container(text)))


def _of(read: Callable[[Path], Any], content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "document")
        path.write_bytes(content)
        return read(path)


def _site() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        write_site(Path(place, "site.json"), SITE)
        return Path(place, "site.json").read_bytes()


def _read_site(path: Path) -> Any:
    site = read_site(path)
    return replace(site, path=Path(), name=replace(site.name, sha256=""))


def _model(manifest: str) -> bytes:
    """An ONNX file of nothing but its metadata."""

    def block(number: int, content: bytes) -> bytes:
        size, left = bytearray(), len(content)
        while left > 127:
            size.append(left & 127 | 128)
            left >>= 7
        return bytes([number << 3 | 2]) + bytes(size) + bytes([left]) + content

    pair = block(1, METADATA_KEY.encode()) + block(2, manifest.encode())
    return block(14, pair)


def _read_model(path: Path) -> Any:
    return _deciding(read_manifest(path))


def _deciding(manifest: ModelManifest) -> tuple[Any, ...]:
    kept = ("threshold", "input", "positive_index")
    span = manifest.indeterminate_range
    limits = (span.low, span.high) if span else None
    ood = OodLimits.of(manifest)
    return limits, ood, len(manifest.classes), *(getattr(manifest, name) for name in kept)


def _read_engine(path: Path) -> Any:
    engine = path.with_suffix(".engine")
    engine.write_bytes(b"plan")
    path.rename(facts_path(engine))
    facts = read_facts(engine)
    return _deciding(facts.manifest), facts.profile


def _records(kind: str) -> Document:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "records")
        file = RecordFile(path, RUN, kind=kind, resume=False)
        file.write(*RECORDS)
        file.close()
        whole = path.read_bytes()

    def read(path: Path) -> Any:
        file = RecordFile(path, RUN, kind=kind, resume=True)
        file.close()
        return file.earlier

    def make(draw: np.random.Generator) -> bytes:
        if kind == "csv" or draw.random() < 0.5:
            return _document(whole, read, same=False).make(draw)
        lines = whole.decode().splitlines()
        at = int(draw.integers(len(lines)))
        lines[at] = mutated_json(json.loads(lines[at]), draw)
        return ("\n".join(lines) + "\n").encode()

    return Document(make, read, None)
