"""Import torchvision's models, also where its compiled operators do not load."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from deepcovid_edge.errors import MissingDependencyError


def torchvision_models() -> Any:
    """The module `torchvision.models`.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its operators are missing,
    and `import torchvision` fails where it registers shapes for two of them
    (torchvision/_meta_registrations.py). No network here uses an operator, so the two are
    declared, without a body.
    """
    if "torchvision" not in sys.modules and not _operators_load():
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _KEPT_LIBRARIES.append(library)  # the declarations live as long as the object
    from torchvision import models

    return models


def _operators_load() -> bool:
    package = find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        raise MissingDependencyError(
            "torchvision is not installed: pip install 'deepcovid-edge[export]'"
        )
    folder = Path(package.submodule_search_locations[0])
    try:
        for compiled in folder.glob("_C*.so"):
            torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


_KEPT_LIBRARIES: list[torch.library.Library] = []
