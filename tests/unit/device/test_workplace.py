"""What a process keeps for its next image, and what it may take and leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from deepcovid_edge.device import process
from deepcovid_edge.device.process import keep_freed_memory

FAULTS_A_IMAGE = """
import resource, threading
import numpy as np
from deepcovid_edge.device.process import keep_freed_memory
if {kept}:
    assert keep_freed_memory()

def images(count):
    for _ in range(count):
        pixels = np.ones((768, 768), np.uint8)
        levels = pixels.astype(np.float32)
        turned = levels.T.copy()
        del pixels, levels, turned

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    images(20)
    before = faults()
    images(200)
    print((faults() - before) / 200)

worker = threading.Thread(target=work)
worker.start()
worker.join()
"""


def faults_an_image(*, kept: bool) -> float:
    code = FAULTS_A_IMAGE.format(kept=kept)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_pages_of_an_image_are_not_asked_for_again() -> None:
    by_default = faults_an_image(kept=False)
    if by_default < 50:
        pytest.skip(
            f"memory is kept here by default ({by_default:.0f} pages an image): huge pages?"
        )
    assert faults_an_image(kept=True) < 5


LIMITS = """
import json, resource
from deepcovid_edge.device.process import limit_address_space, write_no_core_file
before = [one << 30 if one > 0 else resource.RLIM_INFINITY for one in {before}]
resource.setrlimit(resource.RLIMIT_AS, before)
write_no_core_file()
limit_address_space(8 << 30)
found = resource.getrlimit(resource.RLIMIT_AS)
print(json.dumps([found[0] >> 30, resource.getrlimit(resource.RLIMIT_CORE)]))
"""


@pytest.mark.parametrize(
    ("before", "expected"), [((-1, -1), 8), ((9, -1), 8), ((6, 7), 6), ((5, -1), 5)]
)
def test_a_limited_process_writes_no_core_file_and_takes_no_more_than_it_may(
    before: tuple[int, int], expected: int
) -> None:
    """In GiB; a lower limit of whoever starts it stays."""
    program = LIMITS.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(done.stdout) == [expected, [0, 0]]


BROKEN = """
import sys
import cv2
import numpy as np
from deepcovid_edge.device.process import set_up
if "{quiet}":
    set_up()
tiff = b"II*\\0\\x08\\0\\0\\0\\1\\0\\0\\1\\3\\0\\1\\0\\0\\0\\x10\\0\\0\\0\\0\\0\\0\\0"
assert cv2.imdecode(np.frombuffer(tiff, np.uint8), cv2.IMREAD_UNCHANGED) is None
"""


def test_opencv_writes_nothing_of_a_broken_image() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", BROKEN.format(quiet=quiet)],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        for quiet in ("", "quiet")
    ]
    assert "TIFF" in said[0]
    assert said[1] == ""


def test_the_log_of_opencv_4_is_silenced_in_its_own_place() -> None:
    program = (
        "import cv2\nfrom deepcovid_edge.device.process import set_up\n"
        "del cv2.utils.logging\ncv2.setLogLevel = print\nset_up()"
    )
    if hasattr(cv2, "setLogLevel"):
        pytest.skip("this is OpenCV 4")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"0\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b", {"a/cpu.max": "800000 100000", "a/b/cpu.max": "50000 100000"}, 1),
        ("0::/../other", {"cpu.max": "300000 100000"}, 3),
        ("0::/", {"cpu.max": "9900000 100000"}, 64),
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "nonsense"}, 64),
        (
            "5:memory:/m\n4:cpu,cpuacct:/docker/1",
            {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            "1:cpu:/a",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            64,
        ),
        (None, {"cpu.max": "200000 100000"}, 64),
    ],
)
def test_cores_are_those_that_a_container_may_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: str | None,
    files: dict[str, str],
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setattr(process, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(process, "_CGROUPS", tmp_path / "groups")
    if own is not None:
        (tmp_path / "cgroup").write_text(f"{own}\n")
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    assert process.cores() == expected
