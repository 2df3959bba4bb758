"""Run our builder and runner against the real classes of one TensorRT version, without a GPU.

    python probe.py FOLDER_OF_BINDINGS | rtx

The classes, enumerations and signatures are the real bindings'; the objects are stand-ins that
allow only what a class really has: an attribute that is missing, a property that cannot be set, a
call with arguments that the docstring's signature does not take, is an AttributeError or
TypeError, as it would be with the library. Prints what was used, one line each.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((.*)\) -> (.+)$", re.MULTILINE)
PARAMETER = re.compile(r"(\*?\w+)(?:: ((?:[^,\[]|\[[^\]]*\])+?))?( = .+)?$")
USED: set[str] = set()


def split(text: str) -> list[str]:
    """Split parameters at commas outside brackets and quotes."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def signatures(documented: Any) -> list[tuple[list[tuple[str, bool]], str]]:
    """Parameters (name, has default) without self, and return type, of each overload."""
    found = []
    for parameters, result in SIGNATURE.findall(inspect.getdoc(documented) or ""):
        names = []
        for part in split(parameters):
            match = PARAMETER.match(part)
            assert match, f"unread parameter {part!r} of {documented}"
            names.append((match[1], match[3] is not None))
        found.append(([pair for pair in names if pair[0] != "self"], result.strip()))
    return found


def fits(parameters: list[tuple[str, bool]], count: int, keywords: set[str]) -> bool:
    if any(name.startswith("*") for name, _ in parameters):
        return True
    rest = parameters[count:]
    if count > len(parameters) or keywords - {name for name, _ in rest}:
        return False
    return all(default or name in keywords for name, default in rest)


class Stand:
    """A stand-in for an object of a real class."""

    def __init__(self, module: Any, kind: type, answers: dict[str, Any]) -> None:
        object.__setattr__(self, "_of", (module, kind, answers))

    def __getattr__(self, name: str) -> Any:
        module, kind, answers = object.__getattribute__(self, "_of")
        member = getattr(kind, name)  # AttributeError where this version has none
        USED.add(f"{kind.__name__}.{name}")
        if isinstance(member, property):
            result = (signatures(member.fget) or [([], "object")])[0][1]
            return answers.get(name, value(module, result, answers))

        def call(*arguments: Any, **keywords: Any) -> Any:
            overloads = signatures(member)
            for parameters, result in overloads:
                if fits(parameters, len(arguments), set(keywords)):
                    answer = answers.get(name, value(module, result, answers))
                    return answer(*arguments) if callable(answer) else answer
            raise TypeError(f"{kind.__name__}.{name} takes {overloads}, got {arguments}{keywords}")

        return call

    def __setattr__(self, name: str, new: Any) -> None:
        _, kind, _ = object.__getattribute__(self, "_of")
        member = getattr(kind, name)
        assert isinstance(member, property), f"{kind.__name__}.{name} is no property"
        assert member.fset is not None, f"{kind.__name__}.{name} cannot be set"
        USED.add(f"{kind.__name__}.{name} =")


def value(module: Any, result: str, answers: dict[str, Any]) -> Any:
    """Something of the type that a docstring names."""
    name = result.rpartition(".")[2]
    if name in ("IHostMemory", "bytes", "buffer"):
        return b"plan"
    plain = {"bool": True, "int": 2, "str": "text", "None": None}
    if name in plain:
        return plain[name]
    kind = getattr(module, name, None)
    return Stand(module, kind, answers) if isinstance(kind, type) else None


class Bindings:
    """The module: real enumerations and base classes, stand-ins for what needs the library."""

    NEEDS_LIBRARY = ("Builder", "OnnxParser", "Runtime", "Logger")

    def __init__(self, module: Any, answers: dict[str, Any]) -> None:
        self._module, self._answers = module, answers
        self.__version__ = module.__version__

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)
        USED.add(name)
        if name not in self.NEEDS_LIBRARY:
            return real

        class Made(Stand):
            def __init__(stand, *arguments: Any) -> None:
                overloads = signatures(real.__init__)
                taken = any(fits(p, len(arguments), set()) for p, _ in overloads)
                assert taken, f"{name}{arguments}: takes {overloads}"
                super().__init__(self._module, real, self._answers)

        for severity in ("ERROR", "WARNING"):
            if hasattr(real, severity):
                setattr(Made, severity, getattr(real, severity))
        return Made


def main() -> None:
    where = sys.argv[1]
    if where == "rtx":
        module = importlib.import_module("tensorrt_rtx")
    else:
        sys.path.insert(0, where)
        module = importlib.import_module("tensorrt_bindings")
    run(module, "tensorrt_rtx" if where == "rtx" else "tensorrt")
    print(json.dumps(sorted(USED)))


def run(module: Any, library: str) -> None:
    tensors = ["images", "logits", "activation_maps"]
    modes = module.TensorIOMode
    answers = {
        "num_io_tensors": len(tensors),
        "get_tensor_name": lambda index: tensors[index],
        "get_tensor_mode": lambda name: modes.INPUT if name == "images" else modes.OUTPUT,
        "get_tensor_shape": lambda name: (-1, 224, 224) if name == "images" else (-1, 2),
        "num_errors": 1,
    }
    # The docstring names the C++ class, not the one that Python sees.
    answers["get_error"] = lambda index: Stand(module, module.ParserError, answers)
    sys.modules[library] = Bindings(module, answers)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as place:
        build(Path(place), library)
        refuse(Path(place), library)
        serve(Path(place), library)


def request(place: Path, library: str) -> Any:
    from deepcovid_edge.backends.tensorrt import build_process

    model = place / "model.onnx"
    model.write_bytes(b"onnx")
    timing = place / "timing"
    timing.write_bytes(b"cache")
    return build_process.BuildRequest(
        model=str(model),
        plan=str(place / "plan"),
        library=library,
        capabilities=["sm86", "sm89"] if library == "tensorrt_rtx" else [],
        profile={"min": 1, "opt": 8, "max": 32},
        height=224,
        width=224,
        workspace=1 << 30,
        level=3,
        timing_cache=str(timing) if library == "tensorrt" else "",
    )


def build(place: Path, library: str) -> None:
    from deepcovid_edge.backends.tensorrt import build_process

    asked = request(place, library)
    build_process._report = lambda **event: None
    build_process._build_here(asked)
    assert Path(asked.plan).read_bytes() == b"plan"
    trt = sys.modules[library]
    monitor = build_process._monitor(trt)
    monitor.phase_start("phase", None, 3)
    assert monitor.step_complete("phase", 1) is True
    monitor.phase_finish("phase")
    logger = build_process._logger(trt)
    logger.log(trt.ILogger.Severity.ERROR, "broken")
    logger.log(trt.ILogger.Severity.WARNING, "odd")
    assert (logger.errors, logger.warnings) == (["broken"], ["odd"])


def refuse(place: Path, library: str) -> None:
    """The way on which the parser refuses the graph."""
    from deepcovid_edge.backends.tensorrt import build_process

    trt = sys.modules[library]
    trt._answers["parse"] = False
    said = ""
    try:
        build_process._build_here(request(place, library))
    except build_process._ParseError as error:
        said = str(error)
    assert "does not take the graph" in said


def serve(place: Path, library: str) -> None:
    from deepcovid_edge.backends.tensorrt.backend import DeserialisedEngine

    class Facts:
        class fit:
            pass

    Facts.fit.library = library  # type: ignore[attr-defined]
    plan = place / "plan"
    engine = DeserialisedEngine(sys.modules[library], plan, plan.read_bytes(), Facts)  # type: ignore[arg-type]
    assert set(engine.outputs) == {"logits", "activation_maps"}
    assert engine.captures_itself == (library == "tensorrt_rtx")
    context = engine.context()
    context.set_batch(8)
    context.bind("images", 4096)

    class Stream:
        handle = 1

    context.enqueue(Stream())
    context.destroy()
    engine.destroy()


if __name__ == "__main__":
    main()
