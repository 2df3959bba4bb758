"""Do the INT8 variant's heat maps show what the FP32 variant's show? `verify --heatmap` on val.

    python -m benchmarks.heatmaps.precision --data DATA

No time is measured. The variant is the one beside the model (`NAME-int8-cpu.onnx`), or
`--candidate`.
"""

from __future__ import annotations

from benchmarks.measure import store
from benchmarks.measure.options import parser_of
from deepcovid_edge.backends import INT8_CPU_SUFFIX, load_backend
from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.heatmaps.agreement import MapComparison
from deepcovid_edge.models import find_model
from deepcovid_edge.validation.verify import verify

KEPT = ("failed", "reference", "candidate", "rules", "data_sha256", "heatmap")


def main() -> None:
    """Compare, and store the result."""
    parser = parser_of(__doc__, data="images with val", model="one")
    parser.add_argument("--candidate", help="name or file  [default: the INT8 variant beside it]")
    parser.add_argument("--images", type=int, default=50)
    options = parser.parse_args()
    model = find_model(options.model)
    beside = str(model.with_name(f"{model.stem}{INT8_CPU_SUFFIX}.onnx"))
    images = load_dataset(options.data, split="val")
    with (
        load_backend(model) as before,
        load_backend(find_model(options.candidate or beside)) as now,
    ):
        report = verify(before, now, images, heatmaps=MapComparison(options.images)).as_dict()
    maps = report["heatmap"]
    print({name: maps[name] for name in ("rank_correlation", "top_overlap", "peak_shift")})
    figures = {"split": "val", **{name: report[name] for name in KEPT}}
    store(f"precision-{report['candidate']['name']}", figures, folder="heatmap")


if __name__ == "__main__":
    main()
