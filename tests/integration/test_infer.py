"""`deepcovid-edge infer` as a user meets it: the shipped model, real files, and a real process.

What is no matter of a process, such as what options do, is asked in this one: a start costs most of
a second.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import Done, command
from conftest import spread
from drawn_once import drawn_phantom, phantom_files

pytestmark = pytest.mark.int8

COMMAND = [sys.executable, "-m", "deepcovid_edge"]


def infer(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [*COMMAND, "infer", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)


def infer_here(*arguments: object) -> Done:
    return command("infer", *arguments)


def records_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    phantom_files(folder, count=6)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good images among ten kinds of broken files, each named after the reason it should get."""
    folder = tmp_path_factory.mktemp("mixed")
    phantom_files(folder, count=4)
    image = drawn_phantom(0)
    _, jpeg = cv2.imencode(".jpg", image)
    _, png = cv2.imencode(".png", image)
    yellow = np.zeros((300, 300, 3), np.uint8)
    yellow[..., 1:] = np.random.default_rng(0).integers(100, 255, (300, 300, 1))
    _, colour = cv2.imencode(".png", yellow)
    _, blank = cv2.imencode(".png", np.full((400, 400), 128, np.uint8))
    _, small = cv2.imencode(".png", image[:60, :60])
    _, wide = cv2.imencode(".png", image[:200, :900])
    cv2.imwritemulti(str(folder / "E_FRAMES.tif"), [image, image])
    cv2.imwrite(str(folder / "E_MODE.tiff"), image.astype(np.float32))
    content = {
        "E_NOT_IMAGE-empty.png": b"",
        "E_NOT_IMAGE-text.jpg": b"no image, but a letter\n" * 50,
        "E_TRUNCATED-half.jpg": jpeg.tobytes()[: len(jpeg) // 2],
        "E_TRUNCATED-half.png": png.tobytes()[: len(png) // 2],
        "E_COLOUR.png": colour.tobytes(),
        "E_BLANK.png": blank.tobytes(),
        "E_SHAPE-small.png": small.tobytes(),
        "E_SHAPE-wide.png": wide.tobytes(),
        "E_TRUNCATED-dicom.dcm": b"\0" * 128 + b"DICM" + b"\0" * 400,
        "E_FORMAT.pdf": b"%PDF-1.7\n" + b"x" * 500,
        "E_INCOMPLETE.png.part": png.tobytes(),
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_becomes_one_record_an_image(images: Path) -> None:
    done = infer(images)
    assert done.returncode == 0, done.stderr
    records = records_of(done.stdout)
    assert [Path(record["path"]).name for record in records] == sorted(
        image.name for image in images.iterdir()
    )
    for record in records:
        assert record["schema_version"] == 1
        assert record["status"] == "assessed"
        assert record["warnings"] == ["W_SYNTHETIC"]
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=2e-6)
        assert record["probability"] == record["probabilities"][record["positive_class"]]
        low, high = record["limits"]["low"], record["limits"]["high"]
        expected = "positive" if record["probability"] >= high else "indeterminate"
        assert record["decision"] == ("negative" if record["probability"] < low else expected)
        assert record["notice"] == "Research use only. Not a medical device."
    assert "6 images done" in done.stderr


def test_bad_files_get_their_own_reason_and_stop_nothing(mixed: Path) -> None:
    done = infer(mixed)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    for record in records_of(done.stdout):
        name = Path(record["path"]).name
        if name.startswith("phantom"):
            assert record["status"] == "assessed"
            continue
        assert record["reason"] == name.partition(".")[0].partition("-")[0]
        assert record["status"] == "not_assessed"
        assert record["message"]
        values = [record[key] for key in ("probability", "probabilities", "decision")]
        assert values == [None] * 3


def test_batches_and_threads_change_no_record(mixed: Path) -> None:
    def classified(*options: object) -> list[dict[str, Any]]:
        records = records_of(infer_here(mixed, *options).stdout)
        for record in records:
            del record["timings_ms"]
            record["probability"] = pytest.approx(record["probability"], abs=2e-6)
            record["probabilities"] = pytest.approx(record["probabilities"] or {}, abs=2e-6)
        return records

    plain = records_of(infer_here(mixed, "--batch-size", 1, "--workers", 1).stdout)
    for record in plain:
        del record["timings_ms"]
        record["probabilities"] = record["probabilities"] or {}
    for options in (("--batch-size", 3), ("--batch-size", 64, "--workers", 4)):
        assert classified(*options) == plain


def test_csv_and_output_file_hold_what_stdout_holds(images: Path, tmp_path: Path) -> None:
    lines = records_of(infer_here(images).stdout)
    rows = list(csv.DictReader(io.StringIO(infer_here(images, "--csv").stdout)))
    assert infer_here(images, "-o", tmp_path / "r.csv").returncode == 0
    assert infer_here(images, "-o", tmp_path / "r.jsonl").returncode == 0
    stored_rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    stored_lines = records_of((tmp_path / "r.jsonl").read_text())
    expected = [(line["path"], str(line["probability"])) for line in lines]
    assert [(row["path"], row["probability"]) for row in rows] == expected
    assert [(row["path"], row["probability"]) for row in stored_rows] == expected
    assert [(line["path"], str(line["probability"])) for line in stored_lines] == expected


def test_table_is_for_people(images: Path) -> None:
    done = infer_here(images, "--table")
    assert done.stdout.splitlines()[0].split() == ["image", "result", "covid"]
    assert len(done.stdout.splitlines()) == 8
    assert "Research use only" in done.stdout


def test_threshold_of_the_command_line_decides(images: Path) -> None:
    for threshold, decision in ((0, "positive"), (1, "negative")):
        records = records_of(infer_here(images, "--threshold", threshold).stdout)
        assert {record["decision"] for record in records} == {decision}
        assert {record["limits"]["threshold"] for record in records} == {threshold}


def test_an_image_named_twice_is_judged_once(images: Path) -> None:
    image = sorted(images.iterdir())[0]
    assert len(records_of(infer_here(images, image, image).stdout)) == 6


@pytest.mark.parametrize(
    "times",
    [4, pytest.param(10, marks=pytest.mark.slow)],  # a start, killed or not, takes a second
)
def test_killed_at_random_and_resumed_no_image_is_lost_or_doubled(
    images: Path, tmp_path: Path, times: int
) -> None:
    folder, output, count = tmp_path / "many", tmp_path / "out.jsonl", 24 * times
    folder.mkdir()
    originals = sorted(images.iterdir())
    for number in range(count):
        (folder / f"{number:04d}.png").symlink_to(originals[number % len(originals)])
    draw = random.Random(7)
    command = [*COMMAND, "infer", str(folder), "-o", str(output), "--resume", "--batch-size", "2"]
    killed = 0
    for _ in range(times):
        before = output.stat().st_size if output.exists() else 0
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not (output.exists() and output.stat().st_size > before):
                assert time.monotonic() < deadline
                if process.poll() is not None:
                    break
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
        killed += process.returncode == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    counts = Counter(record["path"] for record in records_of(output.read_text()))
    assert killed >= times - 2
    assert counts == {str(folder / f"{number:04d}.png"): 1 for number in range(count)}


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_what_is_done(images: Path, tmp_path: Path, kind: signal.Signals) -> None:
    folder, output = tmp_path / "many", tmp_path / "out.jsonl"
    folder.mkdir()
    image = sorted(images.iterdir())[0]
    for number in range(2000):
        (folder / f"{number:04d}.png").symlink_to(image)
    command = [*COMMAND, "infer", str(folder), "-o", str(output)]
    # A shell's background job ignores SIGINT, and hands that on to what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        while not (output.exists() and output.stat().st_size > 2000):
            time.sleep(0.01)
        process.send_signal(kind)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in messages
    assert "--resume goes on" in messages
    paths = [record["path"] for record in records_of(output.read_text())]
    assert paths == [str(folder / f"{number:04d}.png") for number in range(len(paths))]


def test_a_stop_while_a_runtime_is_imported_is_a_stop(images: Path, tmp_path: Path) -> None:
    """A module of pybind11 makes an ImportError of whatever ends its initialisation."""
    (tmp_path / "onnxruntime.py").write_text(
        "try:\n"
        "    raise KeyboardInterrupt\n"
        "except KeyboardInterrupt as stop:\n"
        "    raise ImportError('initialization failed') from stop\n"
    )
    done = infer(images, "--json", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 130
    assert "broken" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_leaves_the_import_lock_taken_ends_the_run(
    images: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    """As one in the midst of an import may: the threads that read PNG import Pillow meanwhile."""
    (tmp_path / "onnxruntime.py").write_text(
        f"import _imp, os\n_imp.acquire_lock()\nos.kill(os.getpid(), {kind.value})\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = infer(images, "--json", "--workers", "3", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Stopped.\n")


def test_the_first_images_are_refused_too_where_their_folder_is_still_to_be_made(
    images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "folder" / "out.jsonl"
    done = infer_here(images, "-o", output, "--min-free", 1 << 40, "--workers", 3)
    assert done.returncode == 4
    assert {record["reason"] for record in records_of(output.read_text())} == {"E_DISK"}


@pytest.mark.parametrize(
    "line",
    ["infer IMAGES --json", "infer IMAGES --csv", "infer IMAGES --table", "info", "infer --help"],
)
def test_a_closed_pipe_ends_quietly(images: Path, line: str) -> None:
    program = f"{' '.join(COMMAND)} {line} | sleep 0".replace("IMAGES", str(images))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


USERS_ERRORS: list[tuple[list[str], int, str]] = [
    (["no-such-image.png"], 6, "no-such-image.png: no such file or folder"),
    (["{images}", "--model", "no-such-model"], 6, "expected a shipped model (squeezenet1_1"),
    (["{images}", "--model", "{images}/phantom_000.png"], 1, "no backend runs .png files"),
    (["{images}", "--provider", "cuda"], 6, "pip install 'deepcovid-edge[gpu]'"),
    (["{images}", "--batch-size", "0"], 2, "--batch-size: got 0"),
    (["{images}", "--threshold", "2"], 2, "--threshold: got 2.0"),
    (["{images}", "--backend", "abacus"], 2, "'abacus' is not one of"),
    (["{images}", "--resume"], 2, "--resume: needs an output file"),
    (["{images}", "-o", "x.html"], 2, ".html is not written"),
    (["{images}", "-o", "x.tif"], 2, ".tif is not written"),
    (["{images}", "-o", "x.jsonl.gz"], 2, ".gz is not written"),
    (["{images}", "-o", "n" * 300 + ".jsonl"], 1, "name too long"),
    (["n" * 300], 6, "no such file or folder"),
    (["{images}", "-o", "/dev/null/x.jsonl"], 1, "cannot be written"),
    ([], 2, "Missing argument"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), USERS_ERRORS)
def test_a_users_error_is_one_sentence_and_its_code(
    images: Path, arguments: list[str], code: int, message: str
) -> None:
    if "cuda" in arguments:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has CUDA: the sentence for one without cannot show")
    done = infer_here(*[argument.format(images=images) for argument in arguments])
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("arguments", "code", "message"), [USERS_ERRORS[n] for n in (0, 7, 13)])
def test_a_process_ends_with_its_code(
    images: Path, arguments: list[str], code: int, message: str
) -> None:
    """One of each code that such an error has."""
    done = infer(*[argument.format(images=images) for argument in arguments])
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_none_is_refused_with_its_name(images: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake.onnx"
    fake.write_text("not a model")
    done = infer_here(images, "--model", fake)
    assert done.returncode == 1
    assert "fake.onnx: not an ONNX model" in done.stderr


def test_output_among_the_images_is_not_taken_for_one(images: Path, tmp_path: Path) -> None:
    for image in sorted(images.iterdir())[:2]:
        (tmp_path / image.name).symlink_to(image)
    for options in ((), ("--resume",)):
        done = infer_here(tmp_path, "-o", tmp_path / "results.jsonl", *options)
        assert done.returncode == 0, done.stderr
        assert len(records_of((tmp_path / "results.jsonl").read_text())) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "is its disk or share mounted?"),
        (".hidden.png", "1 hidden file was passed over."),
        ("DICOMDIR", "is its disk or share mounted?"),
        ("lost+found/a.png", "1 system folder was passed over: lost+found."),
        ("r.jsonl", "is its disk or share mounted?"),
    ],
)
def test_a_folder_without_an_image_is_not_there(
    name: str | None, said: str, images: Path, tmp_path: Path
) -> None:
    """The share of `images` may be mounted: a folder beside it counts all the same."""
    empty, output = tmp_path / "empty", tmp_path / "empty" / "r.jsonl"
    empty.mkdir()
    if name:
        (empty / name).parent.mkdir(exist_ok=True)
        (empty / name).write_text("kept")
    for paths in ([empty], [images, empty]):
        done = infer_here(*paths, "-o", output)
        assert (done.returncode, done.stdout) == (6, "")
        assert f"Error: no image found in {empty}: {said}" in done.stderr
    assert output.exists() == (name == "r.jsonl")  # earlier results are not lost


def test_a_folder_of_files_that_are_no_images_has_their_records(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear colleague")
    done = infer_here(tmp_path)
    assert (done.returncode, len(records_of(done.stdout))) == (4, 1)


def test_an_output_that_is_one_of_the_images_is_refused(images: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    content = sorted(images.iterdir())[0].read_bytes()
    image.write_bytes(content)
    done = infer_here(image, "-o", image)
    assert done.returncode == 2
    assert "is one of the images" in done.stderr
    assert image.read_bytes() == content


def test_a_full_disk_behind_stdout_is_one_sentence(images: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "infer", str(images)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("encoding", "option"),
    spread(
        ("utf-8:strict", "ascii:strict", "utf-8:surrogateescape"),
        ("--json", "--csv", "--table"),
        of=3,
    ),
)
def test_names_that_are_no_unicode_are_records_like_others(
    images: Path, tmp_path: Path, encoding: str, option: str
) -> None:
    name = os.fsencode(tmp_path) + b"/image\xff.png"
    os.link(os.fsencode(sorted(images.iterdir())[0]), name)
    line: list[str | bytes] = [*COMMAND, "infer", os.fsencode(tmp_path), option]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(line, capture_output=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"image" in done.stdout


INPUT = {"resize": "centre_crop", "interpolation": "area"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ["a", "b", "covid"]}, "no logits for the 3 classes of its manifest"),
        (
            {"input": {**INPUT, "height": 128, "width": 128}},
            "its manifest says images (batch, 128, 128)",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_its_graph_is_refused(
    images: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx writes the model that does not fit")
    from deepcovid_edge.models import find_model

    model = onnx.load(find_model("squeezenet1_1"))
    entry = model.metadata_props[0]
    entry.value = json.dumps(json.loads(entry.value) | change)
    onnx.save(model, tmp_path / "odd.onnx")
    done = infer_here(images, "--model", tmp_path / "odd.onnx")
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_images_read_while_the_model_loads_are_read_as_it_wants_them(
    images: Path, tmp_path: Path
) -> None:
    """They are read as most models want them, before it is known what this one wants."""
    pytest.importorskip("onnx", reason="onnx writes the model that letterboxes")
    from deepcovid_edge import Model
    from deepcovid_edge.manifest import ResizeRule, read_manifest
    from deepcovid_edge.models import find_model
    from deepcovid_export.onnx_export.to_onnx import rewrite_manifest

    model = tmp_path / "letterbox.onnx"
    model.write_bytes(find_model("squeezenet1_1").read_bytes())
    manifest = read_manifest(model)
    spec = replace(manifest.input, resize=ResizeRule.LETTERBOX)
    rewrite_manifest(model, replace(manifest, input=spec))
    with Model(model, workers=1) as loaded:
        expected = [record.probability for record in loaded.predict(sorted(images.iterdir()))]
    for chosen in (model, find_model("squeezenet1_1")):
        done = infer(images, "--model", chosen, "--workers", "3", "--backend", "onnxruntime")
        assert done.returncode == 0, done.stderr
        found = [record["probability"] for record in records_of(done.stdout)]
        assert (found == expected) == (chosen == model)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nothing_is_sent_anywhere_and_nothing_is_left_at_home(backend: str, tmp_path: Path) -> None:
    """Both runtimes bring telemetry along; a cart calls nobody. ONNX Runtime writes an id first."""
    pytest.importorskip(backend)
    program = (
        "import socket\n"
        "def refuse(*arguments, **_): raise SystemExit(f'reached out to {arguments}')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from deepcovid_edge.cli.main import run\n"
        f"code = run(['infer', {str(tmp_path / 'images')!r}, '--backend', {backend!r}])\n"
        "import multiprocessing\n"
        "assert code == 0 and not multiprocessing.active_children()\n"
    )
    phantom_files(tmp_path / "images", count=1)
    home = tmp_path / "home"
    home.mkdir()
    # What turns the telemetry off by chance: a service of tests, and a caller that asked for it.
    hidden = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "XDG_CACHE_HOME"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**env, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*"))
