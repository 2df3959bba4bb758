"""What the processor's own description says of INT8."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcovid_edge.device.processor import (
    INT8_SWITCH,
    computes_int8_exactly,
    int8_is_switched_off,
    processor_name,
)
from deepcovid_edge.errors import UsageError

pytestmark = pytest.mark.int8


@pytest.fixture(autouse=True)
def switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processor's description says is not switched off."""
    monkeypatch.delenv(INT8_SWITCH, raising=False)


@pytest.mark.parametrize(
    ("flags", "weight_bits", "exact"),
    [
        ("fpu sse4_2 avx2 avx512f avx512_vnni", 8, True),
        ("fpu avx2 avx_vnni", 8, True),
        ("fpu sse4_2 avx2 fma", 8, False),
        ("fpu sse4_2 avx2 fma", 7, True),
        ("fpu sse4_2", 7, False),
        ("", 7, False),
    ],
)
def test_x86_without_vnni_may_saturate_with_weights_of_8_bits(
    flags: str, weight_bits: int, exact: bool, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n")
    assert computes_int8_exactly(weight_bits, cpuinfo, "x86_64") is exact


def test_arm_sums_in_32_bits(tmp_path: Path) -> None:
    assert computes_int8_exactly(8, tmp_path / "missing", "aarch64")


def test_an_x86_that_tells_nothing_is_not_trusted(tmp_path: Path) -> None:
    assert not computes_int8_exactly(8, tmp_path / "missing", "x86_64")


def test_int8_may_be_switched_off_but_not_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(INT8_SWITCH, "off")
    assert int8_is_switched_off()
    assert not computes_int8_exactly(8, tmp_path / "missing", "aarch64")
    monkeypatch.setenv(INT8_SWITCH, "auto")
    assert computes_int8_exactly(8, tmp_path / "missing", "aarch64")
    assert not computes_int8_exactly(8, tmp_path / "missing", "x86_64")
    monkeypatch.setenv(INT8_SWITCH, "")
    assert not int8_is_switched_off()
    monkeypatch.setenv(INT8_SWITCH, "on")
    with pytest.raises(UsageError, match="DEEPCOVID_EDGE_INT8: got 'on', expected auto or off"):
        computes_int8_exactly()


def test_this_processor_has_a_name() -> None:
    assert processor_name()
