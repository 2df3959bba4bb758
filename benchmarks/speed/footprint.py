"""What `deepcovid-edge` costs as a process: start, first record, and memory over many images.

Every sample is a process of its own, timed from outside, its peak memory as the kernel counted it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import print_medians, store
from benchmarks.measure.options import parser_of
from benchmarks.measure.programs import links, run_command, run_repeatedly
from deepcovid_edge.datasets.dataset import walk_files

COUNTS = (500, 5000)


def main() -> None:
    """Measure, and store the result."""
    parser = parser_of(__doc__, data="folder that holds test/", rounds=7)
    options = parser.parse_args()
    images = list(walk_files((options.data / "test").resolve()))

    def measure(*arguments: str, rounds: int = options.rounds) -> dict[str, Any]:
        run_command(arguments)  # warms the page cache
        return run_repeatedly(arguments, rounds)

    with tempfile.TemporaryDirectory() as place:
        start = measure("--help")["seconds"]
        one = measure("infer", str(images[0]), "-o", os.devnull)
        many = {}
        for count in COUNTS:
            folder = str(links(images, count, Path(place)))
            many[str(count)] = measure("infer", folder, "-o", os.devnull, rounds=3)
    memory = [runs["peak_mib"] for runs in many.values()]
    figures = {"help_seconds": start, "one_image": one, "images": many}
    figures["memory_ratio_5000_to_500"] = memory[1]["median"] / memory[0]["median"]
    print_medians("", {"--help": start, "one image": one["seconds"]}, " s")
    print_medians("peak memory,", dict(zip(many, memory, strict=True)), " MiB")
    store("footprint", figures)


if __name__ == "__main__":
    main()
