"""Site files: what a model did on a clinic's own images, and which threshold to use there.

A site file names the model by its SHA-256, so that its threshold is never used with another model,
and its images by one hash over all of them. It holds no file name and nothing about a patient.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcovid_edge.decision.record import SiteName
from deepcovid_edge.errors import SettingsMismatchError
from deepcovid_edge.files import read_named, write_text
from deepcovid_edge.manifest import IndeterminateRange

SCHEMA_VERSION = 1
USABLE, NOT_USABLE, NOT_ENOUGH = "usable", "not usable", "not enough images"
"""The verdicts of a site check."""
FAILED, NONE_CAN_PASS = "failed", "no threshold can reach what is required"
"""How the sentences end that say why a model is not usable."""
_CHECKSUM = "checksum"


@dataclass(frozen=True)
class Site:
    """What a run needs of a site file.

    Attributes:
        path: The file.
        name: The site's name, with the file's SHA-256.
        model: Name of the model that was checked.
        model_sha256: SHA-256 of its file.
        threshold: Probability from which an image is positive there.
        indeterminate_range: Probabilities too close to call there; None for none.
        verdict: `usable`, `not usable` or `not enough images`.
        reasons: Why, in sentences.
    """

    path: Path
    name: SiteName
    model: str
    model_sha256: str
    threshold: float
    indeterminate_range: IndeterminateRange | None
    verdict: str
    reasons: tuple[str, ...]

    @property
    def is_unproved(self) -> bool:
        """Whether its images were too few to prove that the model may be used there."""
        return self.verdict != USABLE

    def check(self, model: str, model_sha256: str) -> None:
        """Reject another model, or one that is not usable there.

        Raises:
            SettingsMismatchError: The file does not let this model classify.
        """
        if model_sha256 != self.model_sha256:
            raise SettingsMismatchError(
                f"{self.path}: is for {self.model} ({self.model_sha256[:16]}), this run would use "
                f"{model} ({model_sha256[:16]}): check that one at the site, or name the other "
                "with --model, --variant or --backend"
            )
        if self.verdict == NOT_USABLE:
            ends = tuple(f": {end}." for end in (FAILED, NONE_CAN_PASS))
            failed = [reason for reason in self.reasons if reason.endswith(ends)]
            raise SettingsMismatchError(
                f"{self.path}: the verdict is `{NOT_USABLE}`. {' '.join(failed or self.reasons)} "
                "Choose another model, and check that one at the site"
            )


def write_site(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a site file in one step, with a checksum over all that it says.

    Raises:
        OutputError: The disk is full, the folder cannot be written, or an image is there.
    """
    whole = {**facts, _CHECKSUM: _checksum(facts)}
    write_text(path, json.dumps(whole, indent=2, allow_nan=False) + "\n")


def read_site(path: Path) -> Site:
    """Read a site file.

    Raises:
        NotThereError: The file cannot be opened.
        SettingsMismatchError: It is damaged, was changed by hand, or is of another version.
    """
    content = read_named(path)
    try:
        return _site(path, content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsMismatchError(
            f"{path}: no site file, or a damaged one ({_short(error)}): make it again with "
            "`deepcovid-edge site-check`"
        ) from error


def _site(path: Path, content: bytes) -> Site:
    facts = json.loads(content)
    if facts.pop(_CHECKSUM) != _checksum(facts):
        raise ValueError("its checksum is not that of its content")
    if facts["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version {facts['schema_version']}, expected {SCHEMA_VERSION}")
    if facts["verdict"] not in (USABLE, NOT_USABLE, NOT_ENOUGH):
        raise ValueError(f"verdict {facts['verdict']}")
    threshold = float(facts["threshold"])
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold}")
    stated = facts["indeterminate_range"]
    limits = IndeterminateRange(**stated) if stated else None
    if limits and not limits.low <= threshold <= limits.high:
        raise ValueError(f"threshold {threshold} outside the indeterminate range")
    return Site(
        path=path,
        name=SiteName(str(facts["name"]), hashlib.sha256(content).hexdigest()),
        model=str(facts["model"]["name"]),
        model_sha256=str(facts["model"]["sha256"]),
        threshold=threshold,
        indeterminate_range=limits,
        verdict=facts["verdict"],
        reasons=tuple(map(str, facts["reasons"])),
    )


def _checksum(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _short(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
