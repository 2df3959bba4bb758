"""A key of TLS that is encrypted: no service asks a terminal, and each says what to do."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cart_peers import free_port
from own_certificate import make_certificate

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
pytest.importorskip("uvicorn", reason="the page needs extra cart")
CONFIG = """
[cart]
spool = "spool"
[receive]
certificate = "c.pem"
key = "locked.pem"
[[peer]]
ae_title = "CONSOLE"
address = "127.0.0.1"
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 104
certificate = "c.pem"
key = "locked.pem"
[[destination]]
name = "archive"
url = "https://127.0.0.1:1/dicom-web"
certificate = "c.pem"
key = "locked.pem"
[page]
port = 8099
certificate = "c.pem"
key = "locked.pem"
"""
OF_THE_CART = """
import sys, threading
from pathlib import Path
from deepcovid_edge.cart.config import read_config
from deepcovid_edge.errors import NotThereError
config = read_config(Path("cart.toml"))
def receive():
    from deepcovid_edge.cart.receive.receiver import server_tls
    server_tls(config)
def report():
    from deepcovid_edge.cart.receive.commitment import client_tls
    client_tls(config)
def pacs():
    from deepcovid_edge.cart.send.association import tls_context
    tls_context(config.destinations[0])
def archive():
    from deepcovid_edge.cart.send.association import tls_context
    tls_context(config.destinations[1])
def page():
    from deepcovid_edge.cart.page.role import page
    page(config, threading.Event())
try:
    globals()[sys.argv[1]]()
except NotThereError as error:
    print(error)
"""
OF_THE_SERVER = ["-m", "deepcovid_edge", "serve", "--certificate", "c.pem", "--key", "locked.pem"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that names a key under a pass phrase."""
    if shutil.which("setsid") is None:
        pytest.skip("setsid is not installed: apt-get install util-linux")
    place = tmp_path_factory.mktemp("tls")
    make_certificate(place)
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:secret"]
    command += ["-in", "k.pem", "-out", "locked.pem"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    (place / "cart.toml").write_text(CONFIG.replace("8099", str(free_port())))
    return place


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["-c", OF_THE_CART, "receive"], "receive.key"),
        (["-c", OF_THE_CART, "report"], "receive.key"),
        (["-c", OF_THE_CART, "pacs"], "pacs: key"),
        (["-c", OF_THE_CART, "archive"], "archive: key"),
        (["-c", OF_THE_CART, "page"], "page.key"),
        ([*OF_THE_SERVER, "--port", "0"], "--key"),
    ],
    ids=["receive", "report", "pacs", "archive", "page", "serve"],
)
def test_no_terminal_is_asked_for_a_pass_phrase(
    folder: Path, words: list[str], setting: str
) -> None:
    screen, terminal = pty.openpty()
    try:
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", sys.executable, *words],
            cwd=folder,
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(screen)
    said = done.stdout.decode()
    assert f"{setting}: " in said
    assert "locked.pem: is encrypted, expected a key without a pass phrase: `openssl " in said
    assert "Traceback" not in said
