"""`cart check-config` finds what keeps the roles from listening."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from deepcovid_edge.cart import checks
from deepcovid_edge.cart.checks import Check, check
from deepcovid_edge.cart.config import (
    CartConfig,
    CartSettings,
    Destination,
    PageSettings,
    Peer,
    ReceiveSettings,
    read_config,
)
from deepcovid_edge.cart.page.access import Pin

pytest.importorskip("pynetdicom", reason="the cart needs extra cart")
PAGE = Path(__file__).parents[3] / "docs/cart.md"
ELSEWHERE = "192.0.2.1"
"""Of no machine (RFC 5737)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate, its key, the key under a pass phrase, another key, and the hash of a PIN."""
    place = tmp_path_factory.mktemp("tls")
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=cart"]
    for command in (
        [*new, "-nodes", "-keyout", "k.pem", "-out", "c.pem"],
        [*new, "-nodes", "-keyout", "other.pem", "-out", "o.pem"],
        ["openssl", "rsa", "-aes128", "-passout", "pass:w", "-in", "k.pem", "-out", "locked.pem"],
    ):
        subprocess.run(command, cwd=place, check=True, capture_output=True)
    Pin.of("123456").write(place / "pin")
    (place / "text").write_text("no certificate")
    return place


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes a second and is looked at elsewhere."""
    monkeypatch.setattr(checks, "_model", lambda _: iter(()))


def found(
    folder: Path,
    receive: Mapping[str, object],
    page: Mapping[str, object],
    peers: tuple[Peer, ...] = (Peer("CONSOLE", "127.0.0.1"),),
    destinations: tuple[Destination, ...] = (),
) -> dict[str, Check]:
    """The checks of a cart by what they look at; files are those of a folder."""

    def files(keys: Mapping[str, object]) -> dict[str, object]:
        names = ("certificate", "key", "authority", "pin_file")
        return {key: folder / str(value) if key in names else value for key, value in keys.items()}

    config = CartConfig(
        folder / "cart.toml",
        CartSettings(folder / "spool", floor_mib=0, floor_share=0.0),
        dataclasses.replace(ReceiveSettings(), **files(receive)),  # type: ignore[arg-type]
        peers,
        destinations,
        page=dataclasses.replace(PageSettings(), **files(page)),  # type: ignore[arg-type]
    )
    return {one.what: one for one in check(config, asks=False)}


TLS = {"certificate": "c.pem", "key": "k.pem"}


def test_what_the_roles_can_listen_with_is_right(folder: Path) -> None:
    one = found(folder, {**TLS, "authority": "o.pem"}, {**TLS, "pin_file": "pin", "host": "::1"})
    assert one["receive"] == Check("receive", True, "127.0.0.1, port 11112, with TLS")
    assert one["page"].is_right, one["page"].detail


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"certificate": "none.pem", "key": "k.pem"}, r"\.certificate: .*none.pem: No such file"),
        ({"certificate": "c.pem", "key": "none.pem"}, r"\.key: .*none.pem: No such file"),
        (
            {"certificate": "c.pem", "key": "other.pem"},
            r"\.certificate: cannot be used: .*other.pem",
        ),
        ({"certificate": "text", "key": "k.pem"}, r"\.certificate: cannot be used: .*text"),
        (
            {"certificate": "c.pem", "key": "locked.pem"},
            r"\.key: .*locked.pem: is encrypted, expected .*`openssl pkey -in KEY -out NEW`",
        ),
    ],
)
def test_files_of_tls_that_a_role_could_not_use_fail(
    folder: Path, keys: dict[str, object], message: str
) -> None:
    one = found(folder, keys, keys)
    for table in ("receive", "page"):
        assert not one[table].is_right
        assert re.search(table + message, one[table].detail), one[table].detail


@pytest.mark.parametrize(
    ("host", "peer", "is_right"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "192.168.1.20", False),
        ("127.0.0.1", "0.0.0.0/0", False),
        ("::1", "::1", True),
        ("0.0.0.0", "192.168.1.20", True),
    ],
)
def test_a_console_elsewhere_reaches_no_receiver_of_this_machine_alone(
    folder: Path, host: str, peer: str, is_right: bool
) -> None:
    one = found(folder, {"host": host}, {}, (Peer("HERE", "127.0.0.1"), Peer("CONSOLE", peer)))
    assert one["receive"].is_right == is_right
    if not is_right:
        assert f"receive.host: got {host}, which only this" in one["receive"].detail
        assert f"the peer CONSOLE is at {peer}: name the cart's own" in one["receive"].detail


@pytest.mark.parametrize(
    ("host", "commitment", "is_right"),
    [("127.0.0.1", True, True), (ELSEWHERE, True, False), (ELSEWHERE, False, None)],
)
def test_a_destination_that_answers_about_storage_commitment_reaches_the_cart(
    folder: Path, host: str, commitment: bool, is_right: bool | None
) -> None:
    pacs = Destination("pacs", "PACS", host, commitment=commitment)
    one = found(folder, {"folders": (folder / "incoming",)}, {}, (), (pacs,))
    assert (one["receive"].is_right if "receive" in one else None) is is_right
    if is_right is False:
        assert f"destination pacs, which answers about storage commitment, is at {host}: name" in (
            one["receive"].detail
        )


def test_the_steps_of_the_page_make_a_configuration_that_is_right(
    tmp_path: Path,
) -> None:
    """Every command of "Five minutes" before the check, with addresses of this machine."""
    section = PAGE.read_text("utf-8").split("## Five minutes")[1].split("\n## ")[0]
    (toml,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    toml = toml.replace("[cart]", "[cart]\nfloor_mib = 0\nfloor_share = 0.0")
    (tmp_path / "cart.toml").write_text(re.sub(r"192\.168\.1\.\d+", "127.0.0.1", toml))
    commands = re.search(r"```text\n(.*?)deepcovid-edge cart check-config", section, re.DOTALL)
    assert commands
    subprocess.run(["sh", "-ec", commands[1]], cwd=tmp_path, check=True)
    checked = list(check(read_config(tmp_path / "cart.toml"), asks=False))
    assert [one for one in checked if not one.is_right] == []


def test_an_address_of_another_machine_an_authority_and_a_pin_that_are_not_there_fail(
    folder: Path,
) -> None:
    elsewhere = {"host": ELSEWHERE, **TLS, "pin_file": "pin"}
    one = found(folder, {"host": ELSEWHERE}, elsewhere)
    for table in ("receive", "page"):
        assert not one[table].is_right
        assert f"{table}.host: {ELSEWHERE}: " in one[table].detail
        assert "this machine has no such address" in one[table].detail
    one = found(folder, {**TLS, "authority": "text"}, {"pin_file": "none"})
    assert "cannot be used" in one["receive"].detail
    assert "cart set-pin" in one["page"].detail
    assert {what for what in one if not one[what].is_right} == {"receive", "page"}


@pytest.mark.parametrize(
    ("after", "destinations", "marks"),
    [
        ("delete", (), ["warn"]),
        ("move", (), []),
        ("delete", (Destination("pacs", "PACS", "127.0.0.1"),), []),
    ],
)
def test_a_cart_that_deletes_and_sends_nothing_warns_that_images_are_lost(
    folder: Path, after: str, destinations: tuple[Destination, ...], marks: list[str]
) -> None:
    (folder / "incoming").mkdir(exist_ok=True)
    receive = {"folders": (folder / "incoming",), "after": after}
    one = found(folder, receive, {}, (), destinations)
    assert [check.mark for what, check in one.items() if what == "receive.after"] == marks
    if marks:
        assert "gone for good after 30 days" in one["receive.after"].detail
    assert all(check.is_right for check in one.values())


def test_a_watched_folder_that_is_not_there_has_a_fix(folder: Path) -> None:
    missing = folder / "nowhere"
    one = found(folder, {"folders": (missing,)}, {}, ())
    assert one[f"folder {missing}"].mark == "FAIL"
    assert "make it or mount it, or correct receive.folders" in one[f"folder {missing}"].detail


@pytest.mark.parametrize(
    ("commitment", "ports", "warns"),
    [(True, (None, None), True), (True, (None, 104), False), (False, (None,), False)],
)
def test_storage_commitment_that_nobody_can_be_told_of_is_named(
    folder: Path, commitment: bool, ports: tuple[int | None, ...], warns: bool
) -> None:
    peers = tuple(Peer(f"C{at}", "127.0.0.1", port) for at, port in enumerate(ports))
    told = found(folder, {"commitment": commitment}, {}, peers).get("receive.commitment")
    assert (told is not None and told.mark == "warn") == warns
    if told:
        assert told.detail.startswith("no [[peer]] has a port, so every request is refused: give")
