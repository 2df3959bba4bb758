"""Engine files: their names, their facts, the cache they lie in, and whether one fits here.

An engine is a plain plan, as `trtexec --loadEngine` reads it, with its facts in a JSON file of the
same stem beside it. An engine is executable code: its SHA-256 is checked before it is
deserialised. It is a cache of the ONNX file and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deepcovid_edge.errors import (
    EngineMismatchError,
    ModelFileError,
    NotThereError,
    OutputError,
    one_line,
)
from deepcovid_edge.files import file_sha256, read_named, write_atomically
from deepcovid_edge.manifest import ModelManifest, check_kind

SCHEMA_VERSION = 1
SUFFIX = ".engine"
LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""Libraries that build and run engines, by module."""


@dataclass(frozen=True)
class Profile:
    """The batch sizes an engine takes.

    Attributes:
        min: Smallest batch.
        opt: The batch it is tuned for.
        max: Largest batch.
    """

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= 4096:
            raise ValueError(
                f"batch: got {self.min},{self.opt},{self.max}, expected three rising numbers "
                "from 1 on, such as 1,8,32"
            )

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read `1,8,32`, or one number for all three.

        Raises:
            ValueError: The text is something else.
        """
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 3):
            raise ValueError(f"batch: got {text!r}, expected MIN,OPT,MAX such as 1,8,32")
        return cls(*numbers) if len(numbers) == 3 else cls(*(numbers * 3))

    def images_run(self, batch: int) -> tuple[int, int]:
        """What a batch costs: calls, since none takes more than the largest, and images in them.

        A call below the smallest batch is filled up.
        """
        calls = -(-batch // self.max)
        return calls, max(batch, calls * self.min)


@dataclass(frozen=True)
class Fit:
    """What an engine was built for, and what a device offers: they must agree.

    Attributes:
        library: `tensorrt` or `tensorrt_rtx`.
        version: Version of that library, such as `10.3.0`.
        capabilities: Compute capabilities, such as `("sm87",)`.
        gpu: Name of the GPU; plain TensorRT tunes for one, TensorRT-RTX does not.
    """

    library: str
    version: str
    capabilities: tuple[str, ...]
    gpu: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "capabilities", tuple(self.capabilities))

    def differences(self, device: Fit) -> list[str]:
        """What keeps an engine of this fit from a device, in words; empty where it fits."""
        found = []
        if self.library != device.library:
            found.append(f"was built with {self.library}, here is {device.library}")
        elif self.version != device.version:
            found.append(f"was built with {self.library} {self.version}, here is {device.version}")
        if not set(device.capabilities) <= set(self.capabilities):
            built, here = ", ".join(self.capabilities), ", ".join(device.capabilities)
            found.append(f"was built for {built}, this GPU is {here or 'unknown'}")
        elif self.library == "tensorrt" and self.gpu and device.gpu not in ("", self.gpu):
            found.append(f"was tuned for {self.gpu}, this GPU is {device.gpu}")
        return found


@dataclass(frozen=True)
class EngineFacts:
    """Facts about an engine, as the JSON file beside it has them.

    Attributes:
        manifest: The manifest of the model it was made of.
        fit: What it was built for.
        profile: The batch sizes it takes.
        parent_sha256: SHA-256 of the .onnx file it was made of.
        sha256: SHA-256 of the engine.
        builder: How it was built: level, workspace, seconds, messages.
        verification: The verdict of `verify`, and its reference: the parent, or the FP32 model
            that the parent is a variant of; None without one.
        schema_version: Version of this structure.
    """

    manifest: ModelManifest
    fit: Fit
    profile: Profile
    parent_sha256: str
    sha256: str
    builder: Mapping[str, Any] = field(default_factory=dict)
    verification: Mapping[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def is_verified(self) -> bool:
        """Whether `verify` found it unchanged against its reference."""
        return bool(self.verification) and (self.verification or {}).get("verdict") == "unchanged"

    @property
    def is_proved(self) -> bool:
        """Whether it was found to decide as the FP32 model does.

        It was compared with that model, or with its parent, which is that model or proved itself.
        """
        reference = (self.verification or {}).get("reference", {}).get("sha256")
        of_fp32 = self.manifest.is_proved or reference == self.manifest.parent_sha256
        return self.is_verified and of_fp32

    def to_json(self) -> str:
        """The facts as JSON: the manifest's fields at the top, the rest under `engine`."""
        values = asdict(self)
        manifest = json.loads(self.manifest.to_json())
        del values["manifest"]
        return json.dumps({**manifest, "engine": values}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EngineFacts:
        """Parse and check the facts.

        Raises:
            ModelFileError: The text is not what `to_json` writes.
        """
        try:
            values = json.loads(text)
            own = values.pop("engine")
            known = {item.name for item in fields(cls)} - {"manifest"}
            own = {name: value for name, value in own.items() if name in known}
            _check_kinds(own)
            own["fit"], own["profile"] = Fit(**own["fit"]), Profile(**own["profile"])
            if own["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"engine.schema_version: got {own['schema_version']}")
            return cls(manifest=ModelManifest.from_json(json.dumps(values)), **own)
        except KeyError as error:
            raise ModelFileError(f"engine facts: no {error}") from error
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ModelFileError(f"engine facts: {error}") from error


def _check_kinds(own: Mapping[str, Any]) -> None:
    """Reject what would pass as something else, such as a word as a list of letters."""
    for name in ("parent_sha256", "sha256"):
        check_kind(name, own[name], (str,))
    check_kind("builder", own["builder"], (dict,))
    check_kind("verification", own["verification"], (dict, type(None)))
    check_kind("verification.reference", (own["verification"] or {}).get("reference", {}), (dict,))
    check_kind("fit.capabilities", own["fit"]["capabilities"], (list,))
    for name in ("library", "version", "gpu"):
        check_kind(f"fit.{name}", own["fit"][name], (str,))
    for one in own["fit"]["capabilities"]:
        check_kind("fit.capabilities", one, (str,))
    for name in ("min", "opt", "max"):
        check_kind(f"profile.{name}", own["profile"][name], (int,))


def engine_name(manifest: ModelManifest, onnx_sha256: str, fit: Fit, profile: Profile) -> str:
    """File name of an engine: everything that it depends on."""
    capabilities = "-".join(fit.capabilities)
    library = "trt" if fit.library == "tensorrt" else "rtx"
    return (
        f"{manifest.name}-{onnx_sha256[:8]}.{manifest.precision}."
        f"b{profile.min}-{profile.opt}-{profile.max}.{capabilities}.{library}{fit.version}{SUFFIX}"
    )


def facts_path(engine: Path) -> Path:
    """The JSON file beside an engine."""
    return engine.with_suffix(".json")


def read_facts(engine: Path) -> EngineFacts:
    """Read the facts beside an engine.

    Raises:
        NotThereError: There is no engine.
        EngineMismatchError: There are no facts beside it.
        ModelFileError: The facts are not what this project writes.
    """
    if not engine.is_file():
        raise NotThereError(f"{engine}: no such engine")
    path = facts_path(engine)
    if not path.is_file():
        raise EngineMismatchError(
            f"{engine}: no {path.name} beside it, so classes, threshold and origin are unknown: "
            "build it with `deepcovid-edge build MODEL`"
        )
    try:
        return EngineFacts.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ModelFileError) as error:
        raise ModelFileError(
            f"{path}: {one_line(error)}: build the engine again with `deepcovid-edge build MODEL`"
        ) from error


def check_engine(engine: Path, device: Fit, *, parent_sha256: str | None = None) -> EngineFacts:
    """Check an engine that is not run now; `read_engine` checks one that is.

    Args:
        engine: The engine file.
        device: What this device offers.
        parent_sha256: SHA-256 of the model it should have been made of, if that is known.

    Raises:
        EngineMismatchError: The engine was changed since it was built, or does not fit the device,
            its TensorRT or its parent; the message has the command that builds a fitting one.
    """
    facts = _fitting_facts(engine, device)
    if parent_sha256 not in (None, facts.parent_sha256):
        raise EngineMismatchError(
            f"{engine}: was made of another model file: build it again: {rebuild_command(facts)}"
        )
    _check_sha256(engine, file_sha256(engine), facts)
    return facts


def read_engine(engine: Path, device: Fit) -> tuple[EngineFacts, bytes]:
    """Read an engine to deserialise it: the bytes that were checked, and no others.

    Raises:
        NotThereError: The file cannot be read.
        EngineMismatchError: As `check_engine`.
    """
    facts = _fitting_facts(engine, device)
    plan = read_named(engine)
    _check_sha256(engine, hashlib.sha256(plan).hexdigest(), facts)
    return facts, plan


def _fitting_facts(engine: Path, device: Fit) -> EngineFacts:
    facts = read_facts(engine)
    if found := facts.fit.differences(device):
        raise EngineMismatchError(
            f"{engine}: {'; '.join(found)}: build it again: {rebuild_command(facts)}"
        )
    return facts


def _check_sha256(engine: Path, sha256: str, facts: EngineFacts) -> None:
    if sha256 != facts.sha256:
        raise EngineMismatchError(
            f"{engine}: its bytes are not those that were built (sha256 differs), so it is not "
            f"run: build it again: {rebuild_command(facts)}"
        )


def rebuild_command(facts: EngineFacts) -> str:
    """The command that builds this engine again on the device where it is run."""
    profile = facts.profile
    model = f"{facts.manifest.name}.onnx"
    return f"deepcovid-edge build {model} --batch {profile.min},{profile.opt},{profile.max}"


def write_engine(folder: Path, name: str, plan: bytes, facts: EngineFacts) -> Path:
    """Write an engine and its facts so that a reader sees both or neither.

    Raises:
        OutputError: The folder cannot be written.
    """
    engine = folder / name
    facts = replace(facts, sha256=hashlib.sha256(plan).hexdigest())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        facts_path(engine).unlink(missing_ok=True)  # an engine without facts is not loaded
        write_atomically(engine, plan, sync=True)
        write_atomically(facts_path(engine), facts.to_json().encode(), sync=True)
    except OSError as error:
        raise OutputError(f"{engine}: cannot be written: {error.strerror or error}") from error
    return engine


def record_verification(engine: Path, report: Mapping[str, Any]) -> EngineFacts:
    """Write the verdict and chief figures of `verify` into an engine's facts."""
    kept = (
        *("verdict", "failed", "missing", "unproved", "reference"),
        *("images", "data_sha256", "flips", "auc", "rules"),
    )
    facts = read_facts(engine)
    facts = replace(facts, verification={name: report[name] for name in kept})
    write_atomically(facts_path(engine), facts.to_json().encode(), sync=True)
    return facts
