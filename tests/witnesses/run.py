"""Files drawn from a seed, read by us and by independent readers, and what came out.

    PYTHONPATH=tests python -m witnesses.run --images 2000 --pictures 2000 --store

File N of a seed is always the same: a disagreement is printed with its number, and `--keep FOLDER`
writes its file and what was drawn for it. With `--store` the counts go to
benchmarks/results/reading/. The exit code is 1 where anything disagrees.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from benchmarks.measure import store
from witnesses.comparison import (
    AGREED,
    DISAGREED,
    EXPLAINED,
    REASON,
    TOLERANCE,
    UNWRITTEN,
    Outcome,
    compared,
)
from witnesses.encoding import image_file
from witnesses.explained import EXPLAINED_IMAGES, ON_PURPOSE, Explanation
from witnesses.picture_comparison import EXPLAINED_PICTURES, compared_pictures
from witnesses.pictures import picture
from witnesses.specs import drawn
from witnesses.tools import DICOM_PROGRAMS, PICTURE_PROGRAMS, missing, version

BATCH = 54
"""Pictures that one process of GraphicsMagick reads."""
OWN_WRITERS = {"pydicom", "Pillow", "OpenCV", "by hand"}
"""Writers that share code with what we decode with."""
Found = list[tuple[int, Outcome]]


def images(seed: int, count: int, workers: int) -> Found:
    """Outcomes of DICOM images."""
    with ThreadPoolExecutor(workers) as pool:
        return list(enumerate(pool.map(partial(compared, seed), range(count))))


def pictures(seed: int, count: int, workers: int) -> Found:
    """Outcomes of picture files."""
    batches = [range(at, min(at + BATCH, count)) for at in range(0, count, BATCH)]
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda batch: list(compared_pictures(seed, batch)), batches)
        return [one for batch in found for one in batch]


def figures(found: Found, seed: int, explanations: Sequence[Explanation]) -> dict[str, Any]:
    """The counts of a run, as they are stored."""
    kinds = Counter(outcome.kind for _, outcome in found)
    written = [(number, outcome) for number, outcome in found if outcome.kind != UNWRITTEN]
    named = _details(found, EXPLAINED)
    known = {one.name: one for one in (*explanations, *ON_PURPOSE)}
    foreign = sum(outcome.writer not in OWN_WRITERS for _, outcome in written)
    return {
        "seed": seed,
        "tolerance": TOLERANCE,
        "files": len(written),
        "by_other_encoders": foreign,
        "writers": dict(Counter(outcome.writer for _, outcome in written).most_common()),
        **{kind: kinds[kind] for kind in (AGREED, REASON, EXPLAINED, DISAGREED)},
        "reasons": dict(_details(found, REASON).most_common()),
        "explanations": [
            {
                "name": name,
                "count": count,
                "readers": known[name].readers,
                "why": known[name].why,
            }
            for name, count in named.most_common()
        ],
        "disagreements": [f"{n}: {'; '.join(o.details)}" for n, o in found if o.kind == DISAGREED],
        "not_written": [f"{n}: {'; '.join(o.details)}" for n, o in found if o.kind == UNWRITTEN],
        "largest": _largest(outcome for _, outcome in written if outcome.kind == AGREED),
    }


def _details(found: Found, kind: str) -> Counter[str]:
    return Counter(name for _, one in found if one.kind == kind for name in one.details)


def _largest(agreed: Iterable[Outcome]) -> dict[str, float]:
    """Largest difference to each reader, of the files that agree."""
    largest: dict[str, float] = {}
    for outcome in agreed:
        for reader, apart in outcome.largest.items():
            largest[reader] = max(largest.get(reader, 0.0), apart)
    return largest


def versions() -> dict[str, dict[str, str]]:
    """Versions of the readers that ours are compared with, and of the programs beside them."""
    return {
        "dicom": {"DCMTK": version(["dcmj2pnm", "--version"]), "pydicom": installed("pydicom")},
        "pictures": {
            "OpenCV": installed("opencv-python-headless"),
            "Pillow": installed("pillow"),
            "GraphicsMagick": version(["gm", "version"]),
        },
        "programs": {
            "GDCM": version(["gdcmconv", "--version"]),
            "libjpeg-turbo": version(["cjpeg", "-version"]),
            "libtiff": version(["tiffcp", "-h"], r"LIBTIFF, Version ([\d.]+)"),
            "libwebp": version(["cwebp", "-version"]),
            "OpenJPEG": version(["opj_compress", "-h"], r"library v([\d.]+)"),
        },
    }


def _keep(found: Found, seed: int, folder: Path, *, dicom: bool) -> None:
    """Write the files that disagree, each with what was drawn for it."""
    for number, outcome in found:
        if outcome.kind == DISAGREED:
            with tempfile.TemporaryDirectory() as place:
                spec = drawn(seed, number)
                data = (
                    image_file(spec, Path(place))
                    if dicom
                    else picture(seed, number, Path(place))[1]
                )
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{'dicom' if dicom else 'picture'}-{seed}-{number}"
            (folder / name).write_bytes(data)
            text = "\n".join((*outcome.details, str(outcome.largest), str(spec) if dicom else ""))
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _print(title: str, it: dict[str, Any]) -> None:
    print(f"{title}: {it['files']} files, {it['by_other_encoders']} by other encoders")
    print(f"  {it[AGREED]} agree, {it[REASON]} with a reason {it['reasons']}")
    print(f"  {it[EXPLAINED]} explained, {it[DISAGREED]} disagree")
    for one in it["explanations"]:
        print(f"  {one['count']:5} {one['name']}")
    for line in (*it["disagreements"], *(f"not written: {one}" for one in it["not_written"])):
        print(f"  {line}")


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2048, help="DICOM images")
    parser.add_argument("--pictures", type=int, default=2000, help="picture files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--store", action="store_true", help="store the counts")
    parser.add_argument("--keep", type=Path, help="folder for the files that disagree")
    options = parser.parse_args()
    for lacking in (missing(DICOM_PROGRAMS), missing(PICTURE_PROGRAMS)):
        if lacking:
            raise SystemExit(lacking)
    disagreed = 0
    runs = (
        ("dicom", images, options.images, EXPLAINED_IMAGES),
        ("pictures", pictures, options.pictures, EXPLAINED_PICTURES),
    )
    for name, compare, count, explanations in runs:
        if not count:
            continue
        started = time.perf_counter()
        found = compare(options.seed, count, options.workers)
        it = figures(found, options.seed, explanations)
        _print(name, it)
        print(f"  {time.perf_counter() - started:.0f} s")
        disagreed += it[DISAGREED]
        if options.store:
            found_versions = versions()
            others = {"compared": found_versions[name], "programs": found_versions["programs"]}
            store(name, {**others, **it}, "reading")
        if options.keep:
            _keep(found, options.seed, options.keep, dicom=name == "dicom")
    sys.exit(bool(disagreed))


if __name__ == "__main__":
    main()
