"""Memory of the process that reads images, from 1,000 images on to 20,000.

    python -m benchmarks.archive.memory --data DATA --images 20000

The slope is that of a straight line through all looks behind the first 1,000 images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.archive.commands import linked_images, watched
from benchmarks.archive.speed import in_shards
from benchmarks.measure import store

_SHARD = 1000
_FIRST = 1000


def measured(data: Path, place: Path, images: int) -> dict[str, Any]:
    """The figures of one run."""
    folder = linked_images(data, images, place)
    manifest, results = place / "m.parquet", place / "results"
    watched(["manifest", folder, "-o", manifest], lambda: 0, place / "log")
    command = ["screen", manifest, "-o", results, "--variant", "fp32", "--shard-size", _SHARD]
    looks = watched(command, in_shards(results), place / "log")
    later = [look for look in looks if look.images >= _FIRST and look.rss_mib]
    slope, _ = np.polyfit([one.images for one in later], [one.rss_mib for one in later], 1)
    by_shard = {one.images: one.rss_mib for one in later}
    return {
        "images": images,
        "rss_mib": {str(count): round(rss, 1) for count, rss in sorted(by_shard.items())},
        "kib_an_image": round(float(slope) * 1024, 4),
        "growth_mib": round(later[-1].rss_mib - later[0].rss_mib, 1),
    }


def main() -> None:
    """Run as a script; see the module's description."""
    parser = argparse.ArgumentParser(description="Memory of a worker of `screen`.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--store", action="store_true", help="store the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archive-") as place:
        found = measured(options.data, Path(place), options.images)
    print(json.dumps(found, indent=1))
    if options.store:
        store("archive-memory", found, "archive")


if __name__ == "__main__":
    main()
