"""Load a model and measure it: the function behind `deepcovid-edge bench`."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Backend
from deepcovid_edge.benchmarking.gauges import GpuGauge, gpu_gauge
from deepcovid_edge.benchmarking.results import EVENTS, HOST, Part, Result, Run
from deepcovid_edge.benchmarking.samples import Samples
from deepcovid_edge.benchmarking.scenarios import (
    MILLISECOND,
    Clock,
    HostClock,
    Outcome,
    Until,
    Work,
    offline,
    one_after_another,
    poisson_arrivals,
    server,
)
from deepcovid_edge.benchmarking.settings import (
    MULTI,
    NETWORK,
    OFFLINE,
    SERVER,
    SINGLE,
    BenchSettings,
)
from deepcovid_edge.benchmarking.watch import Watch, peak_rss_mib
from deepcovid_edge.benchmarking.work import EndToEndWork, NetworkWork, TellsParts, lanes_of
from deepcovid_edge.errors import BenchError, NotAssessedError
from deepcovid_edge.files import read_regular
from deepcovid_edge.imaging.prepare import prepare
from deepcovid_edge.imaging.reading import read_radiograph
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.pipeline.pipeline import default_batch_size
from deepcovid_edge.reasons import NOTICE, WarningCode
from deepcovid_edge.validation.diagnostics import device_facts, versions

_PARTS_CALLS = 100
_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_MODULE_LOADING",
    "OMP_NUM_THREADS",
    "ORT_DISABLE_ALL_OPTIMIZATION",
    "LD_PRELOAD",
    "MALLOC_ARENA_MAX",
)
_TIMING = {
    "host_clock": f"time.{HOST}",
    "network": "prepared batch in host memory to logits in host memory; on a GPU both transfers "
    "are included",
    "end-to-end": "from opening the file to its record, through deepcovid_edge.pipeline; writing "
    "the record is not included",
    "parts": "host_to_device, compute and device_to_host by CUDA events, in separate calls without "
    "a CUDA graph; all else by the host's clock, each image's share of its batch",
}


@dataclass(frozen=True)
class BenchImages:
    """The images of a measurement.

    Attributes:
        paths: Files that the model assesses.
        pixels: The same, prepared, of shape (N, H, W), uint8.
        name: Name of the set, such as a folder's.
        excluded: Files that cannot be assessed: name -> reason code.
    """

    paths: tuple[Path, ...]
    pixels: NDArray[np.uint8]
    name: str
    excluded: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """How many, how large, and a digest of what they hold."""
        digest = sha256()
        for path in self.paths:
            digest.update(sha256(read_regular(path)).digest())
        return {
            "name": self.name,
            "images": len(self.paths),
            "bytes": sum(path.stat().st_size for path in self.paths),
            "sha256": digest.hexdigest(),
            "excluded": dict(self.excluded),
        }


def bench_images(paths: Sequence[Path], spec: InputSpec, *, name: str) -> BenchImages:
    """Prepare images once; files that cannot be assessed are excluded.

    Raises:
        BenchError: No file can be assessed.
    """
    kept, pixels, excluded = [], [], {}
    for path in paths:
        try:
            pixels.append(prepare(read_radiograph(path, spec), spec))
        except NotAssessedError as error:
            excluded[path.name] = error.reason.code
        else:
            kept.append(path)
    if not kept:
        why = ", ".join(sorted(set(excluded.values()))) or "no files"
        raise BenchError(f"{name}: no image to measure with ({why}): name a folder of radiographs")
    return BenchImages(tuple(kept), np.stack(pixels), name, excluded)


def bench(
    load: Callable[[], Backend],
    images: Callable[[InputSpec], BenchImages],
    settings: BenchSettings | None = None,
    *,
    clock: Clock | None = None,
    gauge: GpuGauge | None = None,
    check: Callable[[Mapping[str, Any]], None] = lambda _: None,
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Measure a model.

    Args:
        load: Loads the model; the time this takes is measured.
        images: Prepares the images for the model's input.
        settings: What is measured, and for how long.
        clock: None for the host's.
        gauge: Reads the GPU; None for the one that is found.
        check: Called with the header, as far as it is known before the first run; what it raises
            ends the measurement.
        progress: Called with the name of each run as it begins.

    Raises:
        BenchError: There is no image to measure with, or one changed during the measurement.
    """
    settings, clock = settings or BenchSettings(), clock or HostClock()
    found = gauge is None
    gauge = gauge or gpu_gauge()
    began, idle = clock.now(), gauge.reading() if gauge else {}
    try:
        with load() as backend:
            loaded = clock.now()
            chosen = images(backend.manifest.input)
            ready = clock.now()
            backend.infer(chosen.pixels[:1])
            answered = clock.now()
            header = _header(backend, chosen, settings)
            if gauge:
                header["device"] |= {f"gpu_{k}": v for k, v in gauge.versions().items()}
            check(header)
            bench = _Bench(backend, chosen, settings, clock, gauge)
            runs = []
            for scope, scenario in product(settings.scopes, settings.scenarios):
                progress(f"{scope}, {scenario}")
                runs.append(bench.run(scope, scenario))
            header["start"] = {
                "load_ms": (loaded - began) / MILLISECOND,
                "first_result_ms": (loaded - began + answered - ready) / MILLISECOND,
                "means": "from loading the model to the first logits, without the start of "
                "Python and reading the image",
            }
            header["memory"] = _memory(runs, idle)
    finally:
        if gauge and found:
            gauge.close()
    return Result(header, tuple(runs))


@dataclass(frozen=True)
class _Bench:
    """A loaded model with the images, the settings and the instruments of a measurement."""

    backend: Backend
    images: BenchImages
    settings: BenchSettings
    clock: Clock
    gauge: GpuGauge | None

    def run(self, scope: str, scenario: str) -> Run:
        """Measure one scenario in one scope."""
        settings = self.settings
        batch = self._batch(scenario)
        parallel = scenario in (OFFLINE, SERVER)
        lanes = lanes_of(self.backend, scope, settings.workers) if parallel else 1
        work = self._work(scope, batch, lanes)
        warm_up = self._go(work, scenario, batch, lanes, Until(settings.warm_up, 1))
        with Watch(self.gauge) as watch:
            until = Until(settings.seconds, settings.queries)
            outcome = self._go(work, scenario, batch, lanes, until)
        parts = {name: Part(HOST, np.array(values)) for name, values in outcome.parts.items()}
        if isinstance(work, NetworkWork):
            parts |= _device_parts(self.backend, work.payload(0, batch))
        return Run(
            scope=scope,
            scenario=scenario,
            batch=batch,
            lanes=lanes,
            samples=Samples.of(outcome.queries, zero=outcome.zero),
            warm_up=Samples.of(warm_up.queries, zero=warm_up.zero),
            parts=parts,
            watched=watch.facts(),
            rate=settings.rate if scenario == SERVER else None,
            deadline_ms=settings.deadline_ms if scenario == SERVER else None,
            unserved=outcome.unserved,
        )

    def _batch(self, scenario: str) -> int:
        """Images per query, or in `offline` per inference."""
        if scenario == MULTI:
            return self.settings.streams
        if scenario == OFFLINE:
            return self.settings.batch_size or default_batch_size(self.backend)
        return 1

    def _work(self, scope: str, batch: int, lanes: int) -> NetworkWork | EndToEndWork:
        if scope == NETWORK:
            return NetworkWork(self.backend, self.images.pixels, self.clock, lanes=lanes)
        workers = self.settings.workers
        return EndToEndWork(self.backend, self.images.paths, workers=workers, batch_size=batch)

    def _go(self, work: Work, scenario: str, batch: int, lanes: int, until: Until) -> Outcome:
        if scenario in (SINGLE, MULTI):
            return one_after_another(work, batch, until, self.clock)
        if scenario == OFFLINE:
            return offline(work, batch, until, self.clock)
        arrivals = poisson_arrivals(self.settings.rate or 1.0, until, self.settings.seed)
        deadline = int(self.settings.deadline_ms * MILLISECOND)
        return server(work, arrivals, deadline, lanes, self.clock)


def _device_parts(backend: Backend, payload: NDArray[np.uint8]) -> dict[str, Part]:
    """Parts of a call by CUDA events, where the backend has them."""
    if not isinstance(backend, TellsParts):
        return {}
    calls = [backend.infer_in_parts(payload) for _ in range(_PARTS_CALLS)]
    return {name: Part(EVENTS, np.array([call[name] for call in calls])) for name in calls[0]}


def _header(backend: Backend, images: BenchImages, settings: BenchSettings) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "measured_at": now.isoformat(timespec="seconds"),
        "notice": NOTICE,
        "device": device_facts(),
        "versions": versions(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "model": model_facts(backend),
        "data": images.facts(),
        "settings": asdict(settings),
        "timing": _TIMING,
    }


def model_facts(backend: Backend) -> dict[str, Any]:
    """What ran, and the verdict of its equivalence check."""
    manifest = backend.manifest
    engine = getattr(backend, "facts", None)
    if WarningCode.UNVERIFIED in backend.warnings:
        verdict = "not verified"
    elif engine is not None or manifest.is_derived:
        verdict = "unchanged"
    else:
        verdict = "the reference itself"
    return {
        "name": manifest.name,
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "backend": backend.name,
        "sha256": backend.sha256,
        "parent_sha256": engine.parent_sha256 if engine else manifest.parent_sha256,
        "input": asdict(manifest.input),
        "equivalence": verdict,
    }


def _memory(runs: Sequence[Run], idle: Mapping[str, Any]) -> dict[str, Any]:
    """Peaks of resident memory with children, and of the GPU's, with its use before loading."""
    before = idle.get("gpu_memory_mib")
    peaks = [
        run.watched["gpu_memory_mib"]["max"] for run in runs if "gpu_memory_mib" in run.watched
    ]
    return {
        "peak_rss_mib": peak_rss_mib(),
        "gpu_before_mib": before,
        "gpu_peak_mib": max(peaks) if peaks else None,
    }
