"""The sandbox of the DICOM decoders, and what it does where some are not installed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.reasons import Reason

pytest.importorskip("pydicom", reason="needs extra dicom")
pytest.importorskip("imagecodecs", reason="needs extra dicom")
from dicom_files import (
    HTJ2K,
    J2K,
    JPEG,
    JPEG_LS,
    LOSSLESS_SV1,
    RLE,
    WRITABLE,
    compressed,
    dataset,
    written,
)
from test_dicom_refusals import image

from deepcovid_edge.imaging.dicom.decoding import sandbox
from deepcovid_edge.imaging.dicom.decoding.sandbox import Limits, Request, Sandbox
from deepcovid_edge.imaging.dicom.syntaxes import SYNTAXES


def request(syntax: str = JPEG_LS, *, bits: int = 12, **changes: Any) -> Request:
    facts = {
        "syntax": syntax,
        "rows": 128,
        "columns": 160,
        "samples": 1,
        "allocated": 8 if bits == 8 else 16,
        "stored": bits,
        "signed": False,
        "photometric": "MONOCHROME2",
    }
    return Request(**{**facts, **changes})


@pytest.fixture
def pool() -> Iterator[Sandbox]:
    sandbox = Sandbox(Limits())
    yield sandbox
    sandbox.close()


def children() -> list[int]:
    """Living processes that decode for this one."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"worker" in Path("/proc", child, "cmdline").read_bytes():
                found.append(int(child))
    return found


def test_a_child_is_used_again(pool: Sandbox) -> None:
    before = set(children())
    for _ in range(5):
        assert np.array_equal(pool.decode(request(), compressed(image(12), 12, JPEG_LS)), image(12))
    assert len(set(children()) - before) == 1
    pool.close()
    assert not set(children()) - before


def test_there_are_as_many_children_as_threads(pool: Sandbox) -> None:
    frame = compressed(image(12), 12, JPEG_LS)
    before = set(children())
    with ThreadPoolExecutor(3) as threads:
        decoded = list(threads.map(lambda _: pool.decode(request(), frame), range(30)))
    assert all(np.array_equal(words, image(12)) for words in decoded)
    assert len(set(children()) - before) <= 3


def test_decoding_that_takes_too_long_costs_one_reason(pool: Sandbox) -> None:
    large = np.random.default_rng(0).integers(0, 4096, (2000, 2000), np.uint16)
    frame = compressed(large, 12, J2K)
    hurried = Sandbox(Limits(seconds=0.4))
    warm = compressed(image(12), 12, JPEG_LS)
    pool.decode(request(), warm)
    started = time.perf_counter()
    with pytest.raises(NotAssessedError, match=r"longer than 0\.4 s") as caught:
        hurried.decode(request(J2K, rows=2000, columns=2000), frame)
    assert caught.value.reason is Reason.DECODE
    assert time.perf_counter() - started < 2
    hurried.limits = Limits()
    assert np.array_equal(hurried.decode(request(), warm), image(12))
    hurried.close()


def test_codestream_that_wants_more_memory_than_its_header_says_costs_one_reason() -> None:
    frame = bytearray(compressed(image(12), 12, J2K))
    at = frame.index(b"\xff\x51") + 6  # ITU-T T.800, A.5.1: SIZ, then Xsiz and Ysiz
    for offset in (0, 4, 16, 20):  # image and tile
        frame[at + offset : at + offset + 4] = (60_000).to_bytes(4, "big")
    sandbox = Sandbox(Limits())
    before = time.perf_counter()
    with pytest.raises(NotAssessedError) as caught:
        sandbox.decode(request(J2K), bytes(frame))
    assert caught.value.reason is Reason.DECODE
    assert time.perf_counter() - before < 10
    assert np.array_equal(sandbox.decode(request(), compressed(image(12), 12, JPEG_LS)), image(12))
    sandbox.close()


def test_decoder_that_dies_costs_one_reason_and_the_next_image_a_new_one(pool: Sandbox) -> None:
    large = np.random.default_rng(0).integers(0, 4096, (2000, 2000), np.uint16)
    frame = compressed(large, 12, J2K)
    warm = compressed(image(12), 12, JPEG_LS)
    before = set(children())
    pool.decode(request(), warm)
    (child,) = set(children()) - before
    killer = threading.Timer(0.2, os.kill, (child, signal.SIGKILL))
    killer.start()
    with pytest.raises(NotAssessedError, match="decoder died") as caught:
        pool.decode(request(J2K, rows=2000, columns=2000), frame)
    killer.join()
    assert caught.value.reason is Reason.DECODE
    assert np.array_equal(pool.decode(request(), warm), image(12))


def test_child_that_died_between_images_costs_nothing(pool: Sandbox) -> None:
    warm = compressed(image(12), 12, JPEG_LS)
    before = set(children())
    pool.decode(request(), warm)
    (child,) = set(children()) - before
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # all its threads are gone
    assert np.array_equal(pool.decode(request(), warm), image(12))


def test_a_child_that_cannot_be_started_costs_one_reason_and_no_descriptors(
    pool: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(3):
        with pytest.raises(NotAssessedError, match="no process for the decoder"):
            pool.decode(request(), compressed(image(12), 12, JPEG_LS))
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_an_idle_child_holds_no_image_whatever_became_of_the_last(pool: Sandbox) -> None:
    warm = compressed(image(12), 12, JPEG_LS)
    for frame in (warm, warm[:200]):
        with contextlib.suppress(NotAssessedError):
            pool.decode(request(), frame)
        (child,) = pool._idle
        assert os.fstat(child._memory).st_size == 0


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.write(reply, b'{')", "took longer than 1 s"),
        ("os.close(reply)", "the decoder died"),
    ],
)
def test_a_decoder_that_spoils_its_pipe_is_not_waited_for(
    does: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"import os, sys, time; reply = int(sys.argv[3]); {does}; time.sleep(1000)"
    monkeypatch.setattr(sandbox, "_PROGRAM", program)
    pool = Sandbox(Limits(seconds=1))
    with pytest.raises(NotAssessedError, match=said):
        pool.decode(request(), compressed(image(12), 12, JPEG_LS))
    pool.close()


@pytest.mark.parametrize("fork", ["", "os.fork() or (os.close(1), time.sleep(20))"])
def test_children_end_with_their_parent(tmp_path: Path, fork: str) -> None:
    """Also where a process that was forked off still holds their pipe."""
    program = (
        "import sys, os, time, deepcovid_edge\n"
        "from pathlib import Path\n"
        "from deepcovid_edge.imaging.reading import read_radiograph\n"
        "read_radiograph(Path(sys.argv[1]))\n"
        "print(Path('/proc/self/task', str(os.getpid()), 'children').read_text())\n"
        "sys.stdout.flush()\n"
        f"{fork}\n"
        "os._exit(0)\n"  # as if it had been killed
    )
    place = tmp_path / "image.dcm"
    place.write_bytes(written(dataset(image(12), stored=12), JPEG_LS))
    done = subprocess.run(
        [sys.executable, "-c", program, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0
    (child,) = done.stdout.split()
    for _ in range(1500):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"child {child} outlived its parent")


def test_process_that_is_forked_off_has_children_of_its_own(tmp_path: Path) -> None:
    """As the loaders of a training run are."""
    program = (
        "import sys, multiprocessing\n"
        "from pathlib import Path\n"
        "from deepcovid_edge.imaging.reading import read_radiograph\n"
        "def digest(path): return int(read_radiograph(Path(path)).pixels.sum())\n"
        "paths = [sys.argv[1]] * 8\n"
        "one = digest(paths[0])\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    assert pool.map(digest, paths) == [one] * 8\n"
        "assert digest(paths[0]) == one\n"
    )
    place = tmp_path / "image.dcm"
    place.write_bytes(written(dataset(image(12), stored=12), JPEG_LS))
    done = subprocess.run(
        [sys.executable, "-c", program, str(place)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# --- by what is installed ----------------------------------------------------------------------


@pytest.fixture
def without_imagecodecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox whose children find no imagecodecs."""
    (tmp_path / "imagecodecs.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sandbox = Sandbox(Limits())
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize(
    ("syntax", "bits", "plugin"),
    [(RLE, 12, None), (JPEG, 8, None), (J2K, 12, "openjpeg"), (HTJ2K, 12, "openjpeg")],
)
def test_other_decoders_take_over_where_imagecodecs_is_missing(
    syntax: str, bits: int, plugin: str | None, without_imagecodecs: Sandbox
) -> None:
    if syntax not in WRITABLE:
        pytest.skip("imagecodecs has no encoder of HTJ2K here")
    if plugin:
        pytest.importorskip(plugin, reason=f"needs pylibjpeg-{plugin}")
    words = without_imagecodecs.decode(
        request(syntax, bits=bits), compressed(image(bits), bits, syntax)
    )
    assert np.abs(words.astype(int) - image(bits)).max() <= (3 if syntax == JPEG else 0)


def test_syntax_whose_decoder_is_missing_gets_a_reason_that_names_the_extra(
    without_imagecodecs: Sandbox,
) -> None:
    for module in ("gdcm", "jpeg_ls"):
        if module in sys.modules:
            pytest.skip(f"{module} is installed")
    with pytest.raises(NotAssessedError, match=r"pip install 'deepcovid-edge\[dicom\]'") as caught:
        without_imagecodecs.decode(request(LOSSLESS_SV1), compressed(image(12), 12, LOSSLESS_SV1))
    assert caught.value.reason is Reason.SYNTAX
    assert SYNTAXES[LOSSLESS_SV1].name in caught.value.detail
    assert LOSSLESS_SV1 in caught.value.detail
