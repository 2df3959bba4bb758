"""A model that a server runs: image files go there as they are, and records come back.

At load the server's model must be the one that was asked for, by hash, or a variant that was
verified to decide as it does. With every record the hash of what arrived must be that of what was
sent: a transport that alters bytes gave answers, and wrong ones, where nobody compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isclose, isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends.base import Inference
from deepcovid_edge.backends.remote.client import Address, Client
from deepcovid_edge.errors import ModelFileError, ServerMismatchError, UsageError, one_line
from deepcovid_edge.files import Closing, file_sha256
from deepcovid_edge.manifest import VERSION, ModelManifest, read_manifest
from deepcovid_edge.reasons import Reason, WarningCode

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


def load(address: str, path: Path, variant: str | None = None) -> RemoteBackend:
    """Connect to a server and check its model.

    Args:
        address: Such as `kserve://10.0.0.5:8000`.
        path: The model that is asked for.
        variant: The one that the server must run; None for any.

    Raises:
        BackendUnavailableError: The server is not there, or does not let us in.
        ServerMismatchError: It runs another model, variant or version, or does not say which.
    """
    if path.suffix != ".onnx":
        raise UsageError(f"backend: {address}: got {path}, expected a shipped name or an .onnx")
    own = read_manifest(path)
    client = Client(Address.of(address), own.name)
    try:
        backend = RemoteBackend(client, address, client.facts())
        backend.check_model(own.name, file_sha256(path), variant)
    except BaseException:
        client.close()
        raise
    return backend


class RemoteBackend(Closing):
    """A model that a server runs. It takes image files (`base.AssessesFiles`), no pixels.

    Raises:
        ServerMismatchError: A fact is missing or damaged.
    """

    def __init__(self, client: Client, address: str, facts: Mapping[str, Any]) -> None:
        self._client, self._address = client, address
        try:
            self.manifest = ModelManifest.from_json(json.dumps(facts["manifest"]))
            self.version, self.sha256 = str(facts["version"]), str(facts["model_sha256"])
            self._parents = frozenset(map(str, facts["parents"]))
            self._computes_on, self.ood = str(facts["backend"]), str(facts["ood"])
            self.run_warnings = tuple(map(str, facts["run_warnings"]))
            self.warnings = tuple(map(WarningCode.of, facts["warnings"]))
        except KeyError as error:
            raise self._mismatch(f"the server does not say {error}") from error
        except (ModelFileError, TypeError, ValueError) as error:
            raise self._mismatch(f"damaged facts of its model: {one_line(error)}") from error

    @property
    def name(self) -> str:
        """What the server runs the model on."""
        return self._computes_on

    @property
    def on_cpu(self) -> bool:
        """True: the calling thread waits for the answer."""
        return True

    def check_model(self, name: str, sha256: str, variant: str | None) -> None:
        """Check that the server's model is the one that is asked for.

        Args:
            name: Of the model.
            sha256: Of its file.
            variant: The one that the server must run; None for any.

        Raises:
            ServerMismatchError: It is another one.
        """
        manifest = self.manifest
        derived = sha256 in self._parents and WarningCode.UNVERIFIED not in self.warnings
        if self.sha256 != sha256 and not derived:
            raise self._mismatch(
                f"model: its {manifest.name} has the SHA-256 {self.sha256[:12]}, expected "
                f"{sha256[:12]} of {name}, or a verified variant of it"
            )
        if variant not in (None, manifest.variant):
            raise self._mismatch(f"variant: it runs {manifest.variant}, expected {variant}")
        if self.version != VERSION:
            raise self._mismatch(f"version: it has {self.version}, expected {VERSION}")

    def check_ood(self, ood: str) -> None:
        """Check that the server treats out-of-distribution images as this run does.

        Raises:
            ServerMismatchError: It does not.
        """
        if ood != self.ood:
            raise self._mismatch(f"ood: it was started with {self.ood}, expected {ood}")

    def assess(self, data: bytes, sha256: str, suffix: str) -> Mapping[str, Any]:
        """See `base.AssessesFiles.assess`."""
        known = _SUFFIX.fullmatch(suffix)
        name = f"image{suffix}" if known else "image"  # the rest of a name may be a patient's
        record = self._client.record(data, name)
        self._check_record(record, sha256)
        return record

    def _check_record(self, record: Mapping[str, Any], sha256: str) -> None:
        if record.get("sha256") != sha256:
            raise ServerMismatchError(
                f"backend: {self._address}: the server received other bytes than were sent "
                f"(SHA-256 {str(record.get('sha256'))[:12]}, expected {sha256[:12]}): its record "
                "is of no image of this run"
            )
        if record.get("model_sha256") != self.sha256:
            raise self._mismatch("model: the server's model has changed since the run began")
        if not self._is_whole(record):
            raise ServerMismatchError(f"backend: {self._address}: a record is damaged")

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        """Whether a record has a reason, or else a probability for each class."""
        shares = record.get("probabilities")
        warnings, reason = record.get("warnings"), record.get("reason")
        if not isinstance(warnings, list) or not isinstance(record.get("timings_ms"), dict):
            return False
        if shares is None:
            return _is_reason(reason) and isinstance(record.get("message"), str)
        if reason is not None or not isinstance(shares, dict):
            return False
        values = [*shares.values()]
        return (
            tuple(shares) == self.manifest.classes
            and all(isinstance(value, float | int) and isfinite(value) for value in values)
            and all(0.0 <= value <= 1.0 for value in values)
            and isclose(sum(values), 1.0, abs_tol=1e-5 * len(values))
            and record.get("probability") == shares[self.manifest.positive_class]
        )

    def infer(self, batch: NDArray[np.uint8], *, activation_maps: bool = False) -> Inference:
        """Raise: pixels do not go to a server.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"backend: {self._address} takes image files and gives records: expected a backend "
            "on this machine for anything else"
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _mismatch(self, why: str) -> ServerMismatchError:
        return ServerMismatchError(f"backend: {self._address}: {why}")


def _is_reason(code: Any) -> bool:
    try:
        Reason.of(code)
    except ValueError:
        return False
    return True
