"""What a Jetson's files say; no board has run these."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcovid_edge.device import gpu, jetpack

RELEASE = (
    "# R{major} (release), REVISION: {rest}, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n"
)


@pytest.mark.parametrize(
    ("l4t", "version"),
    [
        ("36.4.0", "6.1"),
        ("36.4.3", "6.2"),
        ("36.4.2", "6.1"),
        ("36.4.4", "6.2"),
        ("36.5.0", "6.2"),
        ("38.2.0", "7.0"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("35.6.0", "unknown"),
    ],
)
def test_release_is_read_from_the_release_file_or_the_packages(
    tmp_path: Path, l4t: str, version: str
) -> None:
    assert jetpack.find_release(tmp_path) is None
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: libc6\nVersion: 2.35\n\n"
        f"Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: {l4t}-20250107174145\n"
    )
    assert jetpack.find_release(tmp_path) == f"JetPack {version} (L4T {l4t})"
    status.unlink()
    major, _, rest = l4t.partition(".")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(RELEASE.format(major=major, rest=rest))
    assert jetpack.find_release(tmp_path) == f"JetPack {version} (L4T {l4t})"


def test_tensorrt_of_jetpack_outside_the_environment_is_noticed(tmp_path: Path) -> None:
    assert not jetpack.hidden_tensorrt(tmp_path)
    package = tmp_path / "usr/lib/python3.10/dist-packages/tensorrt/__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    assert jetpack.hidden_tensorrt(tmp_path)


@pytest.mark.parametrize(
    ("model", "capability"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit\0", "sm87"),
        ("NVIDIA Jetson AGX Thor Developer Kit\0", "sm110"),
    ],
)
def test_gpu_of_a_board_is_known_from_the_device_tree(
    tmp_path: Path, model: str, capability: str
) -> None:
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_text(model)
    found = gpu._by_device_tree(tmp_path)
    assert found is not None
    assert (found.name, found.capability) == (model.rstrip("\0"), capability)


def test_gpu_is_read_from_the_drivers_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 9.0, 580.95.05, 142771'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu._by_tool() == gpu.GpuFacts("NVIDIA H200", "sm90", "580.95.05", 142771)
    tool.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert gpu._by_tool() is None
    monkeypatch.setattr(gpu, "_TOOL_SECONDS", 0.5)
    tool.write_text("#!/bin/sh\nwhile :; do :; done\n")
    assert gpu._by_tool() is None
