"""What the processor's own description says of INT8."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcovid_edge.device.processor import computes_int8_exactly, processor_name


@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        ("fpu sse4_2 avx2 avx512f avx512_vnni", True),
        ("fpu avx2 avx_vnni", True),
        ("fpu sse4_2 avx2 fma", False),
        ("", False),
    ],
)
def test_x86_without_vnni_may_saturate(flags: str, exact: bool, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n")
    assert computes_int8_exactly(cpuinfo, "x86_64") is exact


def test_arm_sums_in_32_bits(tmp_path: Path) -> None:
    assert computes_int8_exactly(tmp_path / "missing", "aarch64")


def test_an_x86_that_tells_nothing_is_not_trusted(tmp_path: Path) -> None:
    assert not computes_int8_exactly(tmp_path / "missing", "x86_64")


def test_this_processor_has_a_name() -> None:
    assert processor_name()
