"""Typed ONNX to TensorRT engine: one path for TensorRT 10.3 to 11 and TensorRT-RTX.

Precision is in the graph (FP16 casts, Q/DQ), so the network is strongly typed and none of the
precision flags that TensorRT 11 removed is touched; other features are looked for by name. The
build runs in a process of its own (`python -m deepcovid_edge.backends.tensorrt.build`), so that a
builder that is killed for memory is an explained error and not the end of the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
from deepcovid_edge.files import cache_folder, file_sha256, locked
from deepcovid_edge.graph.tensorrt_rules import check_typed
from deepcovid_edge.manifest import ModelManifest, read_manifest

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
HIGHEST_LEVEL = 5
_INPUT = "images"
_MIB = 1 << 20
_WORKSPACE_SHARE = 0.5
"""Share of the free memory that a build may use: a Jetson's GPU shares it with everything."""
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "OutOfMemory", "out of memory", "Cannot allocate")
_TIMING_CACHE_NAME = "{library}-{version}-{capability}.timing"

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class BuildSettings:
    """How an engine is built.

    Attributes:
        profile: The batch sizes it takes.
        target: `local`, or `rtx:sm86,sm89` for TensorRT-RTX ahead of time, without a GPU.
        workspace_mib: Memory the builder may use, MiB; None for a share of what is free.
        level: Optimisation level, 0 to 5; lowered on failure.
        timing_cache: Keep what the builder measured, for the next build.
        folder: Where the engine goes; None for the cache.
        rebuild: Build although a fitting engine is there.
    """

    profile: Profile = field(default_factory=Profile)
    target: str = "local"
    workspace_mib: int | None = None
    level: int = 3
    timing_cache: bool = True
    folder: Path | None = None
    rebuild: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.level <= HIGHEST_LEVEL:
            raise UsageError(f"--level: got {self.level}, expected 0 to {HIGHEST_LEVEL}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"--workspace: got {self.workspace_mib}, expected auto or MiB from 1")
        if self.target != "local":
            rtx_capabilities(self.target)


def rtx_capabilities(target: str) -> tuple[str, ...]:
    """Compute capabilities of a target such as `rtx:sm86,sm89`.

    Raises:
        UsageError: The text is no such target.
    """
    kind, _, listed = target.partition(":")
    capabilities = tuple(part for part in listed.split(",") if part)
    unknown = sorted(set(capabilities) - set(RTX_TARGETS))
    if kind != "rtx" or not capabilities or unknown:
        raise UsageError(
            f"--target: got {target!r}, expected local or rtx: with some of "
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

    Returns:
        The engine and its facts.

    Raises:
        ModelFileError: The file carries no manifest, or a graph that TensorRT does not take.
        NotThereError: TensorRT, or a GPU to build for, is not there.
        BuildError: TensorRT failed, or the process that built was killed.
    """
    settings = settings or BuildSettings()
    manifest = read_manifest(model)
    check_typed(model)
    fit = _fit_of(settings)
    digest = file_sha256(model)
    folder = settings.folder or cache_folder()
    name = engine_name(manifest, digest, fit, settings.profile)
    with locked(folder, name):
        if not settings.rebuild and (known := _known(folder / name, fit, digest)):
            return folder / name, known
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


@dataclass(frozen=True)
class _Request:
    """What the building process is told, as JSON on its command line."""

    model: str
    plan: str
    library: str
    capabilities: list[str]
    profile: dict[str, int]
    height: int
    width: int
    workspace: int
    level: int
    timing_cache: str


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
    for level in range(settings.level, -1, -1):
        with tempfile.TemporaryDirectory() as place:
            request = _Request(
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
            outcome = _run_builder(request, progress)
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


def _run_builder(request: _Request, progress: Progress | None) -> dict[str, Any]:
    """Run one build; its last event, or why there is none."""
    command = [
        sys.executable,
        "-m",
        "deepcovid_edge.backends.tensorrt.build",
        json.dumps(asdict(request)),
    ]
    last: dict[str, Any] = {}
    noise: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout or ():
            try:
                event = json.loads(line)
            except ValueError:
                noise.append(line.strip())
                continue
            last = event
            if progress:
                progress(event)
    if process.returncode == 0 and last.get("event") == "done":
        return last
    return _explained(process.returncode, request, [str(last.get("why", "")), *noise], last)


def _explained(
    code: int, request: _Request, said: list[str], last: Mapping[str, Any]
) -> dict[str, Any]:
    """A failure in our words: what ran out, what was said, and whether a lower level may help."""
    killed = code in (-signal.SIGKILL, -signal.SIGABRT)
    if killed or any(word in line for line in said for word in _OUT_OF_MEMORY):
        workspace = request.workspace // _MIB
        why = (
            f"the builder ran out of memory (workspace {workspace} MiB, level {request.level}): "
            "close other programs, or give a smaller --workspace or --batch"
        )
        return {"event": "failed", "why": why, "final": False}
    if last.get("event") == "failed":
        return dict(last)
    tail = " | ".join(line for line in said[-3:] if line)
    why = f"the builder ended with {code}: {tail or 'no message'}"
    return {"event": "failed", "why": why, "final": True}


def main() -> None:
    """Build what the request on the command line says, and report on standard output."""
    request = _Request(**json.loads(sys.argv[1]))
    try:
        _build_here(request)
    except _ParseError as error:
        _report(event="failed", why=str(error), final=True)
    except BuildError as error:
        _report(event="failed", why=str(error), final=False)


def _report(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class _ParseError(BuildError):
    """Raised where no lower level would help."""


def _build_here(request: _Request) -> None:
    """The build itself, in the process that was made for it."""
    trt = import_module(request.library)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    _parse(trt, network, logger, Path(request.model))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    config.builder_optimization_level = request.level
    _add_profile(builder, config, request)
    _set_capabilities(trt, config, request.capabilities)
    _load_timing_cache(config, request.timing_cache)
    config.progress_monitor = _monitor(trt)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        why = "; ".join(logger.errors[-3:]) or "TensorRT gave no reason"
        raise BuildError(f"TensorRT could not build the engine: {why}")
    Path(request.plan).write_bytes(plan)
    _save_timing_cache(config, request.timing_cache)
    _report(event="done", messages=logger.warnings[:20])


def _logger(trt: Any) -> Any:
    class Collector(trt.ILogger):  # type: ignore[misc]
        """Keeps the messages of errors and warnings instead of printing them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            levels = trt.ILogger.Severity
            if severity in (levels.INTERNAL_ERROR, levels.ERROR):
                self.errors.append(message)
            elif severity == levels.WARNING:
                self.warnings.append(message)

    return Collector()


def _parse(trt: Any, network: Any, logger: Any, model: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(model.read_bytes()):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = "; ".join(f"{_node(error)}: {error.desc()}" for error in errors[:3])
    raise _ParseError(f"TensorRT does not take the graph: {said or '; '.join(logger.errors[-3:])}")


def _node(error: Any) -> str:
    operator = getattr(error, "node_operator", lambda: "")()
    return f"{operator} {error.node_name()}".strip() or "model"


def _add_profile(builder: Any, config: Any, request: _Request) -> None:
    profile = builder.create_optimization_profile()
    shapes = [
        (request.profile[size], request.height, request.width) for size in ("min", "opt", "max")
    ]
    profile.set_shape(_INPUT, *shapes)
    config.add_optimization_profile(profile)


def _set_capabilities(trt: Any, config: Any, capabilities: list[str]) -> None:
    """Name the GPUs to build for, where no GPU is asked (TensorRT-RTX, ahead of time)."""
    if not capabilities:
        return
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        capability = getattr(trt.ComputeCapability, name.upper())
        if not config.set_compute_capability(capability, index):
            raise _ParseError(f"TensorRT-RTX does not build for {name}")


def _load_timing_cache(config: Any, path: str) -> None:
    if path:
        content = Path(path).read_bytes() if Path(path).is_file() else b""
        config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False)


def _save_timing_cache(config: Any, path: str) -> None:
    cache = config.get_timing_cache() if path else None
    if cache is not None:
        temporary = Path(f"{path}.{os.getpid()}.part")
        temporary.write_bytes(cache.serialize())
        temporary.replace(path)


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Reports the builder's phases; never asks it to stop."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            _report(event="phase", name=phase_name, parent=parent_phase, steps=num_steps)

        def phase_finish(self, phase_name: str) -> None:
            _report(event="finished", name=phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            _report(event="step", name=phase_name, step=step, steps=self.steps.get(phase_name))
            return True

    return Monitor()


if __name__ == "__main__":
    main()
