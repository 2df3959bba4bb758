"""`deepcovid-edge infer` beside each program that a user would write or pick instead.

Each is a process of its own. They run in turn, several rounds, after a pause in which the threads
of the one before fall asleep. Ratios are taken round by round and their median is quoted. Each peer
reads, prepares and classifies the same files; `infer` also checks each file, hashes it and writes a
record. A peer whose package, compiler or device is missing is stored with the reason. Without
--model, the models, peers, rounds and images are those of a suite (suites/*.toml).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.measure.options import parser_of
from benchmarks.measure.programs import Programs, links
from benchmarks.suites.run import Peers, read_suite
from benchmarks.variants import named as file_of
from deepcovid_edge.backends import fastest_verified
from deepcovid_edge.datasets.dataset import walk_files
from deepcovid_edge.manifest import read_manifest

TORCH = "published_loop"
"""The peer that takes an architecture; the others take a file."""
CAREFUL = {"gradients": False}
COMPILED = {"gradients": False, "compiled": True}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "published_loop": (TORCH, {}),
    "published_loop_without_gradients": (TORCH, CAREFUL),
    "torch_compile": (TORCH, COMPILED),
    "torchvision_onnxruntime": ("torchvision_loop", {}),
    "onnxruntime": ("onnxruntime_loop", {}),
    "onnxruntime_a_call_a_core": ("onnxruntime_loop", {"threads": measure.CORES}),
    "openvino": ("openvino_loop", {}),
    "openvino_any_precision": ("openvino_loop", {"precision": None}),
    "published_loop_cuda": (TORCH, {**CAREFUL, "device": "cuda"}),
    "torch_compile_cuda": (TORCH, {**COMPILED, "device": "cuda"}),
    "polygraphy": ("polygraphy_loop", {}),
}
"""Side -> the peer's module and its settings."""


def main() -> None:
    """Measure the peers of one model, or of those that a suite names."""
    parser = parser_of(__doc__, data="folder that holds test/", rounds=7)
    parser.add_argument("--suite", default="default", help="name in suites/, or a .toml file")
    parser.add_argument("--model", help="name or file; then no suite is read")
    parser.add_argument("--peer", action="append", choices=PEERS, help="repeatable  [default: all]")
    parser.add_argument("--images", type=int, help="at most  [default: all]")
    options = parser.parse_args()
    own = Peers(options.model or "", tuple(options.peer or ()), options.rounds, options.images)
    for asked in (own,) if options.model else read_suite(options.suite).peers:
        run_peers(asked, options.data)


def run_peers(asked: Peers, data: Path) -> None:
    """Run the peers of a model and store the result."""
    if unknown := set(asked.programs) - set(PEERS):
        raise ValueError(f"programs: got {sorted(unknown)}, expected some of {', '.join(PEERS)}")
    found = list(walk_files((data / "test").resolve()))[: asked.images]
    with tempfile.TemporaryDirectory() as place:
        folder = links(found, len(found), Path(place))
        figures = compare(file_of(asked.model), folder, asked.rounds, asked.programs or (*PEERS,))
    measure.print_medians(figures["model"], figures["ratios"])
    measure.store(f"peer-speed-{figures['model']}", figures)


def compare(model: Path, folder: Path, rounds: int, programs: Sequence[str]) -> dict[str, Any]:
    """Seconds and ratios of all sides, and why a peer is missing."""
    variant, images = fastest_verified(model), list(walk_files(folder))
    missing: dict[str, str] = {}
    with Programs() as sides:
        sides.add_infer(folder, model)
        for name, peer, file in files_of(model, variant, programs):
            module, settings = PEERS[peer]
            what = read_manifest(file).architecture if module == TORCH else file
            try:
                sides.add(name, "benchmarks.peers:over", images, module, what, **settings)
            except RuntimeError as error:
                missing[name] = str(error)
                print(f"{name}: {error}")
        seconds = measure.in_turn(sides, repeat((), rounds + 1), pause=measure.PAUSE)
    return {
        "model": read_manifest(model).name,
        "variant": read_manifest(variant).name,
        "images": len(images),
        "missing": missing,
        "seconds": measure.summaries(seconds),
        "ratios": measure.ratios_to(seconds, ("infer", "infer_fp32"), seconds),
    }


def files_of(model: Path, variant: Path, programs: Sequence[str]) -> list[tuple[str, str, Path]]:
    """Sides, peers and their files: peers of a file run both, the faster as `..._variant`."""
    both = [(name, name, model) for name in programs]
    if variant != model:
        of_file = [name for name in programs if PEERS[name][0] != TORCH]
        both += [(f"{name}_variant", name, variant) for name in of_file]
    return both


if __name__ == "__main__":
    main()
