"""A certificate for 127.0.0.1, made by openssl, and a request to who uses it."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from cart_peers import HOST


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Certificate and key, PEM, in a folder."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    certificate, key = folder / "c.pem", folder / "k.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def answer_over_tls(port: int, certificate: Path, path: str) -> str:
    """The whole answer to a GET, its head included; empty where nobody listens yet."""
    context = ssl.create_default_context(cafile=str(certificate))
    try:
        with (
            socket.create_connection((HOST, port), 5) as bare,
            context.wrap_socket(bare, server_hostname=HOST) as stream,
        ):
            assert stream.version() in ("TLSv1.2", "TLSv1.3")
            head = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n"
            stream.sendall(head.encode())
            parts = []
            while part := stream.recv(65536):
                parts.append(part)
            return b"".join(parts).decode()
    except ConnectionRefusedError:
        return ""
