"""A real Triton on 127.0.0.1: that of nvidia-pytriton, which has the Python backend alone.

`make triton` makes its environment, with NumPy below 2: the server's Python backend reads every
tensor of a newer NumPy wrongly. `DEEPCOVID_EDGE_TRITON` says where it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from cart_peers import HOST, Server, free_port, is_listening

ROOT = Path(__file__).parents[1]
PLACE = Path(os.environ.get("DEEPCOVID_EDGE_TRITON", Path.home() / ".cache/deepcovid-edge/triton"))
PYTHON = PLACE / "bin/python"
needs_triton = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"no Triton in {PLACE}: make triton (DEEPCOVID_EDGE_TRITON)"
)
_LIBRARIES = "import pytriton, pathlib; print(pathlib.Path(pytriton.__file__).parents[1])"


class Triton(Server):
    """A Triton with a model repository.

    Args:
        repository: The repository.
        folder: For its log, and a copy of its backend with the interpreter's stub.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        done = subprocess.run(
            [PYTHON, "-c", _LIBRARIES], capture_output=True, text=True, check=True
        )
        site = Path(done.stdout.strip())
        tree = site / "pytriton/tritonserver"
        shutil.copytree(tree / "backends", folder / "backends")
        version = site.parent.name.removeprefix("python")
        stub = "triton_python_backend_stub"
        shutil.copy(
            tree / "python_backend_stubs" / version / stub, folder / "backends/python" / stub
        )
        self.port = free_port()
        command = [
            *(tree / "bin/tritonserver", "--model-repository", repository),
            *("--backend-directory", folder / "backends", "--allow-metrics", "false"),
            *("--http-address", HOST, "--http-port", self.port, "--allow-grpc", "false"),
        ]
        libraries = [site / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        environment = {
            **os.environ,
            "PATH": f"{PLACE / 'bin'}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(PLACE),
            "PYTHONPATH": f"{ROOT}:{site}",
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "OMP_NUM_THREADS": "1",
        }
        super().__init__(
            command, folder / "triton.log", lambda: is_listening(self.port), env=environment
        )
