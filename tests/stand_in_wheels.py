"""Wheels for installers under test: names and needs of the real ones, and nothing to install."""

from __future__ import annotations

import zipfile
from pathlib import Path


def stand_in_wheels(
    folder: Path, *, edge: str = "print('info of stand-in')", cuda: tuple[int, int] = (12, 6)
) -> None:
    """Wheels with the names and needs of the real ones, and next to nothing in them.

    Args:
        folder: Where they are written.
        edge: What `deepcovid-edge` does.
        cuda: What pycuda says that it was built with.
    """
    folder.mkdir(exist_ok=True)
    driver = f"def get_version(): return {(*cuda, 0)}\n"
    for name, version, module in (
        ("numpy", "1.26.4", ""),
        ("numpy", "2.2.6", ""),
        ("onnxruntime", "1.23.2", "kind = 'cpu'\n"),
        ("onnxruntime-gpu", "1.23.0", "kind = 'gpu'\n"),
        ("pycuda", "2026.1", ""),
        ("cuda-bindings", "12.9.4", ""),
        ("cuda-bindings", "13.4.4", ""),
    ):
        package = {"onnxruntime-gpu": "onnxruntime"}.get(name, name.replace("-", "_"))
        files = {f"{package}/__init__.py": module}
        if name == "pycuda":
            files["pycuda/driver.py"] = driver
        pack(folder, name, version, files)
    needs = (
        "Requires-Dist: numpy>=1.26\nProvides-Extra: cpu\nProvides-Extra: gpu\n"
        "Provides-Extra: dicom\nProvides-Extra: tensorrt\n"
        'Requires-Dist: onnxruntime>=1.19; extra == "cpu"\n'
        'Requires-Dist: onnxruntime-gpu>=1.19; extra == "gpu"\n'
        'Requires-Dist: pycuda>=2024.1; extra == "tensorrt"\n'
        'Requires-Dist: cuda-bindings>=12.6; extra == "tensorrt"\n'
    )
    script = "[console_scripts]\ndeepcovid-edge = deepcovid_edge:main\n"
    module = f"def main():\n    {edge}\n"
    pack(folder, "deepcovid-edge", "0.1.0", {"deepcovid_edge/__init__.py": module}, needs, script)


def pack(
    folder: Path,
    name: str,
    version: str,
    files: dict[str, str],
    needs: str = "",
    scripts: str = "",
) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    about = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = {**files, f"{about}/METADATA": metadata, f"{about}/WHEEL": tags}
    if scripts:
        content[f"{about}/entry_points.txt"] = scripts
    content[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
