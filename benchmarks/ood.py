"""Which inputs are out of distribution? Images, changed images, and other pictures.

    python -m benchmarks.ood --data DATA [--model MODEL]... [--cost]

Images go the way of `infer`, from file to record; changes are made to the image as it was read.
`pictures` are made grey and cropped like radiographs before the network sees them, so that the
out-of-distribution layer alone decides: photographs of scikit-image, scikit-learn and matplotlib,
slices and other images of pydicom's test files, noise, and blank pictures. `as_files` counts the
outcomes of the same files as they are: many have a reason before any network runs.

`test`, `external`, `original` and the pictures chose neither the method nor a limit. The unit of
the scores is a quantile of `val`. `paediatric` is measured for models alone that were not fitted on
it with `export --children`: the manifest of one that was has a figure of children held out.

`--cost` times the network with its out-of-distribution layer against the same network without, in
turn, one thread.
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

from benchmarks import measure
from benchmarks.measure import Pixels
from benchmarks.measure.options import parser_of
from benchmarks.measure.sessions import single_threaded
from deepcovid_edge.backends import load_backend
from deepcovid_edge.backends.base import Backend
from deepcovid_edge.datasets.dataset import load_dataset, walk_files
from deepcovid_edge.decision.out_of_distribution import OUTPUT, OodLimits
from deepcovid_edge.decision.statistics import wilson
from deepcovid_edge.errors import DeepCovidEdgeError
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.model import Model
from deepcovid_edge.models import find_model
from deepcovid_edge.pipeline.pipeline import PredictSettings
from deepcovid_export.decision.fit_ood import CHILDREN_SPLITS
from deepcovid_export.decision.ood_graph import take_off

MODELS = ("squeezenet1_1", "squeezenet1_1-int8-cpu")
SPLITS = ("val", "test", "external", "paediatric")
REASONS = ("E_OOD", "E_ORIENT", "E_AGE")
CALLS, WARM_UP = 400, 10
Change = Callable[[Radiograph], Radiograph]


def main() -> None:
    """Measure each model, and store the results."""
    parser = parser_of(__doc__, data="images with all splits", model="several")
    parser.add_argument("--cost", action="store_true", help="time it, and nothing else")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
    for name in options.model or MODELS:
        path = find_model(name)
        with load_backend(path) as backend:
            ood = OodLimits.of(backend.manifest)
            if ood is None:
                raise SystemExit(f"{path}: has no limits: deepcovid-edge export {path} --fit DATA")
            facts = {"model": backend.manifest.name, "model_sha256": backend.sha256}
            if options.cost:
                measure.store(f"ood-cost-{facts['model']}", {**facts, **cost(path, options.data)})
                continue
            limits = {"limit": ood.limit, "strict_limit": ood.strict_limit}
            found = {"images": images(backend, options.data), **pictures(backend, ood)}
        measure.store(facts["model"], {**facts, **limits, **found}, folder="ood")


# Images ---------------------------------------------------------------------------------------


def images(backend: Backend, data: Path) -> dict[str, Any]:
    """Shares of images that are rejected, by split, and of changed images of test."""
    found: dict[str, Any] = {}
    fitted = CHILDREN_SPLITS if "children" in backend.manifest.ood else ()
    for split in (split for split in SPLITS if split not in fitted):
        paths: dict[str, list[Path]] = {split: []}
        for image in load_dataset(data, split=split):
            paths[split].append(image.path)
            paths.setdefault(f"{split}: {image.source}", []).append(image.path)
        found |= {name: outcomes(backend, part) for name, part in paths.items()}
    if (data / "original").is_dir():
        originals = [path for path in walk_files(data / "original") if path.suffix != ".csv"]
        found["original"] = outcomes(backend, originals)
    test = [image.path for image in load_dataset(data, split="test")]
    for name, change in changes().items():
        found[f"test, {name}"] = outcomes(backend, test, change)
    return found


def outcomes(backend: Backend, paths: list[Path], change: Change | None = None) -> dict[str, Any]:
    """What `infer` decides on files, changed after they were read."""
    settings = PredictSettings()
    records = Model.of(backend, settings).predict(paths, change=change)
    return count([record.reason or "assessed" for record in records])


def count(codes: list[str]) -> dict[str, Any]:
    """How many of the images are out of distribution, and all outcomes."""
    reasons = Counter(codes)
    rejected = sum(reasons[code] for code in REASONS)
    trials = rejected + reasons["assessed"]
    low, high = wilson(rejected, trials) if trials else (0.0, 1.0)
    return {
        "value": rejected / trials if trials else None,
        "successes": rejected,
        "trials": trials,
        "interval_95": [low, high],
        "outcomes": dict(sorted(reasons.items())),
    }


def changes() -> dict[str, Change]:
    """Changes to an image as it was read."""
    return {
        "turned by 90 degrees": on_pixels(partial(np.rot90, k=1)),
        "turned by 180 degrees": on_pixels(partial(np.rot90, k=2)),
        "turned by 270 degrees": on_pixels(partial(np.rot90, k=3)),
        "inverted": on_pixels(lambda image: 255 - image),
        "upside down": on_pixels(lambda image: image[::-1]),
        "mirrored": on_pixels(lambda image: image[:, ::-1]),
        "left half alone": on_pixels(lambda image: image[:, : image.shape[1] // 2]),
        "right half black": on_pixels(half_black),
        "blurred, 1 % of its side": on_pixels(partial(blurred, share=0.01)),
        "blurred, 3 % of its side": on_pixels(partial(blurred, share=0.03)),
        "JPEG at quality 30": on_pixels(partial(compressed, quality=30)),
        "JPEG at quality 5": on_pixels(partial(compressed, quality=5)),
        "half of it noise": on_pixels(noisy),
    }


def on_pixels(change: Callable[[Pixels], Pixels]) -> Change:
    """A change of grey levels as one of images: every image here has 8 bits."""

    def changed(image: Radiograph) -> Radiograph:
        pixels: Pixels = image.pixels
        if image.white != 255:
            pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / image.white)
        return replace(image, pixels=np.ascontiguousarray(change(pixels)), white=255)

    return changed


def half_black(image: Pixels) -> Pixels:
    """An image whose right half is black."""
    half: Pixels = image.copy()
    half[:, image.shape[1] // 2 :] = 0
    return half


def blurred(image: Pixels, share: float) -> Pixels:
    """An image blurred by a share of its shorter side."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), share * min(image.shape)))


def compressed(image: Pixels, quality: int) -> Pixels:
    """An image after JPEG."""
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    return image if decoded is None else decoded


def noisy(image: Pixels) -> Pixels:
    """An image that is half noise."""
    noise = np.random.default_rng(image.size).integers(0, 256, image.shape)
    return ((image.astype(np.uint16) + noise) // 2).astype(np.uint8)


# Pictures ------------------------------------------------------------------------------------


def pictures(backend: Backend, ood: OodLimits) -> dict[str, Any]:
    """Decisions on pictures that are no radiographs, prepared and as files."""
    groups = {
        "photographs": dict(photographs()),
        "slices and other DICOM images": dict(dicom_images()),
        "noise": dict(noise()),
        "blank": dict(blank()),
    }
    found, whole = {}, {}
    for name, group in groups.items():
        unlike = np.concatenate([ood_scores(backend, grey(image)) for image in group.values()])
        reasons = [ood.reason(row) for row in unlike]
        found[name] = count([reason.code if reason else "assessed" for reason in reasons])
        found[name]["pictures"] = {
            title: round(float(row.max()), 3) for title, row in zip(group, unlike, strict=True)
        }
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.png" for number in range(len(group))]
            for path, image in zip(paths, group.values(), strict=True):
                cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)
            whole[name] = outcomes(backend, paths)["outcomes"]
    whole["DICOM files as they are"] = outcomes(backend, list(dicom_files()))["outcomes"]
    return {"pictures": found, "as_files": whole}


def ood_scores(backend: Backend, image: Pixels) -> Pixels:
    """Scores of one picture, of shape (1, parts)."""
    pixels = prepare(Radiograph(image, 255, "", "PNG"), backend.manifest.input)
    return np.asarray(backend.infer(pixels[None]).ood_scores)


def grey(image: Pixels) -> Pixels:
    """A picture without colour."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image


def photographs() -> Iterator[tuple[str, Pixels]]:
    """Photographs and other pictures that come with libraries; nothing is fetched."""
    import matplotlib as mpl
    from PIL import Image
    from skimage import data as skimage_data
    from sklearn.datasets import load_sample_images

    data: Any = skimage_data
    names = "astronaut brick camera cell chelsea clock coffee coins grass gravel horse "
    names += "hubble_deep_field immunohistochemistry logo moon page retina rocket text colorwheel"
    for name in names.split():
        yield name, levels(getattr(data, name)())
    for name, image in zip(("left", "right"), data.stereo_motorcycle()[:2], strict=True):
        yield f"motorcycle {name}", levels(image)
    for number, face in enumerate(data.lfw_subset()[::20]):
        yield f"face or cut {number}", levels(cv2.resize(face, (200, 200)))
    for number, image in enumerate(load_sample_images().images):
        yield f"scikit-learn {number}", levels(image)
    folder = Path(mpl.get_data_path()) / "sample_data"
    for name in ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png"):
        with Image.open(folder / name) as image:
            yield name, levels(np.asarray(image.convert("RGB")))


def levels(image: Pixels) -> Pixels:
    """Any picture with 8 bits, without alpha."""
    image = np.asarray(image)[..., :3] if np.ndim(image) == 3 else np.asarray(image)
    if image.dtype == np.uint8:
        return image
    low, high = np.percentile(image.astype(np.float64), (0.5, 99.5))
    scaled = (image - low) / max(high - low, 1e-9) * 255
    return np.asarray(np.clip(scaled, 0, 255), np.uint8)


def dicom_files() -> Iterator[Path]:
    """Pydicom's own test files that hold one image and are installed with it."""
    from pydicom.data.data_manager import DATA_ROOT

    yield from sorted((Path(DATA_ROOT) / "test_files").glob("*.dcm"))


def dicom_images() -> Iterator[tuple[str, Pixels]]:
    """Their pixels where they can be decoded, each picture once."""
    import pydicom

    seen = set()
    for path in dicom_files():
        try:
            dataset = pydicom.dcmread(path)
            image = levels(dataset.pixel_array)
        except Exception:  # many of these files are damaged on purpose
            continue

        if image.ndim not in (2, 3) or min(image.shape[:2]) < 32 or image.std() < 1:
            continue
        if (digest := image.tobytes()) not in seen:
            seen.add(digest)
            yield f"{path.name} {dataset.get('Modality', '')}", image


def noise() -> Iterator[tuple[str, Pixels]]:
    """Uniform, normal and smooth noise."""
    draw = np.random.default_rng(0)
    for number in range(10):
        yield f"even {number}", draw.integers(0, 256, (300, 300)).astype(np.uint8)
        normal = draw.normal(128, 20 + 6 * number, (300, 300))
        yield f"normal {number}", np.clip(normal, 0, 255).astype(np.uint8)
        soft = cv2.GaussianBlur(draw.normal(0, 1, (300, 300)), (0, 0), 2 ** (number / 2 + 0.5))
        yield f"soft {number}", levels(soft)


def blank() -> Iterator[tuple[str, Pixels]]:
    """Constant and nearly constant pictures, and ramps."""
    draw = np.random.default_rng(1)
    for value in (0, 16, 64, 128, 192, 255):
        yield f"constant {value}", np.full((300, 300), value, np.uint8)
        grain = draw.normal(value, 3, (300, 300))
        yield f"grainy {value}", np.clip(grain, 0, 255).astype(np.uint8)
    ramp = np.tile(np.linspace(0, 255, 300), (300, 1)).astype(np.uint8)
    yield from {"ramp": ramp, "ramp down": np.ascontiguousarray(ramp.T)}.items()


# Cost ----------------------------------------------------------------------------------------


def cost(path: Path, data: Path) -> dict[str, Any]:
    """Milliseconds a call with the output `ood_scores` and without, and their ratios."""
    with load_backend(path) as backend:
        spec = backend.manifest.input
    batch = np.stack(
        [measure.prepared(image.path, spec) for image in load_dataset(data, split="val")[:8]]
    )
    model = onnx.load(path)
    with_scores, without = caller(model, ["logits", OUTPUT]), caller(take_off(model)[0], ["logits"])
    found = {}
    for size in (1, 8):
        given = ((batch[:size],) for _ in range(CALLS // size + WARM_UP))
        seconds = measure.in_turn({"without": without, "with": with_scores}, given, warm_up=WARM_UP)
        ms = {name: [1e3 * one for one in values] for name, values in seconds.items()}
        share = statistics.median(ms["with"]) / statistics.median(ms["without"]) - 1
        found[f"batch_{size}"] = {"ms": measure.summaries(ms), "share": share}
        print(f"batch {size}: {share:+.2%}")
    return {"threads": 1, **found}


def caller(model: onnx.ModelProto, outputs: list[str]) -> Callable[[Pixels], object]:
    """A call of a network on one thread."""
    session = single_threaded(model.SerializeToString())
    return lambda images: session.run(outputs, {"images": images})


if __name__ == "__main__":
    try:
        main()
    except DeepCovidEdgeError as error:
        raise SystemExit(str(error)) from error
