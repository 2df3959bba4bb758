"""A real S3 server on this machine, in a process of its own: moto's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cart_peers import free_port

HOST = "127.0.0.1"
_START_SECONDS = 60.0


def program() -> str | None:
    """The server's program, beside Python or on the path."""
    beside = Path(sys.executable).with_name("moto_server")
    return str(beside) if beside.exists() else shutil.which("moto_server")


needs_s3 = pytest.mark.skipif(program() is None, reason="moto_server is missing: extra dev")


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server while the block runs.

    Yields:
        The environment in which `pyarrow.fs` uses it.
    """
    port, words = free_port(), program()
    assert words is not None
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
    }
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [words, "-H", HOST, "-p", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )
        try:
            _wait(process, environment["AWS_ENDPOINT_URL"])
            yield environment
        finally:
            process.terminate()
            process.wait(20)


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the S3 server does not answer")
