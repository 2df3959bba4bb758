"""Does every variant on every backend here decide as the FP32 file does? `verify`, for all of them.

    python -m benchmarks.accuracy --data DATA           every variant, on test and on external
    python -m benchmarks.accuracy --data DATA --images 48 --no-store     a quick look

The reference is the FP32 file in ONNX Runtime on the CPU. Variants that are not there are made
first (see variants.py). What cannot run here is skipped, with the reason. Each comparison is one
file, results/verify/MODEL-VARIANT-BACKEND-SPLIT.json. A whole run also writes verify.json, which
lists what was skipped. Exit code 3: a verdict is `changed`. `insufficient` is no failure here: the
images of a split are too few to show a change of one in a hundred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import CORES, RESULTS, of_both_classes, store, write_json
from benchmarks.measure.options import parser_of
from benchmarks.variants import VARIANTS, VariantError, file_for, models, named
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.backends.tensorrt.files import Profile
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.datasets.dataset import LabelledImage, load_dataset
from deepcovid_edge.errors import NotThereError
from deepcovid_edge.validation.diagnostics import versions
from deepcovid_edge.validation.verify import CHANGED, verify

SPLITS = ("test", "external")
BACKENDS = {
    "onnxruntime": ("fp16", "int8-cpu", "int8-tensorrt"),
    "openvino": ("fp32", "int8-cpu"),
    "onnxruntime:cuda": ("fp32", "fp16"),
    "tensorrt": ("fp32", "fp16", "int8-tensorrt"),
}
"""Backend -> the variants that it is for."""


@dataclass(frozen=True)
class Candidate:
    """One thing that must decide as the FP32 file does."""

    model: str
    variant: str
    backend: str

    @property
    def name(self) -> str:
        """As its result is named."""
        return f"{self.model}-{self.variant}-{self.backend.replace(':', '-')}"


def main() -> None:
    """Compare all candidates, and store the reports."""
    parser = parser_of(__doc__, data="images with train, val, test and external", model="several")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="repeatable")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable")
    parser.add_argument("--split", action="append", help="repeatable  [default: test, external]")
    parser.add_argument("--images", type=int, help="at most of a split, of both classes alike")
    parser.add_argument("--no-store", action="store_true", help="only print")
    options = parser.parse_args()
    try:
        files = files_of(options.model)
    except NotThereError as error:
        parser.error(f"--model: {error}")
    splits = {name: load_dataset(options.data, split=name) for name in options.split or SPLITS}
    skipped, changed = {}, []
    for candidate in candidates(files, options.variant, options.backend):
        try:
            reports = compare(
                files[candidate.model], candidate, splits, options.data, options.images
            )
        except (VariantError, NotThereError) as error:
            skipped[candidate.name] = str(error)
            print(f"{candidate.name}: skipped: {error}")
            continue
        for split, report in reports.items():
            print(f"{candidate.name} {split}: {line(report)}", flush=True)
            changed += [f"{candidate.name} {split}"] * (report["verdict"] == CHANGED)
            if not options.no_store:
                asked = {**asdict(candidate), "split": split}
                found = {"asked": asked, "versions": versions(), **report}
                write_json(RESULTS / "verify" / f"{candidate.name}-{split}.json", found)
    if not (options.no_store or options.model or options.variant or options.backend):
        figures = {"splits": [*splits], "skipped": skipped, "changed": changed}
        store("verify", figures, folder="verify")
    if changed:
        print(f"the equivalence check failed: {', '.join(changed)}")
        raise SystemExit(ExitCode.NOT_EQUIVALENT)


def files_of(asked: Sequence[str] | None) -> dict[str, Path]:
    """Name -> file of the models that are asked for, or of all.

    Raises:
        NotThereError: There is no such file, or another model has its name.
    """
    if not asked:
        return models()
    files = {named(model).stem: named(model) for model in asked}
    for name, file in files.items():
        if not file.samefile(models().get(name, file)):
            raise NotThereError(f"{file} has the name of another model: give the file its own")
    return files


def candidates(
    names: Iterable[str], variants: Sequence[str] | None, backends: Sequence[str] | None
) -> Iterator[Candidate]:
    """Every variant and backend of the models, or those that are asked for."""
    for model in names:
        for backend, known in BACKENDS.items():
            for variant in known:
                if variant in (variants or VARIANTS) and backend in (backends or BACKENDS):
                    yield Candidate(model, variant, backend)


def compare(
    model: Path,
    candidate: Candidate,
    splits: dict[str, list[LabelledImage]],
    data: Path | None,
    most: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Reports of `verify` against the FP32 file, split by split.

    Args:
        model: FP32 .onnx file.
        candidate: What is held against it.
        splits: Name -> images.
        data: Images to make its variant of, where that is not there.
        most: Maximum images of a split, of both classes alike; None for all.

    Raises:
        VariantError: The variant cannot be made.
        NotThereError: The backend does not run here.
    """
    file, library, provider = file_for(model, candidate.variant, candidate.backend, data, Profile())
    threads = 1 if library == "tensorrt" else CORES  # an engine computes on the GPU
    own = BackendSettings(provider=provider, threads=threads)
    plain = BackendSettings(threads=CORES)
    with (
        load_backend(model, backend="onnxruntime", settings=plain) as reference,
        load_backend(file, backend=library, settings=own) as now,
    ):
        return {
            split: verify(
                reference, now, of_both_classes(images, reference.manifest, most)
            ).as_dict()
            for split, images in splits.items()
        }


def line(report: dict[str, Any]) -> str:
    """The verdict and its figures."""
    flips, apart = report["flips"]["count"], report["probability"]["max"]
    failed = "".join(f"; {sentence}" for sentence in report["failed"])
    return (
        f"{report['verdict']}, {flips} of {report['images']} turned, probability at most "
        f"{apart:.2g} apart{failed}"
    )


if __name__ == "__main__":
    main()
