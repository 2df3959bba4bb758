"""`deepcovid-edge quantize`: FP32 model to FP16 or INT8, with an equivalence check."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import check_needed, path_option
from deepcovid_edge.errors import require
from deepcovid_export.cli.options import choice_option

if TYPE_CHECKING:
    from deepcovid_export.quantization.quantize import Quantized


@click.command(
    epilog="Example: deepcovid-edge quantize squeezenet1_1 --precision int8 --for cpu "
    "--calibration images/",
)
@click.argument("model")
@click.option("--precision", type=click.Choice(["fp16", "int8"]), required=True)
@choice_option(
    "--for", "target", choices=("tensorrt", "cpu"), help="What will run INT8: the files differ."
)
@path_option(
    "--calibration",
    required=True,
    help="Labelled images; those of the split `train` are used, balanced over the classes.",
)
@path_option("-o", "--output", help="[default: MODEL-int8-cpu.onnx, ...]")
@click.option("--images", type=int, default=128, show_default=True, help="Most calibration images.")
@path_option(
    "--equivalence",
    help="Labelled images to compare decisions on.  [default: split val of the calibration data]",
)
@path_option(
    "--verify",
    "proof",
    help="Images with no part in making the file; the verdict on them goes into its manifest.",
)
@click.option("--split", help="Only the images of this split of --verify.")
@choice_option(
    "--rest",
    choices=("fp16", "fp32"),
    help="Precision of the layers that TensorRT does not run in INT8.",
)
@choice_option(
    "--adds",
    choices=("measured", "fused", "float"),
    help="Residual additions: in INT8 with their convolution, or in float.",
)
@click.option(
    "--max-excluded", type=int, help="Most layers left in higher precision.  [default: a third]"
)
@click.option("--sensitivity", is_flag=True, help="Show how much error each layer adds.")
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON on stdout.")
def command(
    model: str,
    precision: str,
    target: str,
    calibration: Path,
    output: Path | None,
    images: int,
    equivalence: Path | None,
    proof: Path | None,
    split: str | None,
    rest: str,
    adds: str,
    max_excluded: int | None,
    sensitivity: bool,
    as_json: bool,
) -> int:
    """Write MODEL, a shipped name or an FP32 .onnx of `export`, in lower precision.

    The file is written only if it passes the equivalence check: with fp16 no decision of MODEL may
    change, with int8 at most one in a hundred. Layers that would change too much stay in higher
    precision; the manifest lists them. The exit code is 3 if the check fails (then nothing is
    written), or if the verdict of --verify is not `unchanged` (the file holds that verdict).
    """
    check_needed("--verify", proof is not None, "split")
    check_needed("--for tensorrt", target == "tensorrt", "rest", "adds")
    require("onnx", extra="export")
    require("onnxruntime", extra="export")
    from deepcovid_edge.datasets.dataset import check_not_read, load_one_split
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.models import find_model
    from deepcovid_edge.validation.verify import UNCHANGED
    from deepcovid_export.quantization.mixed_precision import Variant
    from deepcovid_export.quantization.quantize import QuantizeSettings, quantize

    check_not_read(output, find_model(model), calibration, equivalence, proof)
    set_up()
    settings = QuantizeSettings(
        Variant(precision, target, rest), images, adds, max_excluded, sensitivity
    )
    done = quantize(
        find_model(model),
        calibration,
        settings,
        equivalence=equivalence,
        proof=load_one_split(proof, split=split) if proof else (),
        output=output,
        progress=lambda line: click.echo(line, err=True),
    )
    if sensitivity:
        for name, error in done.sensitivity.items():
            click.echo(f"{error:8.3%}  {name}", err=True)
    click.echo(_summary(done), err=True)
    if as_json:
        click.echo(_json(done))
    elif done.output:
        click.echo(done.output)
    proved = done.proof is None or done.proof["verdict"] == UNCHANGED
    return ExitCode.DONE if done.output and proved else ExitCode.NOT_EQUIVALENT


def _summary(done: Quantized) -> str:
    from deepcovid_edge.validation.verify import uncounted_text

    report, excluded = done.report, done.manifest.quantization["excluded"]
    lines = [f"failed: {sentence}" for sentence in report["failed"]]
    if uncounted := report["uncounted"]:
        lines.append(uncounted_text(uncounted))
    if excluded:
        lines.append(f"left in higher precision: {', '.join(excluded)}")
    for name, count in report["missing"].items():
        lines.append(
            f"too few: {count['images']} {name} images; {count['needed']} are needed, so that one "
            f"is at most {report['rules']['smallest_change']:.0%} of them"
        )
    lines += [f"not proved: {sentence}" for sentence in report["unproved"]]
    lines.append(f"verdict: {_verdict(report)}. Research use only.")
    if done.proof:
        lines.append(f"verified on other images: {_verdict(done.proof)}")
    if not done.output:
        lines.append("not written: the equivalence check fails")
    return "\n".join(lines)


def _verdict(report: dict[str, Any]) -> str:
    from deepcovid_edge.datasets.contents import repeated_text

    turned = f"{report['flips']['count']} of {report['images']} decisions turned"
    repeated = f"; {repeated_text(report['repeated'])}" if report["repeated"] else ""
    return f"{report['verdict']}, {turned}{repeated}"


def _json(done: Quantized) -> str:
    errors = done.sensitivity.items()
    outcome = {
        "output": str(done.output) if done.output else None,
        "manifest": json.loads(done.manifest.to_json()),
        "sensitivity": {name: error if math.isfinite(error) else None for name, error in errors},
        "report": done.report,
        "verified": done.proof,
    }
    return json.dumps(outcome, indent=2)
