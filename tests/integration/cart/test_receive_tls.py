"""The DICOM port under TLS, with DCMTK's client and certificates of both sides."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cart_peers import echoscu, needs_dcmtk
from receiving_cart import ReceivingCart

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
pytestmark = [
    needs_dcmtk,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    request = ["openssl", "req", "-x509", *curve, "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*request, *names], check=True, capture_output=True)
    return paths


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("certificates")
    return {name: certificate(folder, name) for name in ("cart", "console", "stranger")}


@pytest.fixture(scope="module")
def cart(
    files: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ReceivingCart]:
    own, key = files["cart"]
    settings = {"certificate": own, "key": key, "authority": files["console"][0]}
    with ReceivingCart(tmp_path_factory.mktemp("cart"), receive=settings) as running:
        yield running


def echo(cart: ReceivingCart, files: dict[str, tuple[Path, Path]], name: str) -> int:
    own, key = files[name]
    options = ["+tls", key, own, "+cf", files["cart"][0]]
    return echoscu(cart.port, options=options).returncode


def test_a_named_certificate_gets_in_and_no_other(
    cart: ReceivingCart, files: dict[str, tuple[Path, Path]]
) -> None:
    assert echo(cart, files, "console") == 0
    assert echo(cart, files, "stranger") != 0
    assert echoscu(cart.port).returncode != 0, "without TLS"
    anonymous = ["+tla", "+cf", files["cart"][0]]
    assert echoscu(cart.port, options=anonymous).returncode != 0
    assert echo(cart, files, "console") == 0
    assert "Traceback" not in cart.said()


def test_a_key_that_does_not_fit_is_told_in_a_sentence(
    files: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    settings = {"certificate": files["cart"][0], "key": files["stranger"][1]}
    cart = ReceivingCart(tmp_path, receive=settings)
    assert cart.process.wait(30) != 0
    assert f"receive.certificate: {files['cart'][0]}" in cart.said()
