"""Who may read the configuration after `cart install`, and what is left as it was."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path

import pytest

from deepcovid_edge.cart.config import read_config
from deepcovid_edge.cart.install.permissions import let_account_read

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files are given away by root alone")
ACCOUNT = "daemon"
SOMEBODY = 1234
CONFIG = """
[cart]
spool = "spool"
[[peer]]
ae_title = "CONSOLE"
address = "127.0.0.1"
[[destination]]
name = "pacs"
url = "https://127.0.0.1/dicom-web"
certificate = "link.pem"
key = "../elsewhere/pacs.key"
authority = "no such file.pem"
[page]
certificate = "page.crt"
key = "tls/page.key"
pin_file = "spool/page.pin"
"""


def state(place: Path) -> tuple[int, int, int]:
    """Owner, group and mode."""
    found = place.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A configuration with a spool and other files beside it; each is somebody's, mode 0600."""
    folder = tmp_path / "site"
    for name in ("spool", "tls", "../elsewhere", "others"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o700)
    for name in (
        *("cart.toml", "page.crt", "page.crt.old", "tls/page.key", "tls/other.key"),
        *("spool/page.pin", "spool/ledger.db", "../elsewhere/pacs.key", "../elsewhere/linked.pem"),
    ):
        (folder / name).write_text(CONFIG)
        (folder / name).chmod(0o600)
        os.chown(folder / name, SOMEBODY, SOMEBODY)
    (folder / "link.pem").symlink_to("../elsewhere/linked.pem")
    (folder / "dead").symlink_to("nowhere")
    os.chown(folder / "spool", SOMEBODY, SOMEBODY)
    return folder


def test_the_account_reads_the_configuration_and_what_it_names_and_no_more(site: Path) -> None:
    everything = [site, *site.rglob("*"), *site.parent.glob("elsewhere/*")]
    before = {place: state(place) for place in everything}
    let_account_read(read_config(site / "cart.toml"), ACCOUNT)
    group = grp.getgrnam(ACCOUNT).gr_gid
    assert {place: state(place) for place in everything if state(place) != before[place]} == {
        site: (0, group, 0o750),
        site / "cart.toml": (0, group, 0o640),
        site / "page.crt": (0, group, 0o640),
        site / "tls": (0, group, 0o750),
        site / "tls/page.key": (0, group, 0o640),
    }


def test_a_folder_that_is_not_roots_stays_its_owners(site: Path) -> None:
    os.chown(site, SOMEBODY, SOMEBODY)
    before = state(site)
    let_account_read(read_config(site / "cart.toml"), ACCOUNT)
    assert state(site) == before
    assert state(site / "cart.toml")[2] == 0o640


def test_a_configuration_that_is_a_link_leaves_its_target_alone(site: Path) -> None:
    (site / "cart.toml").rename(site.parent / "elsewhere/cart.toml")
    (site / "cart.toml").symlink_to("../elsewhere/cart.toml")
    let_account_read(read_config(site / "cart.toml"), ACCOUNT)
    assert state(site.parent / "elsewhere/cart.toml") == (SOMEBODY, SOMEBODY, 0o600)
