"""Files that the services would not see are refused before anything is changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deepcovid_edge.cart.config import read_config
from deepcovid_edge.cart.install import visible
from deepcovid_edge.cart.install.installation import FILES, Installation, InstallSettings
from deepcovid_edge.cart.install.site import ROLES
from deepcovid_edge.cart.install.visible import check_visible, is_installed, named_places
from deepcovid_edge.errors import UsageError

CONFIG = """
[cart]
spool = "/data/spool"
backup = "/data/backup"
model = "/data/mine.onnx"
site = "site.json"
[receive]
folders = ["/mnt/a", "/mnt/b"]
certificate = "/data/c.pem"
key = "/data/k.pem"
[[destination]]
name = "pacs"
url = "https://127.0.0.1/dicom-web"
authority = "/data/pacs.pem"
[page]
pin_file = "/data/page.pin"
"""
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="systemd is not installed"
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration in a folder of its own."""
    path = tmp_path / "edge" / "cart.toml"
    path.parent.mkdir()
    path.write_text(CONFIG)
    return path


def hide(monkeypatch: pytest.MonkeyPatch, *folders: object) -> None:
    monkeypatch.setattr(visible, "_HIDDEN", tuple(map(str, folders)))


@pytest.mark.parametrize("role", ROLES)
def test_the_units_hide_what_is_taken_as_hidden(role: str) -> None:
    """systemd.exec(5): ProtectHome= hides the first three, PrivateTmp= the others."""
    lines = (FILES / f"deepcovid-edge-{role}.service").read_text("utf-8").splitlines()
    assert {"ProtectHome=yes", "PrivateTmp=yes"} <= {*lines}
    assert visible._HIDDEN == ("/home", "/root", "/run/user", "/tmp", "/var/tmp")


@pytest.mark.parametrize(
    "place", ["/tmp/new.onnx", "/home/ann/new.onnx", "/var/lib/../tmp/a", "/run/user/0/a"]
)
def test_a_hidden_place_is_refused_with_one_that_is_not(place: str) -> None:
    with pytest.raises(UsageError, match=r"the units see nothing below .*/var/lib/deepcovid-edge"):
        check_visible(Path(place))


@pytest.mark.parametrize("place", ["/opt/edge/new.onnx", "/homes/a", "/var/lib/edge/tmp/a"])
def test_other_places_are_taken(place: str) -> None:
    check_visible(Path(place))


def test_a_link_into_a_hidden_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, tmp_path / "home")
    (tmp_path / "home").mkdir()
    (tmp_path / "link.onnx").symlink_to("home/new.onnx")
    with pytest.raises(UsageError, match=f"{tmp_path}/home/new.onnx: the units see nothing"):
        check_visible(tmp_path / "link.onnx")


def test_every_place_that_a_configuration_names_is_found(config: Path) -> None:
    names = ("spool", "backup", "mine.onnx", "c.pem", "k.pem", "pacs.pem", "page.pin")
    assert {*named_places(read_config(config))} == {
        *(Path("/data", name) for name in names),
        *(Path("/mnt", name) for name in ("a", "b")),
        config.parent / "site.json",
    }


@needs_systemd
@pytest.mark.parametrize("hidden", ["/data/mine.onnx", "/mnt/b", ""])
def test_an_installation_refuses_a_configuration_that_names_a_hidden_place(
    config: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    hide(monkeypatch, hidden or config.parent)
    lines: list[str] = []
    with pytest.raises(UsageError, match=f"{hidden or config}: the units see nothing below"):
        Installation(
            InstallSettings(config=config, program=Path("/opt/edge/python"), is_dry=True),
            lines.append,
        ).install()
    assert lines == []


@needs_systemd
def test_a_cart_is_installed_where_the_worker_runs_with_its_configuration(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    monkeypatch.setattr(visible, "UNIT_FOLDER", root / "etc/systemd/system")
    assert not is_installed(read_config(config))
    Installation(InstallSettings(root, config), lambda _: None).install()
    assert is_installed(read_config(config))
    monkeypatch.chdir(config.parent)
    assert is_installed(read_config(Path(config.name)))
    other = config.with_name("cart.toml.old")
    config.rename(other)
    assert not is_installed(read_config(other))
