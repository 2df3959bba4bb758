"""Options that would do nothing are refused, with what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import command

INFER, HEATMAP = ("infer", "images"), ("heatmap", "images", "--method", "activation")
BUILD = ("build", "squeezenet1_1")
QUANTIZE = ("quantize", "squeezenet1_1", "--calibration", "images", "--precision", "int8")
EXPORT = ("export", "squeezenet1_1")
BENCH = ("bench", "squeezenet1_1")
LATENCY = (*BENCH, "--scenario", "single-stream")
TRAIN = ("train", "images", "--allow-leaks")
SCREEN = ("screen", "images.parquet")
SUMMARY = ("screen", "results", "--summary")
NO_SUMMARY = "needs a run without --summary"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*INFER, "--overlay"), "--overlay needs --heatmap"),
        ((*INFER, "--budget", "1s"), "--budget needs --heatmap occlusion"),
        (
            (*INFER, "--heatmap", "activation", "--budget", "1s"),
            "--budget needs --heatmap occlusion",
        ),
        ((*INFER, "--heatmap-dir", "maps"), "--heatmap-dir needs --heatmap or --html"),
        ((*HEATMAP, "--window", "32"), "--window needs --method occlusion"),
        ((*HEATMAP, "--stride", "8"), "--stride needs --method occlusion"),
        ((*HEATMAP, "--baseline", "mean"), "--baseline needs --method occlusion"),
        ((*HEATMAP, "--budget", "1s"), "--budget needs --method occlusion"),
        ((*BUILD, "--split", "val"), "--split needs --verify"),
        ((*QUANTIZE, "--split", "val"), "--split needs --verify"),
        ((*QUANTIZE, "--for", "cpu", "--rest", "fp32"), "--rest needs --for tensorrt"),
        ((*EXPORT, "--children", "images"), "--children needs --fit"),
        ((*EXPORT, "--platform", "onnxruntime_onnx"), "--platform needs --triton"),
        ((*EXPORT, "--instances", "2"), "--instances needs --triton"),
        ((*EXPORT, "--triton", "t", "--fit", "images"), "--fit needs an export without --triton"),
        ((*EXPORT, "--triton", "t", "-o", "x.onnx"), "-o needs an export without --triton"),
        ((*BENCH, "--deadline", "100"), "--deadline needs the server scenario: --rate"),
        ((*BENCH, "--seed", "1"), "--seed needs the server scenario: --rate"),
        ((*LATENCY, "--streams", "4"), "--streams needs --scenario multi-stream"),
        ((*LATENCY, "--batch-size", "4"), "--batch-size needs --scenario offline"),
        ((*LATENCY, "--workers", "2"), "--workers needs a scenario besides single-stream"),
        ((*SCREEN, "-o", "r", "--actors", "2"), "--actors needs --on"),
        ((*SCREEN, "-o", "r", "--patience", "9"), "--patience needs --on"),
        ((*SCREEN, "-o", "r", "--html", "page.html"), "--html needs --summary"),
        ((*SCREEN, "-o", "r", "--json"), "--json needs --summary"),
        ((*SUMMARY, "-o", "r"), f"-o {NO_SUMMARY}"),
        ((*SUMMARY, "--shard", "1/2"), f"--shard {NO_SUMMARY}"),
        ((*SUMMARY, "--on", "ray"), f"--on {NO_SUMMARY}"),
        ((*SUMMARY, "--model", "resnet18"), f"--model {NO_SUMMARY}"),
        ((*INFER, "--threshold", "0.5", "--indeterminate"), "has no indeterminate range: give one"),
        ((*INFER, "--indeterminate", "--threshold", "0.5"), "has no indeterminate range: give one"),
        ((*TRAIN, "--exclude-leaks"), "--allow-leaks: got exclude_leaks too"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    if words[0] in ("quantize", "export", "train"):
        pytest.importorskip("onnx", reason="the command needs extra export")
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert not [*tmp_path.iterdir()]
