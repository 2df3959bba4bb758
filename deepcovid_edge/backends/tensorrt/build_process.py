"""The process that builds an engine: how it is started and watched, and what runs inside it.

`python -m deepcovid_edge.backends.tensorrt.build_process REQUEST` builds one engine and reports on
standard output, an event a line, so that a builder that is killed for memory, or that waits for
ever because it could not start a thread, is an explained error and not the end of the caller.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deepcovid_edge.device.child_process import Child, StalledError
from deepcovid_edge.errors import BuildError

_MIB = 1 << 20
_INPUT = "images"
_OUT_OF_MEMORY = (
    *("bad_alloc", "MemoryError", "OutOfMemory", "out of memory", "annot allocate"),
    "Resource temporarily unavailable",  # a thread that had no memory for its stack
    *("failed to map segment", "can't start new thread"),
)
_STALLED_SECONDS = 60.0
"""A builder that neither speaks nor computes for so long never will: it reports each step."""
Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class BuildRequest:
    """What the building process builds, as JSON on its command line."""

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


def run_builder(request: BuildRequest, progress: Progress | None) -> dict[str, Any]:
    """Run one build; its last event, or why there is none."""
    last: dict[str, Any] = {}
    noise: list[str] = []
    try:
        with Child(_builder_command(request), patience=_STALLED_SECONDS) as child:
            for line in child.lines():
                try:
                    event = json.loads(line)
                except ValueError:
                    noise.append(line.strip())
                    continue
                last = event
                if progress:
                    progress(event)
    except StalledError as error:
        why = f"the builder {error} and was ended: out of memory is the likely cause"
        return {"event": "failed", "why": f"{why} {_memory_fix(request)}", "final": True}
    if child.code == 0 and last.get("event") == "done":
        return last
    return _explained(child.code, request, [str(last.get("why", "")), *noise], last)


def _builder_command(request: BuildRequest) -> list[str]:
    return [
        sys.executable,
        "-m",
        "deepcovid_edge.backends.tensorrt.build_process",
        json.dumps(asdict(request)),
    ]


def _explained(
    code: int | None, request: BuildRequest, output: list[str], last: Mapping[str, Any]
) -> dict[str, Any]:
    """A failure in plain words: what ran out, the output, and whether a lower level may help."""
    killed = code in (-signal.SIGKILL, -signal.SIGABRT)
    if killed or any(word in line for line in output for word in _OUT_OF_MEMORY):
        why = f"the builder ran out of memory {_memory_fix(request)}"
        return {"event": "failed", "why": why, "final": False}
    if last.get("event") == "failed":
        return dict(last)
    tail = " | ".join(line for line in output[-3:] if line)
    why = f"the builder ended with {code}: {tail or 'no message'}"
    return {"event": "failed", "why": why, "final": True}


def _memory_fix(request: BuildRequest) -> str:
    """What was asked for, and what may be done where it was too much."""
    return (
        f"(workspace {request.workspace // _MIB} MiB, level {request.level}): "
        f"close other programs, or give a smaller --workspace or --batch{_address_space_limit()}"
    )


def _address_space_limit() -> str:
    """That this shell limits the memory of a process, where it does."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    return f"; a process may have {limit // _MIB} MiB here: ulimit -v unlimited"


def main() -> None:
    """Build what the request on the command line says, and report on standard output."""
    request = BuildRequest(**json.loads(sys.argv[1]))
    try:
        _build_here(request)
    except ImportError as error:
        why = f"{request.library} cannot be loaded: {error}{_address_space_limit()}"
        _report(event="failed", why=why, final=True)
    except _ParseError as error:
        _report(event="failed", why=str(error), final=True)
    except BuildError as error:
        _report(event="failed", why=str(error), final=False)


def _report(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class _ParseError(BuildError):
    """Raised where no lower level would help."""


def _build_here(request: BuildRequest) -> None:
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
    found = "; ".join(f"{_node(error)}: {error.desc()}" for error in errors[:3])
    raise _ParseError(f"TensorRT does not take the graph: {found or '; '.join(logger.errors[-3:])}")


def _node(error: Any) -> str:
    operator = getattr(error, "node_operator", lambda: "")()
    return f"{operator} {error.node_name()}".strip() or "model"


def _add_profile(builder: Any, config: Any, request: BuildRequest) -> None:
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
