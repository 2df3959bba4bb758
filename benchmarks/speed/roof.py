"""The least work there is between files and logits, one thread a core, nothing else.

Read, decode with simplejpeg, resize, run the network: arranged as `infer` arranges it, a group of
images prepared and then classified, with the same settings of the process. Nothing is checked,
hashed, put in order or written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import simplejpeg

from benchmarks.measure import CORES, Pixels
from benchmarks.measure.sessions import single_threaded
from benchmarks.peers import onnxruntime_loop
from deepcovid_edge.device.process import set_up
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import InputSpec

_GROUP = 32


def make(model: Path, images: Sequence[Path], *, libraries: bool = False) -> Callable[[], None]:
    """All images once; with `libraries` they are resized with OpenCV."""
    set_up()
    return partial(
        run, network_of(model), images, onnxruntime_loop.prepared if libraries else prepared
    )


def run(
    network: Callable[[Pixels], object],
    images: Sequence[Path],
    decode: Callable[[Path], Pixels],
) -> None:
    """Prepare and classify all images, a thread for each core."""

    def share(first: int) -> None:
        own = images[first::CORES]
        for start in range(0, len(own), _GROUP):
            for pixels in [*map(decode, own[start : start + _GROUP])]:
                network(pixels)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(share, range(CORES)))


def prepared(image: Path) -> Pixels:
    """An image as `infer` decodes and resizes it, unchecked."""
    pixels = simplejpeg.decode_jpeg(image.read_bytes(), "GRAY")[..., 0]
    return prepare(Radiograph(pixels, 255, "", "JPEG"), InputSpec())


def network_of(model: Path) -> Callable[[Pixels], object]:
    """From a prepared image to logits, on one thread."""
    session = single_threaded(model)
    return lambda pixels: session.run(["logits"], {"images": pixels[None]})


def parts(model: Path, images: Sequence[Path]) -> tuple[float, float]:
    """Seconds an image for decoding with resizing and for the network, one thread alone."""
    set_up()
    network = network_of(model)
    list(map(prepared, images[:_GROUP]))
    started = time.perf_counter()
    pixels = [*map(prepared, images)]
    decoded = time.perf_counter()
    for image in pixels:
        network(image)
    ended = time.perf_counter()
    return (decoded - started) / len(images), (ended - decoded) / len(images)
