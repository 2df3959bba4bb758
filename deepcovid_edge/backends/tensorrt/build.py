"""Typed ONNX to TensorRT engine: one path for TensorRT 10.3 to 11 and TensorRT-RTX.

Precision is in the graph (FP16 casts, Q/DQ), so the network is strongly typed and none of the
precision flags that TensorRT 11 removed is touched; other features are looked for by name. The
build runs in a process of its own (`build_process`).
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepcovid_edge.backends.tensorrt.build_process import BuildRequest, Progress, run_builder
from deepcovid_edge.backends.tensorrt.files import (
    LIBRARIES,
    EngineFacts,
    Fit,
    Profile,
    check_engine,
    engine_name,
    write_engine,
)
from deepcovid_edge.device.gpu import GpuFacts, find_gpu
from deepcovid_edge.errors import (
    BuildError,
    DeepCovidEdgeError,
    MissingDependencyError,
    NotThereError,
    UsageError,
)
from deepcovid_edge.files import cache_folder, file_sha256, locked, remove_unfinished
from deepcovid_edge.manifest import ModelManifest, read_manifest
from deepcovid_edge.models.graph.tensorrt_rules import check_typed

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
HIGHEST_LEVEL = 5
_LEVEL = 3
"""Optimisation level where none is asked for."""
_MIB = 1 << 20
_WORKSPACE_SHARE = 0.5
"""Share of the free memory that a build may use: a Jetson's GPU shares it with everything."""
_TIMING_CACHE_NAME = "{library}-{version}-{capability}.timing"


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built.

    Attributes:
        profile: The batch sizes it takes.
        target: `local`, or `rtx:sm86,sm89` for TensorRT-RTX ahead of time, without a GPU.
        workspace_mib: Memory the builder may use, MiB; None for a share of what is free, or for
            that of the engine that is there.
        level: Optimisation level, 0 to 5, lowered on failure; None for 3, or for that of the engine
            that is there.
        timing_cache: Keep what the builder measured, for the next build.
        folder: Where the engine goes; None for the cache.
        rebuild: Build although a fitting engine is there.
    """

    profile: Profile = field(default_factory=Profile)
    target: str = "local"
    workspace_mib: int | None = None
    level: int | None = None
    timing_cache: bool = True
    folder: Path | None = None
    rebuild: bool = False

    def __post_init__(self) -> None:
        if self.level is not None and not 0 <= self.level <= HIGHEST_LEVEL:
            raise UsageError(f"level: got {self.level}, expected 0 to {HIGHEST_LEVEL}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"workspace: got {self.workspace_mib}, expected auto or MiB from 1")
        if self.target != "local":
            rtx_capabilities(self.target)


def rtx_capabilities(target: str) -> tuple[str, ...]:
    """Compute capabilities of a target such as `rtx:sm86,sm89`.

    Raises:
        UsageError: The text is not a target.
    """
    kind, _, listed = target.partition(":")
    capabilities = tuple(part for part in listed.split(",") if part)
    unknown = sorted(set(capabilities) - set(RTX_TARGETS))
    if kind != "rtx" or not capabilities or unknown:
        raise UsageError(
            f"target: got {target!r}, expected local or rtx: with some of "
            f"{', '.join(RTX_TARGETS)}, such as rtx:sm86,sm89"
        )
    return capabilities


def installed_libraries() -> dict[str, str]:
    """Which TensorRT libraries are installed: module name to version."""
    found = {}
    for name in LIBRARIES:
        if find_spec(name) is None:
            continue
        try:  # the package's own record: importing maps hundreds of MB
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            with contextlib.suppress(ImportError, OSError):
                found[name] = str(import_module(name).__version__)
    return found


def device_fit(gpu: GpuFacts | None = None, *, library: str | None = None) -> Fit:
    """What this device offers to engines.

    Args:
        gpu: The GPU, where it is known already.
        library: The library that is wanted; None for the first that is installed.

    Raises:
        MissingDependencyError: Neither TensorRT nor TensorRT-RTX is installed.
        NotThereError: There is no NVIDIA GPU, or its driver does not answer.
    """
    libraries = installed_libraries()
    if not libraries:
        raise MissingDependencyError(
            "TensorRT is not installed: pip install 'deepcovid-edge[tensorrt]' (on a Jetson it "
            "comes with JetPack: see jetson/install.sh) or 'deepcovid-edge[rtx]'"
        )
    gpu = gpu or find_gpu()
    if gpu is None:
        raise NotThereError(
            "no NVIDIA GPU answers here, and an engine is built where it runs; TensorRT-RTX "
            "builds without one: --target rtx:sm86,sm89"
        )
    chosen = library if library in libraries else next(iter(libraries))
    return Fit(chosen, libraries[chosen], (gpu.capability,), gpu.name)


def build(
    model: Path, settings: BuildSettings | None = None, *, progress: Progress | None = None
) -> tuple[Path, EngineFacts]:
    """Build the engine of a model, or find it in the cache.

    Args:
        model: A typed .onnx file of `export` or `quantize`.
        settings: How it is built.
        progress: Called with what the builder reports.

    Raises:
        ModelFileError: The file carries no manifest, or a graph that TensorRT does not take.
        NotThereError: TensorRT, or a GPU to build for, is not there.
        BuildError: TensorRT failed, or the process that built was killed or stalled.
        OutputError: The engine cannot be written, or another process builds it and does not end.
    """
    settings = settings or BuildSettings()
    manifest = read_manifest(model)
    check_typed(model)
    fit = _fit_of(settings)
    digest = file_sha256(model)
    folder = settings.folder or cache_folder()
    name = engine_name(manifest, digest, fit, settings.profile)
    report = progress or (lambda _: None)
    with locked(folder, name, lambda why: report({"event": "waiting", "why": why})):
        known = None if settings.rebuild else _known(folder / name, fit, digest)
        if known is not None and _built_so(known, settings):
            return folder / name, known
        remove_unfinished(folder / name)
        plan, builder = _build_apart(model, manifest, fit, settings, folder, progress)
        facts = EngineFacts(manifest, fit, settings.profile, digest, "", builder)
        engine = write_engine(folder, name, plan, facts)
        return engine, check_engine(engine, fit)


def _fit_of(settings: BuildSettings) -> Fit:
    if settings.target == "local":
        return device_fit()
    libraries = installed_libraries()
    if "tensorrt_rtx" not in libraries:
        raise MissingDependencyError(
            "TensorRT-RTX is not installed: pip install 'deepcovid-edge[rtx]'"
        )
    return Fit("tensorrt_rtx", libraries["tensorrt_rtx"], rtx_capabilities(settings.target))


def _known(engine: Path, fit: Fit, parent_sha256: str) -> EngineFacts | None:
    if not engine.is_file():
        return None
    try:
        return check_engine(engine, fit, parent_sha256=parent_sha256)
    except DeepCovidEdgeError:
        return None  # it is built again


def _built_so(facts: EngineFacts, settings: BuildSettings) -> bool:
    """Whether an engine was built at the level and in the workspace that are asked for, if any."""
    builder = facts.builder
    asked = builder["level"] + len(builder["failures"])  # each failure lowered it by one
    fits_level = settings.level in (None, asked)
    return fits_level and settings.workspace_mib in (None, builder["workspace_mib"])


def _build_apart(
    model: Path,
    manifest: ModelManifest,
    fit: Fit,
    settings: BuildSettings,
    folder: Path,
    progress: Progress | None,
) -> tuple[bytes, dict[str, Any]]:
    """Build in processes of their own, with a lower level after each failure."""
    ahead_of_time = settings.target != "local"
    timing_cache = ""
    if settings.timing_cache and fit.library == "tensorrt":  # TensorRT-RTX has none
        facts = {**asdict(fit), "capability": "-".join(fit.capabilities)}
        timing_cache = str(folder / _TIMING_CACHE_NAME.format(**facts))
    started = time.monotonic()
    failures: list[str] = []
    highest = _LEVEL if settings.level is None else settings.level
    for level in range(highest, -1, -1):
        with tempfile.TemporaryDirectory() as place:
            request = BuildRequest(
                model=str(model.resolve()),
                plan=f"{place}/plan",
                library=fit.library,
                capabilities=list(fit.capabilities) if ahead_of_time else [],
                profile=asdict(settings.profile),
                height=manifest.input.height,
                width=manifest.input.width,
                workspace=(settings.workspace_mib or _free_mib()) * _MIB,
                level=level,
                timing_cache=timing_cache,
            )
            outcome = run_builder(request, progress)
            if outcome.get("event") == "done":
                builder = {
                    "level": level,
                    "workspace_mib": request.workspace // _MIB,
                    "seconds": round(time.monotonic() - started, 2),
                    "messages": outcome["messages"],
                    "failures": failures,
                }
                return Path(request.plan).read_bytes(), builder
        failures.append(str(outcome["why"]))
        if outcome.get("final"):
            break
    raise BuildError(f"{model}: {failures[-1]}")


def _free_mib() -> int:
    gpu = find_gpu()
    free = gpu.free_mib if gpu and gpu.free_mib else _available_memory_mib()
    return max(64, int(free * _WORKSPACE_SHARE))


def _available_memory_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 1024
