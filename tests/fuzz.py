"""Damaged files of every format through `predict`: no crash, no hang, no number on a refusal.

    PYTHONPATH=tests/unit/imaging python tests/fuzz.py --inputs 20000 --seed 1

Valid files are damaged at random: bytes of the file, elements of a DICOM header, codestreams inside
containers that stay whole, so that every decoder is reached. Input N of a seed is always the same
bytes. What breaks a rule is kept in `--findings`, and belongs into a test.

Also valid files with one element of the header changed, which are assessed as before, or get a
reason or a new warning; and damaged site files, manifests, engine facts and files of records.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from conftest import Pictures
from damaged_documents import documents, outcome
from dicom_files import (
    EXPLICIT,
    MOST_BITS,
    WRITABLE,
    compressed,
    dataset,
    fragments,
    stored_image,
    written,
)
from mutations import mutated_header, twins
from pydicom.dataset import Dataset
from test_containers import FUZZED, mutated, mutated_chunk

from deepcovid_edge.backends import load_model
from deepcovid_edge.backends.base import Backend
from deepcovid_edge.decision.out_of_distribution import WARN
from deepcovid_edge.decision.record import ASSESSED, NOT_ASSESSED, Prediction
from deepcovid_edge.imaging.dicom.decoding.sandbox import sandbox
from deepcovid_edge.imaging.dicom.syntaxes import BIG_ENDIAN, IMPLICIT, SYNTAXES, Family
from deepcovid_edge.model import Model
from deepcovid_edge.models import DEFAULT_MODEL
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_edge.reasons import WarningCode

MOST_SECONDS = 25.0
"""Longest time for one input: the decoders' limit and what stands around it. An emulated processor
is given more."""
MOST_MIB = 2048
"""Highest memory of this process: 100 megapixels of 16 bits, some copies of them, and the model."""
BATCH = 200

_WORDS = (
    *(0, 1, 2, 3, 7, 8, 10, 12, 15, 16, 17, 32, 64, 99, 100, 128, 160, 255, 4096, 20_000, 65_535),
)
_NUMBERS = (
    *(0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102),
    *(0x00280103, 0x00280120, 0x00280121),
)
_TEXTS = {
    0x00080008: ("DERIVED", "\\" * 400),
    0x00080016: ("", "1.2.840.10008.5.1.4.1.1.2", "9" * 64),
    0x00101010: ("", "000Y", "999Y", "-1Y", "7" * 99),
    0x00185101: ("", "LL", "\0\0", "PA\\AP"),
    0x00200020: ("L", "L\\F\\H", "A\\F", "R\\F", "F\\R", "\\"),
    0x00280004: ("MONOCHROME1", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", ""),
    0x00280008: ("0", "1", "2", "-1", "999999999999", "one"),
    0x00281050: ("0", "nan", "inf", "-1e308", "1e308", "x", "40\\80"),
    0x00281051: ("0", "0.5", "-7", "nan", "1e308", "1", "400\\80"),
    0x00281052: ("nan", "1e308", "-1024", ""),
    0x00281053: ("0", "nan", "-1", "1e308", "1e-308"),
    0x00281056: ("SIGMOID", "LINEAR_EXACT", "BENT"),
    0x00282112: ("nan", "1e9", "-1", "a\\b"),
}

Maker = Callable[[np.random.Generator], bytes]


def makers() -> dict[str, Maker]:
    """What makes a damaged file of each kind."""
    made: dict[str, Maker] = {}
    for kind, make in FUZZED.items():
        if kind != "dicom":
            made[kind] = _damaged_picture(kind, make(Pictures))
    for syntax in WRITABLE:
        for bits in (8, 12, 16):
            if bits <= MOST_BITS.get(syntax, 16):
                made[f"dicom-{SYNTAXES[syntax].name}-{bits}"] = _damaged_dicom(syntax, bits)
    return made


def header_makers() -> dict[str, Maker]:
    """What makes a valid file of each kind with one element of its header changed."""
    syntaxes = {"implicit": IMPLICIT, "big endian": BIG_ENDIAN}
    return {
        f"header {name}": partial(_changed_header, whole, syntaxes.get(name, EXPLICIT))
        for name, whole in twins().items()
    }


def _changed_header(whole: bytes, syntax: str, draw: np.random.Generator) -> bytes:
    return mutated_header(whole, syntax, draw)[0]


def _damaged_picture(kind: str, whole: bytes) -> Maker:
    def make(draw: np.random.Generator) -> bytes:
        if kind.startswith("png") and draw.random() < 0.5:
            return mutated_chunk(whole, draw, Pictures)
        return mutated(whole, draw)

    return make


def _damaged_dicom(syntax: str, bits: int) -> Maker:
    image = np.ascontiguousarray(Pictures.image())
    pixels, elements = stored_image(image, bits, "MONOCHROME1", window=True)
    whole = written(dataset(pixels, **elements), syntax)
    packed = SYNTAXES[syntax].family is not Family.NATIVE
    frame = compressed(pixels, bits, syntax) if packed else b""

    def make(draw: np.random.Generator) -> bytes:
        way = draw.random()
        if way < 0.35 or syntax == BIG_ENDIAN:  # its pixels are swapped by what the header says
            return mutated(whole, draw)
        if way < 0.4:
            return whole[: int(draw.integers(len(whole)))]
        header = dataset(pixels, **elements)
        if way < 0.7 or not packed:
            for _ in range(int(draw.integers(1, 4))):
                _change_element(header, draw)
            if packed:
                fragments(header, frame)
        else:
            broken = mutated(frame, draw)
            fragments(header, broken[:-2] + b"\xff\xd9" if len(broken) > 4 else b"\xff\xd9")
        return _patched(header, syntax, draw)

    return make


def _change_element(header: Dataset, draw: np.random.Generator) -> None:
    if draw.random() < 0.5:
        tag = int(draw.choice(_NUMBERS))
        if draw.random() < 0.2 and tag in header:
            del header[tag]
        else:
            header.add_new(tag, "US", int(draw.choice(_WORDS)))
        return
    tag = int(draw.choice(list(_TEXTS)))
    header.add_new(tag, "LT", str(draw.choice(_TEXTS[tag])))  # takes any text as it is


def _patched(header: Dataset, syntax: str, draw: np.random.Generator) -> bytes:
    """The file, with a LUT of random numbers now and then."""
    if draw.random() < 0.2:
        table = Dataset()
        table.add_new(0x00283002, "US", [int(word) for word in draw.choice(_WORDS, 3)])
        table.add_new(0x00283006, "OW", draw.bytes(2 * int(draw.choice(_WORDS[:-2]))))
        header.add_new(int(draw.choice([0x00283000, 0x00283010])), "SQ", [table])
    return written(header, syntax)


@dataclass
class Findings:
    """What was seen, and what broke a rule."""

    folder: Path
    twins: dict[str, Prediction]
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    most_seconds: float = MOST_SECONDS

    def classify(self, record: Prediction, kind: str) -> None:
        """Check a record against the rules; keep its file if it breaks one."""
        seconds = (record.timings_ms or {}).get("read", 0.0) / 1000
        self.slowest = max(self.slowest, (seconds, Path(record.path).name))
        self.counts.setdefault(kind, Counter())[record.reason or ASSESSED] += 1
        rules = [*broken_rules(record, seconds, self.most_seconds)]
        if kind in self.twins and another_number(record, self.twins[kind]):
            rules.append(f"{record.probability} for {self.twins[kind].probability}, no word")
        for rule in rules:
            self.keep(Path(record.path), rule)

    def classify_document(self, path: Path, kind: str, found: str) -> None:
        """Count what became of a document."""
        self.counts.setdefault(kind, Counter())[found.partition(":")[0]] += 1
        if found.startswith("broken"):
            self.keep(path, found)

    def keep(self, path: Path, rule: str) -> None:
        """Note a file that broke a rule, and copy it."""
        self.broken.append(f"{path.name}: {rule}")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / path.name).write_bytes(path.read_bytes())


def another_number(record: Prediction, twin: Prediction) -> bool:
    """Whether a record has another probability than its twin, and no reason or new warning."""
    known = {*twin.warnings, WarningCode.DUPLICATE_UID.code}  # the twins share an identifier
    silent = not record.reason and known.issuperset(record.warnings)
    return silent and record.probability != twin.probability


def broken_rules(
    record: Prediction, seconds: float, most_seconds: float = MOST_SECONDS
) -> Iterator[str]:
    """The rules that a record breaks."""
    content = record.as_dict()
    numbers = [content[name] for name in ("probability", "probabilities", "decision")]
    if record.status == NOT_ASSESSED:
        if not record.reason or not record.message:
            yield "refused without a reason"
        if any(number is not None for number in numbers):
            yield "a number on a refusal"
        if "\n" in (record.message or ""):
            yield "a message of several lines"
    elif record.reason or None in numbers or not math.isfinite(numbers[0]):
        yield "assessed without a number"
    if seconds > most_seconds:
        yield f"took {seconds:.1f} s"
    json.loads(record.as_json())


def fuzz(
    inputs: int,
    seed: int,
    network: Backend,
    findings: Path,
    most_seconds: float = MOST_SECONDS,
) -> Findings:
    """Classify so many damaged files, in batches, and read damaged documents between them."""
    kinds, texts = makers() | header_makers(), documents()
    names = [*kinds, *texts]
    settings = PredictSettings(ood=WARN)  # so that what is read is classified, whatever it shows
    model = Model.of(network, settings)
    found = Findings(findings, _assessed_twins(model), most_seconds=most_seconds)
    for start in range(0, inputs, BATCH):
        with tempfile.TemporaryDirectory() as place:
            paths = []
            for number in range(start, min(inputs, start + BATCH)):
                draw = np.random.default_rng((seed, number))
                kind = names[number % len(names)]
                path = Path(place, f"{number:06d}-{kind.replace(' ', '_')}")
                if kind in texts:
                    path.write_bytes(texts[kind].make(draw))
                    found.classify_document(path, kind, outcome(texts[kind], path.read_bytes()))
                    continue
                path.write_bytes(kinds[kind](draw))
                paths.append((path, kind))
            faulthandler.dump_traceback_later(BATCH * most_seconds, exit=True)
            records = model.predict([path for path, _ in paths])
            for (_, kind), record in zip(paths, records, strict=True):
                found.classify(record, kind)
            faulthandler.cancel_dump_traceback_later()
    return found


def _assessed_twins(model: Model) -> dict[str, Prediction]:
    """The record of each valid file, by the kind of what is made of it."""
    with tempfile.TemporaryDirectory() as place:
        paths = {f"header {name}": Path(place, name) for name in twins()}
        for path, whole in zip(paths.values(), twins().values(), strict=True):
            path.write_bytes(whole)
        return dict(zip(paths, model.predict([*paths.values()]), strict=True))


def peak_mib() -> tuple[float, float]:
    """Highest memory of this process and of any of its children that ended, MiB."""
    ours, theirs = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return ours, theirs


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--variant", default="fp32", help="of the shipped model")
    parser.add_argument("--most-seconds", type=float, default=MOST_SECONDS, help="for an input")
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    with load_model(DEFAULT_MODEL, variant=options.variant) as network:
        found = fuzz(options.inputs, options.seed, network, options.findings, options.most_seconds)
    total: Counter[str] = sum(found.counts.values(), Counter())
    sandbox().close()  # only of children that ended it is known what they took
    ours, theirs = peak_mib()
    for kind, counts in found.counts.items():
        print(f"{kind:45} {dict(counts.most_common())}")
    print(f"{total.total()} inputs in {time.perf_counter() - started:.0f} s: {dict(total)}")
    print(f"slowest {found.slowest[0]:.2f} s ({found.slowest[1]})")
    print(f"peak memory {ours:.0f} MiB, of a child {theirs:.0f} MiB")
    if ours > MOST_MIB:
        found.broken.append(f"{ours:.0f} MiB of memory, at most {MOST_MIB}")
    print("\n".join(found.broken) or "no rule broken")
    sys.exit(bool(found.broken))


if __name__ == "__main__":
    main()
