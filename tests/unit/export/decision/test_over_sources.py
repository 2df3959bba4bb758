"""Which images the out-of-distribution limits are fitted on where there are very many."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

for needed in ("onnx", "torch"):
    pytest.importorskip(needed, reason=f"{needed} (extra export) is needed to make models")

from deepcovid_edge.datasets.dataset import LabelledImage
from deepcovid_export.decision.fit_ood import over_sources


def images(**counts: int) -> list[LabelledImage]:
    return [
        LabelledImage(Path(f"{source}{number}.png"), "covid", source=source)
        for source, count in counts.items()
        for number in range(count)
    ]


def test_every_source_is_read_alike_and_always_the_same_images() -> None:
    many = images(large=500, middle=40, small=3)
    chosen = over_sources(many, 60)
    assert Counter(it.source for it in chosen) == {"large": 29, "middle": 28, "small": 3}
    assert chosen == over_sources(many[::-1], 60)
    assert over_sources(many, 600) == many
