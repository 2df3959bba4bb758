"""Heat maps of a run: what their files are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.heatmaps.explainer import HeatMapMaker, HeatMapSettings, HeatMapWriter
from deepcovid_edge.heatmaps.files import read_map
from deepcovid_edge.heatmaps.heatmap import ACTIVATION, HeatMap, of_activation
from deepcovid_edge.manifest import InputSpec
from deepcovid_edge.pipeline.classifier import Explained
from deepcovid_edge.pipeline.reader import PreparedImage

RUN = RunFacts("m", "ab" * 32, "onnxruntime-cpu", "fp32", ("non", "covid"), "covid", 0.5)


class PlainMaker(HeatMapMaker):
    """Makes one plain map for every image."""

    def __init__(self) -> None:
        self.input = InputSpec(96, 96)

    def maps(self, assessed: Sequence[Explained]) -> Iterator[tuple[HeatMap | None, float]]:
        for _ in assessed:
            yield of_activation(np.ones((6, 6), np.float32), self.input), 0.0


def test_images_of_one_name_and_of_hashes_that_begin_alike_have_maps_of_their_own(
    tmp_path: Path,
) -> None:
    """Of 100,000 images, two have the same first 8 digits in 69 cases of 100."""
    image = PreparedImage("IM-0001.dcm", 0.0, shape=(96, 96), box_shape=(96, 96))
    record = Prediction("1/IM-0001.dcm", RUN, "55f6fa4d" + "0" * 56, timings_ms={})
    other = replace(record, path="2/IM-0001.dcm", sha256="55f6fa4d" + "1" * 56)
    writer = HeatMapWriter(PlainMaker(), HeatMapSettings(ACTIVATION, tmp_path))
    found = writer.explain([Explained(one, image) for one in (record, other)])
    facts = [read_map(Path(str(one.heatmap))).facts for one in found]
    assert [fact["path"] for fact in facts] == [record.path, other.path]
    assert Path(str(found[0].heatmap)).name == "IM-0001-55f6fa4d00000000.npz"
